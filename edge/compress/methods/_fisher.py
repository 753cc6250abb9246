"""Sensitivities by the Fisher information: one walk forwards, one backwards, a layer in memory at a time.

To second order a change dW of a matrix adds KL = 1/2 E[(sum_t g_t^T dW x_t)^2] / T nats per token, with x_t the inputs
of T tokens and g_t the gradients, at its outputs, of the summed loss on labels that the model itself draws (so that the
expectation is the Fisher information; with the text's own labels it would not be). Taken apart as in Martens, Grosse:
"Optimizing Neural Networks with Kronecker-factored Approximate Curvature", ICML 2015, arXiv:1503.05671, inputs and
gradients independent and tokens too, it is 1/2 tr(G dW H dW^T) with H = E[x x^T], G = E[g g^T]. Rows are rounded
independently of each other, so that G's diagonal is enough: what is off it averages out.

A head's divergence needs no approximation: its logits are computed. An embedding's is 1/2 E[(g_t^T de_t)^2] with de_t
the change of token t's row; one that is the head as well has both.
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
from edge.compress.method import Inputs, InputStatistics
from edge.compress.methods._trial import (
    HEAD_ROWS,
    Estimate,
    Head,
    OneLayerModel,
    Outcome,
    Trials,
    second_order,
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
        gradients = [_loss_gradient(norm, head, states, generator) for states in walk.states]
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
        states = torch.from_numpy(np.load(self._boundary(index)))
        with self._observed(layer) as (statistics, energies):
            for window in range(len(states)):
                entering = states[window : window + 1].requires_grad_()
                walk.run(index, module, entering).backward(gradients[window])
                gradients[window] = entering.grad
        tokens = self.windows.numel()
        with torch.no_grad():
            for group in layer.linears():
                inputs = statistics.pop(group[0].name).inputs()
                for linear in group:
                    self._try_matrix(linear, inputs, energies[linear.name] / tokens)

    def _try_matrix(self, linear: Linear, inputs: Inputs, energy: torch.Tensor) -> None:
        name = linear.weight
        weight = matrix(self.loader.model.get_parameter, linear).contiguous()
        outcomes = self.outcomes.setdefault(name, [])
        for task in self.trials.get(name, ()):
            tensor = try_choice(task, name, weight, inputs, self.estimate)
            change = torch.from_numpy(tensor.dequantize()) - weight
            outcomes.append(Outcome.of(second_order(change, inputs, energy), tensor))

    @contextmanager
    def _observed(self, layer: Layer) -> Iterator[tuple[dict[str, InputStatistics], dict[str, torch.Tensor]]]:
        """While it is open, gathers the inputs of every group and the sum of squared gradients of every output."""
        statistics = {group[0].name: InputStatistics(group[0].in_features) for group in layer.linears()}
        energies = {linear.name: torch.zeros(linear.out_features) for group in layer.linears() for linear in group}

        def observe(name: str) -> torch.utils.hooks.RemovableHandle:
            def forward(_: nn.Module, args: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
                if name in statistics:
                    statistics[name].add(args[0].detach())
                output.register_hook(backward)

            def backward(gradient: torch.Tensor) -> None:
                energies[name].add_(gradient.flatten(0, -2).square().sum(0))

            return self.loader.model.get_submodule(name).register_forward_hook(forward)

        handles = [observe(name) for name in energies]
        try:
            yield statistics, energies
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
        gradient = torch.cat(gradients).flatten(0, 1) * self.spec.embedding_scale
        added = [0.5 * float((gradient * change).sum(-1).square().mean()) for change in changes]
        self.outcomes[name] = [o.plus(more) for o, more in zip(self.outcomes[name], added, strict=True)]


def _loss_gradient(norm: nn.Module, head: Head, states: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
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
