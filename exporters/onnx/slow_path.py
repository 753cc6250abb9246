"""Every kind of quantized operator timed against its float32 twin: none may be slower unnoticed.

ONNX Runtime's operators fall off a cliff at some block sizes and bit widths, up to a thousandfold, and say nothing.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime
from numpy.typing import NDArray

from edge.core.bundle import Manifest
from edge.core.target import Kernels
from edge.exporters.onnx.builder import IR_VERSION, OPSETS
from edge.kernels.pack import read_layout

LINEAR = ("MatMulNBits", "Linear")
EMBEDDING = ("GatherBlockQuantized", "Embedding")
PHASES = {"decode": 1, "prefill": 64}  # tokens at once
MARGIN = 1.1
REPETITIONS = 7
TWIN_BYTES = 64 << 20  # a larger twin is cut: its time grows with its rows
CACHE_BYTES = 48 << 20  # read between two runs, so that weights come from memory as they do in a whole model


@dataclass(frozen=True)
class Operator:
    """A node that stands for all of the same kind: `layers` are theirs. Its product is [tokens, rows] or a lookup."""

    node: ir.Node
    layers: list[str]
    rows: int
    columns: int

    @property
    def is_linear(self) -> bool:
        return self.node.op_type in LINEAR

    def slack_ns(self, tokens: int) -> int:
        """What the clock can't tell apart, and what a lookup may add to a plain copy of a row."""
        return 2_000 + 200 * tokens if self.is_linear else 5_000 + 1_000 * tokens


def slow_nodes(folder: Path, manifest: Manifest) -> list[str]:
    """Layers whose operator takes longer than its float32 twin, in decode or in prefill, with how much longer."""
    found = []
    model = ir.load(folder / manifest.artefact)
    for operator in _operators(model, manifest.layer_of_node):
        ratios = _slower_phases(operator, folder, manifest.kernels)
        if ratios:
            alike = f" and {len(operator.layers) - 1} alike" if len(operator.layers) > 1 else ""
            times = " and ".join(f"{ratio:.1f}x (at {phase})" for phase, ratio in ratios.items())
            name = f"{operator.node.op_type} {operator.rows}x{operator.columns}"
            found.append(f"{operator.layers[0]}{alike}: {name} takes {times} as long as float32")
    return found


def _operators(model: ir.Model, layer_of_node: dict[str, str]) -> list[Operator]:
    """One operator for each combination of name, attributes and constant shapes."""
    found: dict[Any, Operator] = {}
    for node in model.graph:
        if node.op_type not in LINEAR + EMBEDDING:
            continue
        attributes = {name: attribute.value for name, attribute in node.attributes.items()}
        constants = [tuple(v.const_value.shape) for v in node.inputs if v is not None and v.const_value is not None]
        key = (node.op_type, *sorted(attributes.items()), *constants)
        if key not in found:
            found[key] = Operator(node, [], *_matrix_shape(node, attributes, constants))
        found[key].layers.append(layer_of_node[str(node.name)])
    return list(found.values())


def _matrix_shape(node: ir.Node, attributes: dict[str, Any], constants: list[tuple[int, ...]]) -> tuple[int, int]:
    """Rows and columns. A lookup reads as many rows as there are tokens; its width may be padded."""
    if node.op_type == "MatMulNBits":
        return attributes["N"], attributes["K"]
    if node.op_type in LINEAR:
        layout = read_layout(node.inputs[1].const_value.numpy())  # type: ignore[union-attr]
        return layout.rows, layout.columns
    return max(PHASES.values()), attributes.get("columns") or constants[0][1] * 8 // attributes["bits"]


def _slower_phases(operator: Operator, folder: Path, kernels: Kernels) -> dict[str, float]:
    """Ratio of the operator's time to its twin's, for the phases in which it is slower beyond noise."""
    rows = min(operator.rows, max(1, TWIN_BYTES // (4 * operator.columns)))
    sessions = (_session(_alone(operator), folder, kernels), _session(_twin(operator, rows), folder, "builtin"))
    slower = {}
    for phase, tokens in PHASES.items():
        feed = _feed(operator, tokens)
        own, twin = _best_ns([partial(session.run, None, {"x": feed}) for session in sessions])
        twin = twin * operator.rows // rows
        if own > MARGIN * twin + operator.slack_ns(tokens):
            slower[phase] = own / twin
    return slower


def _best_ns(runs: list[Callable[[], object]]) -> list[int]:
    """The fastest of some cold runs of each, interleaved so that a disturbance meets all alike."""
    cache = np.zeros(CACHE_BYTES // 8)
    best = [1 << 62] * len(runs)
    for repetition in range(REPETITIONS + 1):
        for index, run in enumerate(runs):
            cache.sum()
            start = time.perf_counter_ns()
            run()
            if repetition:  # the first one allocates
                best[index] = min(best[index], time.perf_counter_ns() - start)
    return best


def _feed(operator: Operator, tokens: int) -> NDArray[np.generic]:
    if not operator.is_linear:
        return np.arange(tokens, dtype=np.int64)[None]
    return np.random.default_rng(0).standard_normal((1, tokens, operator.columns), np.float32)


def _alone(operator: Operator) -> ir.Model:
    """A model of this node only, on the weights where they lie in the bundle."""
    x = _input(operator)
    inputs = [
        None if v is None else ir.Value(name=v.name, const_value=v.const_value) if v.const_value is not None else x
        for v in operator.node.inputs
    ]
    node = ir.node(
        operator.node.op_type,
        inputs,
        {name: attribute.value for name, attribute in operator.node.attributes.items()},
        domain=operator.node.domain,
    )
    return _model(x, node)


def _twin(operator: Operator, rows: int) -> ir.Model:
    """The float32 product, or the lookup of float32 rows, of the same shape."""
    x = _input(operator)
    weights = np.random.default_rng(0).random((rows, operator.columns), np.float32)
    weight = ir.Value(name="weight", const_value=ir.tensor(weights, name="weight"))
    if operator.is_linear:
        return _model(x, ir.node("FusedMatMul", [x, weight], {"transB": 1}, domain="com.microsoft"))
    return _model(x, ir.node("Gather", [weight, x]))


def _input(operator: Operator) -> ir.Value:
    dtype, shape = (ir.DataType.FLOAT, [1, "tokens", operator.columns])
    if not operator.is_linear:
        dtype, shape = ir.DataType.INT64, [1, "tokens"]
    return ir.Value(name="x", type=ir.TensorType(dtype), shape=ir.Shape(shape))


def _model(x: ir.Value, node: ir.Node) -> ir.Model:
    node.outputs[0].name = "y"
    node.outputs[0].type = ir.TensorType(ir.DataType.FLOAT)
    constants = [value for value in node.inputs if value is not None and value.const_value is not None]
    for value in constants:
        value.type = ir.TensorType(value.const_value.dtype)  # type: ignore[union-attr]
        value.shape = ir.Shape(value.const_value.shape)  # type: ignore[union-attr, arg-type]
    graph = ir.Graph([x], node.outputs, nodes=[node], initializers=constants, opset_imports=OPSETS, name="one")
    return ir.Model(graph, ir_version=IR_VERSION)


def _session(model: ir.Model, folder: Path, kernels: Kernels) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(folder))
    if kernels == "edge":
        from edge.kernels.lib import ort_library_path

        options.register_custom_ops_library(str(ort_library_path()))
    data = ir.to_proto(model).SerializeToString()
    return onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
