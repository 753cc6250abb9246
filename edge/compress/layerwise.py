"""Calibrated compression: one decoder layer in memory at a time, hidden states walking from layer to layer.

Within a layer, matrices are compressed in the order in which data meets them, so that each sees inputs that come from
what is compressed already: q, k, v; then o; then gate and up; then down. The head comes last; so does an embedding that
is the head as well, if its method is calibrated.
"""

from __future__ import annotations

import gc
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch

from edge.compress.block import Block
from edge.compress.calibrate import HiddenStates
from edge.compress.method import Inputs, Tasks
from edge.compress.partial import PartialModel, UnitTensors
from edge.core.console import Ticker
from edge.core.weight import CompressedTensor
from edge.models.safetensors_store import SafetensorsStore
from edge.models.spec import Linear
from edge.models.stored import from_stored, stored_names
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
        states = self._enter(first)
        tick()
        for index, layer in enumerate(self.spec.layers):
            self._layer(Block(layer, index, self.model, states, self.job.recipe.seed))
            tick()
        inputs = self._inputs_of_head(states) if self._head_is_calibrated else None
        self.job.plain_unit(first, self.partial, inputs)
        self.job.plain_unit(last, self.partial, inputs)
        tick()

    def _enter(self, unit: int) -> HiddenStates:
        """What enters the first layer. From original embeddings where these wait for what they see as a head."""
        waits = self.spec.tied and self._head_is_calibrated
        compares = any(hasattr(task.method, "compress_block") for task in self.job.plan.tasks.values())
        originals = None
        if waits or compares:
            fill(self.model, self.job.checkpoint, self.job.units[unit])
            states = self._states_after(unit)
            originals = list(states.states) if compares else None
        if not waits:
            self.job.plain_unit(unit, self.partial)
            self._load_finished(unit)
            states = self._states_after(unit)
        states.originals = originals
        return states

    def _states_after(self, unit: int) -> HiddenStates:
        """What the embeddings make of the text. They leave the memory with that: no second copy is ever beside them."""
        states = HiddenStates(self.model, self.spec, self.windows)
        for name in self.job.units[unit]:  # the weights alone: what a module computes by itself stays
            put(self.model, name, torch.empty(self.job.checkpoint.shape(name), device="meta"))
        self.job.checkpoint.release()
        return states

    @property
    def _head_is_calibrated(self) -> bool:
        task = self.job.plan.tasks.get(f"{self.spec.embedding if self.spec.tied else self.spec.head}.weight")
        return task is not None and task.calibrated

    def _inputs_of_head(self, states: HiddenStates) -> Inputs:
        norm = self.spec.final_norm.name
        fill(self.model, self.job.checkpoint, [n for n in self.job.checkpoint.names() if n.startswith(f"{norm}.")])
        return states.inputs_of_head(self.model.get_submodule(norm))

    def _layer(self, block: Block) -> None:
        unit, states = block.index + 1, block.states
        finished = self.partial.finished(unit)
        if not finished or states.originals is not None:
            fill(self.model, self.job.checkpoint, self.job.units[unit])
            states.advance_originals(block.index, block.module)
        if finished:
            self._load_finished(unit)
        else:
            self.partial.write(unit, self._compress(block))
        if unit < len(self.spec.layers) or self._head_is_calibrated:
            states.advance(block.index, block.module)
        block.module.to("meta")
        self.job.checkpoint.release()
        gc.collect()

    def _compress(self, block: Block) -> UnitTensors:
        """What the layer becomes in its file; its module is left with the compressed weights."""
        for tasks in self.job.plan.preparations:
            _for_each_method(block, tasks, "prepare")
        tensors = self._plain_tensors(block)
        together: dict[str, CompressedTensor] = {}
        for result in _for_each_method(block, self.job.plan.tasks, "compress_block"):
            together |= result
        known = self._inputs_at_once(block, together)
        for group in block.layer.linears():
            todo = [linear for linear in group if linear.weight in self.job.plan.tasks]
            inputs = None
            if any(self._needs_inputs(linear, together) for linear in todo):
                inputs = known[group] if group in known else block.inputs(todo[0])
            for linear in todo:
                tensor = together.get(linear.weight) or self._compress_matrix(block, linear, inputs)
                block.matrix(linear).copy_(torch.from_numpy(tensor.dequantize()))
                tensors.add(tensor)
        return tensors

    def _compress_matrix(self, block: Block, linear: Linear, inputs: Inputs | None) -> CompressedTensor:
        weight = block.matrix(linear).contiguous()
        return self.job.compress_matrix(linear.weight, weight, inputs)

    def _needs_inputs(self, linear: Linear, together: Mapping[str, CompressedTensor]) -> bool:
        return self.job.plan.tasks[linear.weight].calibrated and linear.weight not in together

    def _inputs_at_once(
        self, block: Block, together: Mapping[str, CompressedTensor]
    ) -> dict[tuple[Linear, ...], Inputs]:
        """Inputs of the matrices that are not to see what was compressed before them in the layer."""
        known = {}
        for group in block.layer.linears():
            for linear in group:
                task = self.job.plan.tasks.get(linear.weight)
                if task and not getattr(task.options, "true_sequential", True) and group not in known:
                    known[group] = block.inputs(linear)
        return known

    def _plain_tensors(self, block: Block) -> UnitTensors:
        """What isn't compressed: as the checkpoint has it, or as it was changed to fold something into it."""
        tensors = UnitTensors()
        for name in self.job.units[block.index + 1]:
            if name not in self.job.plan.tasks:
                original, now = self.job.checkpoint.tensor(name), block.tensor(name)
                tensors.stored[name] = original if torch.equal(original.float(), now) else now.clone()
        return tensors

    def _load_finished(self, unit: int) -> None:
        """Give the model the weights of a finished unit, dequantized."""
        store = SafetensorsStore([self.partial.path(unit)])
        encodings = self.partial.encodings(unit)
        for name in self.job.units[unit]:
            if name not in encodings:
                put(self.model, name, store.read(name).float().clone())
                continue
            encoding = encodings[name]
            turned, shape = name in self.job.checkpoint.spec.transposed, self.job.checkpoint.matrix_shape(name)
            dense = from_stored(name, shape, encoding, store.read, stored_names(name, shape, encoding)).dequantize()
            put(self.model, name, torch.from_numpy(dense.T.copy() if turned else dense))


def _for_each_method(block: Block, tasks: Tasks, function: str) -> list[Any]:
    """Call a method's `function` with the block and the options of those of its matrices that the method serves."""
    by_method: dict[str, dict[str, Any]] = {}
    methods = {}
    for name in block.linears():
        if name in tasks and hasattr(tasks[name].method, function):
            method = tasks[name].resolved.method
            by_method.setdefault(method, {})[name] = tasks[name].options
            methods[method] = tasks[name].method
    return [getattr(methods[method], function)(block, options) for method, options in by_method.items()]
