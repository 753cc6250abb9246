"""What a matrix would become by a choice, and what that costs: the parts that both sensitivities share."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Literal, cast

import torch
from torch import nn

from edge.compress.calibrate import HiddenStates
from edge.compress.grid import fit_grid
from edge.compress.method import Inputs, Task
from edge.core.weight import Affine, Compressed, CompressedTensor
from edge.models.checkpoint import Checkpoint
from edge.models.spec import DecoderSpec
from edge.models.torch_model import empty_model, put

Estimate = Literal["rounding", "method"]
Trials = Mapping[str, Sequence[Task]]
"""The choices of every tensor."""
HEAD_ROWS = 128  # tokens whose logits are in memory at a time


@dataclass(frozen=True)
class Outcome:
    """What a choice does to one tensor: the Kullback-Leibler divergence that it adds, nats per token, and its form."""

    divergence: float
    encoding: Compressed
    stored_bytes: int

    @staticmethod
    def of(divergence: float, tensor: CompressedTensor) -> Outcome:
        return Outcome(max(0.0, divergence), cast(Compressed, tensor.encoding), tensor.stored_bytes)

    def plus(self, divergence: float) -> Outcome:
        """The same with more divergence."""
        return replace(self, divergence=self.divergence + max(0.0, divergence))


def try_choice(
    task: Task, name: str, weight: torch.Tensor, inputs: Inputs | None, estimate: Estimate
) -> CompressedTensor:
    """A matrix [rows, columns] compressed as `task` says, or, much cheaper, rounded to the same kind of grid.

    `rounding` stands for calibrated methods with a uniform grid only: all others run as they are.
    """
    encoding = getattr(task.options, "encoding", None)
    if inputs is not None and estimate == "rounding" and task.method.CALIBRATED and isinstance(encoding, Affine):
        grid = fit_grid(weight, encoding, importance=inputs.hessian.diagonal())
        return grid.tensor(name, grid.encode(weight))
    return task.run(name, weight, inputs)


class OneLayerModel:
    """A checkpoint's model with no more than one layer in memory."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        self.checkpoint, self.spec = checkpoint, cast(DecoderSpec, checkpoint.spec)
        self.model = empty_model(checkpoint.config, checkpoint.spec)
        self._units = self.spec.units(checkpoint.names())

    def start(self, windows: torch.Tensor, changed: Mapping[str, torch.Tensor] | None = None) -> HiddenStates:
        """What enters the first layer for token ids [samples, tokens], with `changed` in place of the checkpoint's."""
        self._fill(self._units[0])
        for name, values in (changed or {}).items():
            put(self.model, name, values)
        states = HiddenStates(self.model, self.spec, windows)
        self._forget(0)
        return states

    @contextmanager
    def layer(self, index: int) -> Iterator[nn.Module]:
        """Layer `index` while it is in memory."""
        self._fill(self._units[index + 1])
        yield self.model.get_submodule(self.spec.layers[index].name)
        self._forget(index + 1)

    def final_norm(self) -> nn.Module:
        name = self.spec.final_norm.name
        self._fill([n for n in self.checkpoint.names() if n.startswith(f"{name}.")])
        return self.model.get_submodule(name)

    def _fill(self, names: Sequence[str]) -> None:
        """Plain float32, also where the checkpoint is compressed."""
        for name in names:
            put(self.model, name, self.checkpoint.tensor(name).to(torch.float32, copy=True))

    def _forget(self, unit: int) -> None:
        for name in self._units[unit]:
            put(self.model, name, torch.empty(self.checkpoint.shape(name), device="meta"))
        self.checkpoint.release()


class Head:
    """The original head [vocabulary, hidden] and logits that it makes."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        self.spec = cast(DecoderSpec, checkpoint.spec)
        name = f"{self.spec.embedding if self.spec.tied else self.spec.head}.weight"
        self.weight = checkpoint.tensor(name).to(torch.float32, copy=True)

    def logits(self, states: torch.Tensor, weight: torch.Tensor | None = None) -> torch.Tensor:
        """[tokens, vocabulary] of normalised states [tokens, hidden], by another head if `weight` is given."""
        logits = states @ (self.weight if weight is None else weight).T
        cap = self.spec.logit_softcap
        return logits.div_(cap).tanh_().mul_(cap) if cap else logits

    def divergence(self, originals: torch.Tensor, states: torch.Tensor, weight: torch.Tensor | None = None) -> float:
        """Mean KL(original || changed) over tokens, nats: of states [tokens, hidden] and of another head."""
        total = 0.0
        for original, changed in zip(originals.split(HEAD_ROWS), states.split(HEAD_ROWS), strict=True):
            expected = self.logits(original).log_softmax(-1)
            found = self.logits(changed, weight).log_softmax(-1)
            total += float((expected.exp() * (expected - found)).sum(dtype=torch.float64))
        return total / len(originals)
