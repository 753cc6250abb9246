"""ExecuTorch's compressed operators as programs of one instruction, and their float32 twins, for the slow-path gate."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from numpy.typing import NDArray
from torch import nn

from edge.core.bundle import Manifest
from edge.exporters._slow_path import PHASES, Operator, Run, slow
from edge.exporters.executorch import builtin, modules
from edge.exporters.executorch.lower import lower, traced
from edge.exporters.executorch.program import Call, ProgramFile
from edge.kernels import executorch_ops
from edge.kernels.pack import read_layout

LINEAR, EMBEDDING = "edge::linear", "edge::embedding"


def slow_nodes(folder: Path, manifest: Manifest) -> list[str]:
    """Layers whose operator takes longer than its float32 twin, in decode or in prefill, with how much longer."""
    from executorch.extension.pybindings import _C

    program = ProgramFile(folder / manifest.artefact)
    if manifest.kernels == "edge":
        executorch_ops.error()  # loads them, and keeps the log off the terminal
    threads = _C._threadpool_get_thread_count()
    _C._unsafe_reset_threadpool(1)
    try:
        return slow(_operators(program, manifest.layer_of_node), _prepare)
    finally:
        _C._unsafe_reset_threadpool(threads)


def _operators(program: ProgramFile, layer_of_node: dict[str, str]) -> list[Operator]:
    """One operator for each combination of name, attributes and layout of the matrix."""
    found: dict[Any, Operator] = {}
    for call in program.calls():
        if call.operator not in (LINEAR, EMBEDDING):
            continue
        weight = program.constant(call.operands[1])
        layout = read_layout(weight)
        key = (call.operator, layout, _activations(call))
        if key not in found:
            rows = layout.rows if call.operator == LINEAR else max(PHASES.values())
            found[key] = Operator(
                call.operator, [], rows, layout.columns, call.operator == LINEAR, _module(call, weight)
            )
        found[key].layers.append(layer_of_node[f"{call.instruction}:{call.operator}"])
    return list(found.values())


def _activations(call: Call) -> int:
    """What a product does with its input: the second attribute, after six operands that are tensors."""
    return call.operands[7].int_val if call.operator == LINEAR else 0


def _module(call: Call, weight: Any) -> nn.Module:
    """The operator by itself, on a copy of its weights."""
    layout, packed = read_layout(weight), torch.from_numpy(weight.copy())
    if call.operator == EMBEDDING:
        return modules.FusedEmbedding(layout.columns, packed)
    return modules.FusedLinear({"rows": layout.rows, "activations": _activations(call)}, weight=packed)


def _prepare(operator: Operator) -> tuple[Run, Run]:
    weights = torch.from_numpy(operator.twin_weights())
    twin = modules.Linear(weight=weights, bias=None) if operator.is_linear else modules.Embedding(weight=weights)
    return _run(operator.node, operator), _run(twin, operator, builtin.partitioners(), builtin.preserved())


def _run(module: nn.Module, operator: Operator, *backends: list[Any]) -> Run:
    """A program of one module."""
    from executorch.extension.pybindings import _C

    example = torch.from_numpy(operator.feed(2))
    tokens = torch.export.Dim("tokens", max=max(PHASES.values()))
    buffer = lower(traced(module, [example], ({1: tokens},)), *backends).buffer
    loaded = _C._load_for_executorch_from_buffer(buffer)

    def run(x: NDArray[Any], kept: bytes = buffer) -> object:  # the program reads its constants there
        return loaded.forward((torch.from_numpy(x),), clone_outputs=False)

    return run
