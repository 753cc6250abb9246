"""Keys, values and the gradients of the loss at them, layer by layer: one walk forwards, one backwards.

One layer is in memory at a time; what enters each waits in files. The loss is the model's own: next tokens drawn from
its predictions, so that squared gradients are the diagonal of the Fisher information. Results of finished layers are
kept in the folder, and a walk that was killed goes on with the layer it was at.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save

from edge.compress.gradients import loss_gradient
from edge.compress.methods._trial import Head, OneLayerModel
from edge.core.cache import SINK_TOKENS
from edge.core.console import Ticker
from edge.core.files import write_atomic
from edge.models.cache_modules import change_keys_and_values
from edge.models.checkpoint import Checkpoint
from edge.models.spec import Layer

Tensors = dict[str, torch.Tensor]


@dataclass(frozen=True)
class Samples:
    """What a layer's cache would hold, float32 [tokens, heads, head_dim], and the loss's gradients at it.

    Without the first tokens of every window, which caches don't quantize.
    """

    keys: torch.Tensor
    key_gradients: torch.Tensor
    values: torch.Tensor
    value_gradients: torch.Tensor


class CacheWalk:
    """Walks `checkpoint` with `windows` [samples, tokens]; `folder` keeps what memory can't and what is finished."""

    def __init__(self, checkpoint: Checkpoint, windows: torch.Tensor, folder: Path, seed: int) -> None:
        self.loader = OneLayerModel(checkpoint)
        self.spec = self.loader.spec
        self.windows, self.folder, self.seed = windows, folder, seed
        self.walk = self.loader.start(windows)

    def run(self, fit: Callable[[Layer, Samples], Tensors], tick: Ticker) -> list[Tensors]:
        """What `fit` makes of every layer. Two ticks a layer."""
        layers = self.spec.layers
        if not list(self.folder.glob("gradients-*")):
            self._forwards(tick)
        for index in reversed(range(len(layers))):
            if not self._result(index).is_file():
                _write(self._result(index), fit(layers[index], self._backwards(index)))
                self._gradients(index + 1).unlink()
            tick()
        return [load_file(self._result(index)) for index in range(len(layers))]

    def _forwards(self, tick: Ticker) -> None:
        for index in range(len(self.spec.layers)):
            _write_states(self._entering(index), self.walk.states)
            with self.loader.layer(index) as module:
                self.walk.advance(index, module)
            tick()
        norm, head = self.loader.final_norm(), Head(self.loader.checkpoint)
        generator = torch.Generator().manual_seed(self.seed)
        gradients = [loss_gradient(norm, head, states, generator) for states in self.walk.states]
        _write_states(self._gradients(len(self.spec.layers)), gradients)

    def _backwards(self, index: int) -> Samples:
        """Samples of a layer; the gradients at its outputs become those at its inputs."""
        states, gradients = _read_states(self._entering(index)), _read_states(self._gradients(index + 1))
        taps = _Taps()
        with self.loader.layer(index) as module:
            handles = change_keys_and_values(
                self.loader.model, self.spec.layers[index].attention, taps.keys, taps.values
            )
            for window, state in enumerate(states):
                entering = state.clone().requires_grad_()
                self.walk.run(index, module, entering).backward(gradients[window])
                gradients[window] = entering.grad
                taps.take()
            for handle in handles:
                handle.remove()
        _write_states(self._gradients(index), gradients)
        return taps.samples()

    def _entering(self, index: int) -> Path:
        return self.folder / f"states-{index}.npy"

    def _gradients(self, index: int) -> Path:
        """Of what enters layer `index`."""
        return self.folder / f"gradients-{index}.npy"

    def _result(self, index: int) -> Path:
        return self.folder / f"layer-{index}.safetensors"


class _Taps:
    """Collects what passes, and the gradients at it once it ran back."""

    def __init__(self) -> None:
        self._passing: Tensors = {}
        self._taken: dict[str, list[torch.Tensor]] = {name: [] for name in Samples.__dataclass_fields__}

    def keys(self, keys: torch.Tensor) -> torch.Tensor:
        return self._tap("keys", keys)

    def values(self, values: torch.Tensor) -> torch.Tensor:
        return self._tap("values", values)

    def _tap(self, name: str, x: torch.Tensor) -> torch.Tensor:
        x.retain_grad()
        self._passing[name] = x
        return x

    def take(self) -> None:
        """Keep what passed since the last time."""
        for name, x in self._passing.items():
            assert x.grad is not None
            self._taken[name].append(x.detach()[0, SINK_TOKENS:])
            self._taken[f"{name.removesuffix('s')}_gradients"].append(x.grad[0, SINK_TOKENS:])

    def samples(self) -> Samples:
        return Samples(**{name: torch.cat(parts) for name, parts in self._taken.items()})


def _write_states(path: Path, states: list[torch.Tensor]) -> None:
    """States [1, tokens, hidden] of all windows, in one step."""
    temporary = path.with_suffix(".tmp")
    with temporary.open("wb") as file:
        np.save(file, torch.cat(states).numpy())
    temporary.replace(path)


def _read_states(path: Path) -> list[torch.Tensor]:
    return list(torch.from_numpy(np.load(path)).split(1))


def _write(path: Path, tensors: Tensors) -> None:
    write_atomic(path, save({name: tensor.contiguous() for name, tensor in tensors.items()}))
