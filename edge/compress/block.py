"""A decoder layer at the moment when it is compressed: float weights in memory, and what enters it."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from edge.compress.calibrate import HiddenStates
from edge.compress.fold import matrix
from edge.compress.method import Inputs
from edge.models.spec import Layer, Linear


@dataclass(frozen=True)
class Block:
    """Layer number `index` of a model, as methods see it. `seed` is the recipe's."""

    layer: Layer
    index: int
    model: nn.Module
    states: HiddenStates
    seed: int = 0

    @property
    def module(self) -> nn.Module:
        return self.model.get_submodule(self.layer.name)

    def tensor(self, name: str) -> torch.Tensor:
        """A float32 tensor of the layer by its name in the checkpoint; changing it in place changes the layer."""
        return self.model.get_parameter(name)

    def matrix(self, linear: Linear) -> torch.Tensor:
        """A view [out_features, in_features] of a weight."""
        return matrix(self.tensor, linear)

    def inputs(self, linear: Linear) -> Inputs:
        """What a matrix sees in calibration, with the weights that the layer holds now."""
        reader = self.model.get_submodule(linear.name)
        return self.states.inputs_of(self.index, self.module, reader, linear.in_features)

    def linears(self) -> dict[str, Linear]:
        """The layer's matrices by the names of their weights, in the order of the data."""
        return {linear.weight: linear for group in self.layer.linears() for linear in group}
