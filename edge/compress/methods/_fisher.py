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

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import nn

from edge.compress.calibrate import HiddenStates
from edge.compress.fold import matrix
from edge.compress.gradients import GradientWalk, Observer
from edge.compress.method import Inputs
from edge.compress.methods._trial import Estimate, Head, Outcome, Trials, try_choice
from edge.core.console import Ticker
from edge.models.checkpoint import Checkpoint
from edge.models.spec import Layer, Linear

HEAD_TOKENS = 1024  # enough for a mean over tokens of a divergence that is exact for each


class FisherWalk(GradientWalk):
    """Finds what every choice of `trials` adds to the divergence."""

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
        super().__init__(checkpoint, windows, scratch=scratch, seed=seed)
        self.trials, self.estimate = trials, estimate
        self.outcomes: dict[str, list[Outcome]] = {}
        self._sums: dict[Linear, torch.Tensor] = {}
        self._rows_changed: list[torch.Tensor] = []  # how the tokens' rows change by every choice of the embedding

    def run(self, tick: Ticker) -> dict[str, list[Outcome]]:
        """The outcome of every choice of every tensor."""
        self.walk(tick)
        return self.outcomes

    def at_head(self, walk: HiddenStates, norm: nn.Module, head: Head) -> None:
        name = f"{self.spec.embedding if self.spec.tied else self.spec.head}.weight"
        if name in self.trials:
            states = torch.cat([norm(state)[0] for state in walk.states])
            self._rows_changed = self._try_head(name, head, states, walk.inputs_of_head(norm))

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

    def observers(self, walk: HiddenStates, index: int, layer: Layer, module: nn.Module) -> Mapping[Linear, Observer]:
        """They add every window's sum_i z_i^2 by every change."""
        changes = self._changes(walk, index, layer, module)
        self._sums = {linear: torch.zeros(len(change)) for linear, change in changes.items()}

        def observer(linear: Linear) -> Observer:
            def add(of_weight: torch.Tensor) -> None:
                for choice, change in enumerate(changes[linear]):
                    self._sums[linear][choice] += (change * of_weight).sum(-1).square().sum()

            return add

        return {linear: observer(linear) for linear in changes}

    def after_layer(self, index: int) -> None:
        for linear, sums in self._sums.items():
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

    def at_embedding(self, gradients: list[torch.Tensor]) -> None:
        """Add what the changed rows of the embedding cost; they are known already if it is the head as well."""
        name, changes = f"{self.spec.embedding}.weight", self._rows_changed
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
