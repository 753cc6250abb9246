"""Sensitivities by measurement: one matrix at a time is changed, and the rest of the model walked with it.

All models with one change walk beside each other, so that a layer is in memory once for all of them: what is kept is
the hidden states of each. Where these would take too much, the walk is made several times over.
"""

from __future__ import annotations

import torch
from torch import nn

from edge.compress.calibrate import HiddenStates
from edge.compress.method import Inputs
from edge.compress.methods._trial import Estimate, Head, OneLayerModel, Outcome, Trials, try_choice
from edge.core.console import Ticker
from edge.models.checkpoint import Checkpoint
from edge.models.spec import Layer
from edge.models.torch_model import put

STATE_BYTES = 1 << 29  # hidden states of all changed models at once
Change = tuple[str, int]
"""A tensor and the index of its choice."""
Live = dict[Change, list[torch.Tensor]]


class MeasuredWalk:
    """Finds what every choice of `trials` adds to the divergence, from `windows` [samples, tokens]."""

    def __init__(self, checkpoint: Checkpoint, trials: Trials, windows: torch.Tensor, estimate: Estimate) -> None:
        self.loader = OneLayerModel(checkpoint)
        self.spec = self.loader.spec
        self.trials, self.windows, self.estimate = trials, windows, estimate
        self.outcomes: dict[Change, Outcome] = {}
        self.embedding = f"{self.spec.embedding}.weight"
        self.head = self.embedding if self.spec.tied else f"{self.spec.head}.weight"
        changes = [(name, index) for name, tasks in trials.items() for index in range(len(tasks))]
        room = max(1, STATE_BYTES // (4 * windows.numel() * self.spec.hidden_size))
        self.parts = [set(changes[start : start + room]) for start in range(0, len(changes), room)]

    def ticks(self) -> int:
        """Steps of the progress bar: models that walk through a layer."""
        return sum(len(changes) + 1 for changes in self.parts) * len(self.spec.layers)

    @torch.no_grad()
    def run(self, tick: Ticker) -> dict[str, list[Outcome]]:
        """The outcome of every choice of every tensor."""
        head_inputs = self._head_inputs() if self.head in self.trials else None
        for changes in self.parts:
            self._walk(changes, head_inputs, tick)
        return {
            name: [self.outcomes[name, index] for index in range(len(tasks))] for name, tasks in self.trials.items()
        }

    def _head_inputs(self) -> Inputs:
        """What the head sees: a tied embedding is changed before anything walks, by methods that want to know it."""
        walk = self.loader.start(self.windows)
        for index in range(len(self.spec.layers)):
            with self.loader.layer(index) as module:
                walk.advance(index, module)
        return walk.inputs_of_head(self.loader.final_norm())

    def _walk(self, changes: set[Change], head_inputs: Inputs | None, tick: Ticker) -> None:
        """Find the outcomes of `changes`."""
        live: Live = {}
        heads: dict[Change, torch.Tensor] = {}
        for change in sorted(changes):
            if change[0] in (self.embedding, self.head):
                self._change_outside(change, head_inputs, live, heads)
        walk = self.loader.start(self.windows)
        for index, layer in enumerate(self.spec.layers):
            with self.loader.layer(index) as module:
                for states in live.values():
                    states[:] = [walk.run(index, module, state) for state in states]
                self._change_layer(walk, index, layer, module, changes, live)
                walk.advance(index, module)
            tick(len(changes) + 1)
        norm, head = self.loader.final_norm(), Head(self.loader.checkpoint)
        originals = torch.cat([norm(state)[0] for state in walk.states])
        for change in changes:
            states = torch.cat([norm(state)[0] for state in live[change]]) if change in live else originals
            divergence = head.divergence(originals, states, heads.get(change))
            self.outcomes[change] = self.outcomes[change].plus(divergence)

    def _try(self, change: Change, weight: torch.Tensor, inputs: Inputs | None) -> torch.Tensor:
        """The changed matrix; notes the form that it has."""
        name, index = change
        tensor = try_choice(self.trials[name][index], name, weight, inputs, self.estimate)
        self.outcomes[change] = Outcome.of(0.0, tensor)
        return torch.from_numpy(tensor.dequantize())

    def _change_outside(
        self, change: Change, inputs: Inputs | None, live: Live, heads: dict[Change, torch.Tensor]
    ) -> None:
        """A model with another embedding, another head or, where they are one, both."""
        name = change[0]
        weight = torch.from_numpy(self.loader.checkpoint.matrix(name).dequantize())
        changed = self._try(change, weight, inputs if name == self.head else None)
        if name == self.head:
            heads[change] = changed
        if name == self.embedding:
            live[change] = self.loader.start(self.windows, {name: changed}).states

    def _change_layer(
        self, walk: HiddenStates, index: int, layer: Layer, module: nn.Module, changes: set[Change], live: Live
    ) -> None:
        """Models that differ from here on: every matrix of the layer by every choice."""
        for group in layer.linears():
            inputs = None
            for linear in group:
                name = linear.weight
                original = self.loader.model.get_parameter(name).data
                for choice in [c for n, c in sorted(changes) if n == name]:
                    if inputs is None:
                        reader = self.loader.model.get_submodule(group[0].name)
                        inputs = walk.inputs_of(index, module, reader, linear.in_features)
                    weight = (original.T if linear.transposed else original).contiguous()
                    changed = self._try((name, choice), weight, inputs)
                    put(self.loader.model, name, changed.T.contiguous() if linear.transposed else changed)
                    live[name, choice] = [walk.run(index, module, state) for state in walk.states]
                    put(self.loader.model, name, original)
