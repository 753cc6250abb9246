"""Sensitivities by the Fisher information: one walk forwards, one backwards, a layer in memory at a time.

To second order a change dW of a matrix adds a divergence of 1/2 E[z^2] / T nats per token, with z = sum_t g_t^T dW x_t
over the T tokens of a window, x_t the matrix's inputs and g_t the gradients, at its outputs, of the summed loss on
labels that the model itself draws (then the expectation is the Fisher information; with the text's own labels it would
not be). Rows are rounded independently of each other, so that the products of their parts of z average out, and
1/2 sum_i E[z_i^2] / T over rows i is far less noisy. Tokens are not taken for independent, as Martens and Grosse's
Kronecker factors ("Optimizing Neural Networks with Kronecker-factored Approximate Curvature", ICML 2015,
arXiv:1503.05671) would have it: what attention averages over tokens, an error of the values, adds up.

A head's divergence needs no approximation: its logits are computed. An embedding's rows are those of its tokens; one
that is the head as well has both parts.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from torch import nn

from edge.compress.calibrate import HiddenStates
from edge.compress.fold import matrix
from edge.compress.method import Inputs
from edge.compress.methods._trial import (
    HEAD_ROWS,
    Estimate,
    Head,
    OneLayerModel,
    Outcome,
    Trials,
    try_choice,
)
from edge.core.console import Ticker
from edge.models.checkpoint import Checkpoint
from edge.models.spec import Layer, Linear

HEAD_TOKENS = 1024  # enough for a mean over tokens of a divergence that is exact for each
BACKWARD, HEAD = 3, 6  # ticks of a layer on the way back and of the head: a layer on the way there has one


class FisherWalk:
    """Finds what every choice of `trials` adds to the divergence, from `windows` [samples, tokens].

    scratch: a folder for the states at the boundaries of the layers, which wait there for the way back. seed: of the
    labels.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        trials: Trials,
        windows: torch.Tensor,
        estimate: Estimate,
        *,
        scratch: Path,
        seed: int,
    ) -> None:
        self.loader = OneLayerModel(checkpoint)
        self.spec = self.loader.spec
        self.trials, self.windows, self.estimate = trials, windows, estimate
        self.scratch, self.seed = scratch, seed
        self.outcomes: dict[str, list[Outcome]] = {}

    def ticks(self) -> int:
        """Steps of the progress bar."""
        return (1 + BACKWARD) * len(self.spec.layers) + HEAD

    def run(self, tick: Ticker) -> dict[str, list[Outcome]]:
        """The outcome of every choice of every tensor."""
        walk = self.loader.start(self.windows)
        for index in range(len(self.spec.layers)):
            np.save(self._boundary(index), torch.cat(walk.states).numpy())
            with self.loader.layer(index) as module:
                walk.advance(index, module)
            tick()
        gradients, changes = self._head(walk)
        tick(HEAD)
        for index, layer in reversed(list(enumerate(self.spec.layers))):
            with self.loader.layer(index) as module:
                self._layer(walk, index, layer, module, gradients)
            self._boundary(index).unlink()
            tick(BACKWARD)
        self._embedding(gradients, changes)
        return self.outcomes

    def _boundary(self, index: int) -> Path:
        return self.scratch / f"states-{index}.npy"

    def _head(self, walk: HiddenStates) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
        """Gradients at what leaves the last layer, and how the tokens' rows change by every choice of the embedding."""
        norm, head = self.loader.final_norm(), Head(self.loader.checkpoint)
        generator = torch.Generator().manual_seed(self.seed)
        gradients = [loss_gradient(norm, head, states, generator) for states in walk.states]
        name = f"{self.spec.embedding if self.spec.tied else self.spec.head}.weight"
        changes: list[torch.Tensor] = []
        if name in self.trials:
            with torch.no_grad():
                states = torch.cat([norm(state)[0] for state in walk.states])
                changes = self._try_head(name, head, states, walk.inputs_of_head(norm))
        return gradients, changes

    def _try_head(self, name: str, head: Head, states: torch.Tensor, inputs: Inputs) -> list[torch.Tensor]:
        some = states[:: max(1, len(states) // HEAD_TOKENS)]
        changes = []
        self.outcomes[name] = []
        for task in self.trials[name]:
            tensor = try_choice(task, name, head.weight, inputs, self.estimate)
            changed = torch.from_numpy(tensor.dequantize())
            self.outcomes[name].append(Outcome.of(head.divergence(some, some, changed), tensor))
            if self.spec.tied:
                tokens = self.windows.flatten()
                changes.append(changed[tokens] - head.weight[tokens])
        return changes

    def _layer(
        self, walk: HiddenStates, index: int, layer: Layer, module: nn.Module, gradients: list[torch.Tensor]
    ) -> None:
        """Costs of the layer's matrices; `gradients` at its outputs become those at its inputs."""
        walk.states = list(torch.from_numpy(np.load(self._boundary(index))).split(1))
        with torch.no_grad():
            changes = self._changes(walk, index, layer, module)
        with self._projected(changes) as projections:
            for window, state in enumerate(walk.states):
                entering = state.requires_grad_()
                walk.run(index, module, entering).backward(gradients[window])
                gradients[window] = entering.grad
        for linear, sums in projections.items():
            name, tokens = linear.weight, self.windows.numel()
            added = (0.5 * sums / tokens).tolist()
            self.outcomes[name] = [o.plus(more) for o, more in zip(self.outcomes[name], added, strict=True)]

    def _changes(self, walk: HiddenStates, index: int, layer: Layer, module: nn.Module) -> dict[Linear, torch.Tensor]:
        """How every choice changes each matrix: bfloat16 [choices, out_features, in_features]."""
        changes = {}
        for group in layer.linears():
            planned = [linear for linear in group if linear.weight in self.trials]
            inputs = None
            if any(task.method.CALIBRATED for linear in planned for task in self.trials[linear.weight]):
                reader = self.loader.model.get_submodule(group[0].name)
                inputs = walk.inputs_of(index, module, reader, group[0].in_features)
            for linear in planned:
                weight = matrix(self.loader.model.get_parameter, linear).contiguous()
                tasks = self.trials[linear.weight]
                change = torch.empty(len(tasks), *weight.shape, dtype=torch.bfloat16)
                tensors = [try_choice(task, linear.weight, weight, inputs, self.estimate) for task in tasks]
                for choice, tensor in enumerate(tensors):
                    change[choice] = torch.from_numpy(tensor.dequantize()) - weight
                self.outcomes[linear.weight] = [Outcome.of(0.0, tensor) for tensor in tensors]
                changes[linear] = change
        return changes

    @contextmanager
    def _projected(self, changes: dict[Linear, torch.Tensor]) -> Iterator[dict[Linear, torch.Tensor]]:
        """While it is open, every window that runs back adds its sum_i z_i^2 by every change: [choices] each."""
        sums = {linear: torch.zeros(len(change)) for linear, change in changes.items()}

        def observe(linear: Linear) -> torch.utils.hooks.RemovableHandle:
            def forward(_: nn.Module, args: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
                inputs = args[0].detach().flatten(0, -2)

                def backward(gradient: torch.Tensor) -> None:
                    of_weight = gradient.flatten(0, -2).T @ inputs
                    for choice, change in enumerate(changes[linear]):
                        sums[linear][choice] += (change * of_weight).sum(-1).square().sum()

                output.register_hook(backward)

            return self.loader.model.get_submodule(linear.name).register_forward_hook(forward)

        handles = [observe(linear) for linear in changes]
        try:
            yield sums
        finally:
            for handle in handles:
                handle.remove()

    def _embedding(self, gradients: list[torch.Tensor], changes: list[torch.Tensor]) -> None:
        """Add what the changed rows of the embedding cost. changes: known already if it is the head as well."""
        name = f"{self.spec.embedding}.weight"
        if name not in self.trials:
            return
        if not self.spec.tied:
            weight = torch.from_numpy(self.loader.checkpoint.matrix(name).dequantize())
            tokens = self.windows.flatten()
            self.outcomes[name] = []
            for task in self.trials[name]:
                tensor = try_choice(task, name, weight, None, self.estimate)
                self.outcomes[name].append(Outcome.of(0.0, tensor))
                changes.append(torch.from_numpy(tensor.dequantize())[tokens] - weight[tokens])
        gradient = torch.cat(gradients) * self.spec.embedding_scale
        added = [self._projected_rows(gradient, change.view_as(gradient)) for change in changes]
        self.outcomes[name] = [o.plus(more) for o, more in zip(self.outcomes[name], added, strict=True)]

    def _projected_rows(self, gradient: torch.Tensor, change: torch.Tensor) -> float:
        """The same of an embedding's rows; gradient, change: [samples, tokens, hidden]."""
        products = (gradient * change).sum(-1)
        rows = torch.zeros(len(products), self.spec.vocab_size).scatter_add_(1, self.windows, products)
        return 0.5 * float(rows.square().sum()) / products.numel()


def loss_gradient(norm: nn.Module, head: Head, states: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Gradient of the summed loss, on labels that the model draws, at states [1, tokens, hidden] before the norm."""
    states = states.detach().requires_grad_()
    normed = norm(states)
    gradient = torch.cat([_logit_gradient(head, rows, generator) for rows in normed.detach()[0].split(HEAD_ROWS)])
    normed.backward(gradient[None])
    assert states.grad is not None
    return states.grad


def _logit_gradient(head: Head, states: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """The same after the norm, for [tokens, hidden]: softmax less the label, through the cap, through the head."""
    logits = head.logits(states)
    slope = 1 - (logits / head.spec.logit_softcap).square() if head.spec.logit_softcap else None
    probabilities = logits.softmax(-1)
    labels = torch.multinomial(probabilities, 1, generator=generator)
    error = probabilities.scatter_add_(-1, labels, torch.full(labels.shape, -1.0))
    return (error if slope is None else error * slope) @ head.weight
