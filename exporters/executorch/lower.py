"""From a torch module to the bytes of a `.pte`, and which layer each of its instructions belongs to."""

from __future__ import annotations

import logging
import traceback
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from edge.core.errors import EdgeError
from edge.kernels.executorch_ops import executorch_version

ALIGNMENT = 64  # of constants: a cache line, so that the kernels read whole ones
PAGE = 4096  # of segments, which are mapped one by one
PRIMITIVE = "executorch_prim::"


def traced(model: nn.Module, arguments: Sequence[torch.Tensor], dynamic_shapes: Any) -> torch.export.ExportedProgram:
    """The module's graph. Raises `EdgeError` with the module and the line where torch.export gave up."""
    try:
        with quiet():
            return torch.export.export(model, tuple(arguments), dynamic_shapes=dynamic_shapes)
    except Exception as error:  # whatever a model's own code raises
        reason = " ".join(str(error).split())[:200]
        hint = "make that line free of branches on tensor values and of numpy, or open an issue with the model's name"
        raise EdgeError("export.trace", f"torch.export can't trace {_place(model, error)}: {reason}", hint) from error


def _place(model: nn.Module, error: BaseException) -> str:
    """Module and line of the innermost forward in a traceback."""
    names = {id(module): name for name, module in model.named_modules()}
    place = type(model).__name__
    for frame, line in traceback.walk_tb(error.__traceback__):
        module = frame.f_locals.get("self")
        if (
            isinstance(module, nn.Module)
            and id(module) in names
            and frame.f_globals.get("__name__", "torch") != "torch"
        ):
            file = Path(frame.f_code.co_filename).name
            if not file.startswith("_") and "torch/export" not in frame.f_code.co_filename:
                place = f"'{names[id(module)] or type(model).__name__}' ({file}:{line})"
    return place


def lower(
    program: torch.export.ExportedProgram,
    partitioners: Sequence[Any] = (),
    preserved: Sequence[Any] = (),
    *,
    reinplace: bool = False,
    shared_inputs: bool = False,
) -> Any:
    """The program for ExecuTorch (an `ExecutorchProgramManager`): what `partitioners` take goes to their backends.

    preserved: operators that they take whole; ExecuTorch's own `to_edge_transform_and_lower` decomposes all twice to
    find those out. reinplace: let `index_put` write into a cache instead of a copy. shared_inputs: read inputs where
    the caller has them, who must keep them, instead of copying them.
    """
    executorch_version()
    with quiet():
        from executorch.exir import EdgeCompileConfig, ExecutorchBackendConfig, to_edge
        from executorch.exir.passes import MemoryPlanningPass

        config = EdgeCompileConfig(_check_ir_validity=False, _skip_dim_order=True, preserve_ops=list(preserved))
        edge = to_edge(program, compile_config=config)
        for partitioner in partitioners:
            edge = edge.to_backend(partitioner)
        return edge.to_executorch(
            ExecutorchBackendConfig(
                segment_alignment=PAGE,
                constant_tensor_alignment=ALIGNMENT,
                run_reinplace_pass=reinplace,
                memory_planning_pass=MemoryPlanningPass(alloc_graph_input=not shared_inputs),
            )
        )


def layers_of_instructions(lowered: Any) -> dict[str, str]:
    """The layer of every instruction: `17:edge::linear` and the like, where 17 is the place in the program.

    What lies between layers belongs to the one that follows. Inside a delegate products have layers: `17.0`, `17.1`, ..
    """
    exported = lowered.exported_program()
    layers = _layers(exported.graph, exported.graph_signature.inputs_to_buffers)
    found, remaining, layer = {}, iter(layers), ""
    for index, operator in enumerate(_instructions(lowered.executorch_program.execution_plan[0])):
        if not operator.startswith(PRIMITIVE):  # what views and sizes become has no node of its name
            node = next((node for node in remaining if _operator(node) == operator), None)
            if node is None:
                raise EdgeError("export.emit", f"ExecuTorch emitted an instruction out of order: {operator}")
            inside = _products(node)
            layer = layers[node] or (inside or [""])[0]
            found |= {f"{index}.{place}": inner for place, inner in enumerate(inside)}
        found[f"{index}:{operator}"] = layer
    return found


def _layers(graph: torch.fx.Graph, buffers: Mapping[str, str]) -> dict[torch.fx.Node, str]:
    """The layer of every call of a graph, in order."""
    following = ""
    layers = {node: _layer(node, buffers) for node in graph.nodes if node.op == "call_function"}
    for node in reversed(layers):
        following = layers[node] = layers[node] or following
    return layers


def _products(node: torch.fx.Node) -> list[str]:
    """The layers of the products inside a delegate, in order, and of what comes after them."""
    lowered = _delegate(node)
    if lowered is None:
        return []
    original = lowered.original_module
    layers = _layers(original.graph, original.graph_signature.inputs_to_buffers)
    last = list(layers.values())[-1:]
    return [layer for inner, layer in layers.items() if "linear" in str(inner.target)] + last


def _delegate(node: torch.fx.Node) -> Any:
    """What a node hands to a backend; None for an operator."""
    if not node.args or "delegate" not in str(node.target):
        return None
    return node.graph.owning_module.get_submodule(node.args[0].target)


def _instructions(plan: Any) -> Iterator[str]:
    """The operator, or the backend, of every instruction."""
    for instruction in plan.chains[0].instructions:
        call = instruction.instr_args
        if hasattr(call, "op_index"):
            yield plan.operators[call.op_index].name
        else:
            yield plan.delegates[call.delegate_index].id


def _operator(node: torch.fx.Node) -> str:
    if lowered := _delegate(node):
        return lowered.backend_id
    schema = getattr(node.target, "_schema", None)
    return schema.name if schema is not None else str(node.target)


def _layer(node: torch.fx.Node, buffers: Mapping[str, str]) -> str:
    """Name of the innermost module that a node comes from, or of the one whose constant it reads."""
    stack = [str(path) for path, _ in (node.meta.get("nn_module_stack") or {}).values()]
    owners = [buffers[operand.name].rpartition(".")[0] for operand in node.all_input_nodes if operand.name in buffers]
    named = [name for name in (*stack[::-1], *owners) if name and not name.startswith("_")]
    return named[0].replace("/", ".") if named else ""


@contextmanager
def quiet() -> Iterator[None]:
    """Without what torch, torchao and ExecuTorch have to say about themselves."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
