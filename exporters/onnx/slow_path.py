"""ONNX Runtime's quantized operators as one-node models, and their float32 twins, for the slow-path gate."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import onnx_ir as ir
import onnxruntime

from edge.core.bundle import Manifest
from edge.core.target import Kernels
from edge.exporters._slow_path import PHASES, Operator, Run, slow
from edge.exporters.onnx.builder import IR_VERSION, OPSETS
from edge.kernels.pack import read_layout

LINEAR = ("MatMulNBits", "Linear")
EMBEDDING = ("GatherBlockQuantized", "Embedding")


def slow_nodes(folder: Path, manifest: Manifest) -> list[str]:
    """Layers whose operator takes longer than its float32 twin, in decode or in prefill, with how much longer."""
    model = ir.load(folder / manifest.artefact)

    def prepare(operator: Operator) -> tuple[Run, Run]:
        return _run(_alone(operator), folder, manifest.kernels), _run(_twin(operator), folder, "builtin")

    return slow(_operators(model, manifest.layer_of_node), prepare)


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
            shape = _matrix_shape(node, attributes, constants)
            found[key] = Operator(node.op_type, [], *shape, node.op_type in LINEAR, node)
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


def _twin(operator: Operator) -> ir.Model:
    """The float32 product, or the lookup of float32 rows, of the same shape."""
    x = _input(operator)
    weight = ir.Value(name="weight", const_value=ir.tensor(operator.twin_weights(), name="weight"))
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


def _run(model: ir.Model, folder: Path, kernels: Kernels) -> Run:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(folder))
    if kernels == "edge":
        from edge.kernels.lib import ort_library_path

        options.register_custom_ops_library(str(ort_library_path()))
    data = ir.to_proto(model).SerializeToString()
    session = onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    return lambda x: session.run(None, {"x": x})
