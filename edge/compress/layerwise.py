"""Calibrated compression: one decoder layer in memory at a time, hidden states walking from layer to layer.

Within a layer, matrices are compressed in the order in which data meets them, so that each sees inputs that come from
what is compressed already: q, k, v; then o; then gate and up; then down.
"""

from __future__ import annotations

import gc
from typing import TYPE_CHECKING

import torch
from torch import nn

from edge.compress.calibrate import HiddenStates
from edge.compress.method import Inputs
from edge.compress.partial import PartialModel, Tensors
from edge.core.console import Ticker
from edge.models.safetensors_store import SafetensorsStore
from edge.models.spec import Layer, Linear
from edge.models.stored import from_stored, stored_names, to_stored
from edge.models.torch_model import empty_model, fill, put

if TYPE_CHECKING:
    from edge.compress.run import Job


class LayerwiseRun:
    """Runs the units of a job in order. A finished unit is not compressed again: its result is read and run through."""

    def __init__(self, job: Job, partial: PartialModel, windows: torch.Tensor) -> None:
        self.job, self.partial, self.windows = job, partial, windows
        self.spec = job.checkpoint.spec
        self.model = empty_model(job.checkpoint.config, self.spec)

    def run(self, tick: Ticker) -> None:
        first, last = 0, len(self.spec.layers) + 1
        self.job.plain_unit(first, self.partial)
        self._load_finished(first)
        states = HiddenStates(self.model, self.spec, self.windows)
        for name in self.job.units[first]:
            self.model.get_submodule(name.rpartition(".")[0]).to("meta")
        tick()
        for index, layer in enumerate(self.spec.layers):
            self._layer(index, layer, states)
            tick()
        self.job.plain_unit(last, self.partial)
        tick()

    def _layer(self, index: int, layer: Layer, states: HiddenStates) -> None:
        unit, module = index + 1, self.model.get_submodule(layer.name)
        if self.partial.finished(unit):
            self._load_finished(unit)
        else:
            self.partial.write(unit, self._compress(index, layer, module, states))
        if index + 1 < len(self.spec.layers):
            states.advance(index, module)
        module.to("meta")
        self.job.checkpoint.release()
        gc.collect()

    def _compress(self, index: int, layer: Layer, module: nn.Module, states: HiddenStates) -> Tensors:
        """What the layer becomes in its file; `module` is left with the compressed weights."""
        names = self.job.units[index + 1]
        fill(self.model, self.job.checkpoint, names)
        tensors = {name: self.job.checkpoint.tensor(name) for name in names if name not in self.job.tasks}
        for group in layer.linears():
            todo = [linear for linear in group if linear.weight in self.job.tasks]
            inputs = None
            if any(self.job.tasks[linear.weight].method.CALIBRATED for linear in todo):
                reader = self.model.get_submodule(todo[0].name)
                inputs = states.inputs_of(index, module, reader, todo[0].in_features)
            for linear in todo:
                tensors |= self._compress_linear(linear, inputs)
        return tensors

    def _compress_linear(self, linear: Linear, inputs: Inputs | None) -> Tensors:
        stored = self.model.get_parameter(linear.weight)
        weight = (stored.T if linear.transposed else stored).contiguous()
        tensor = self.job.tasks[linear.weight].run(linear.weight, weight, inputs)
        dense = torch.from_numpy(tensor.dequantize())
        put(self.model, linear.weight, dense.T.contiguous() if linear.transposed else dense)
        return to_stored(tensor)

    def _load_finished(self, unit: int) -> None:
        """Give the model the weights of a finished unit, dequantized."""
        store = SafetensorsStore([self.partial.path(unit)])
        for name in self.job.units[unit]:
            if name not in self.job.tasks:
                put(self.model, name, store.read(name).float().clone())
                continue
            encoding = self.job.tasks[name].options.encoding
            turned, shape = name in self.job.checkpoint.spec.transposed, self.job.checkpoint.matrix_shape(name)
            dense = from_stored(name, shape, encoding, store.read, stored_names(name, shape, encoding)).dequantize()
            put(self.model, name, torch.from_numpy(dense.T.copy() if turned else dense))
