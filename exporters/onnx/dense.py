"""Uncompressed matrices: plain float32, stored [out_features, in_features] as checkpoints store them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import onnx_ir as ir

from edge.core.weight import CompressedTensor, Dense, Encoding
from edge.exporters.onnx.builder import Array, GraphBuilder

# MatMul with the weight's transposition in an attribute: ONNX Runtime packs it at load, at the same speed as MatMul's,
# and an embedding shares its bytes with a tied head.
LINEAR = "FusedMatMul"
EMBEDDING = "Gather"


def refusal(encoding: Encoding) -> str:
    """Why these operators don't serve an encoding; empty when they do."""
    return "" if isinstance(encoding, Dense) else f"{encoding} is not dense"


def linear(
    graph: GraphBuilder,
    x: ir.Value,
    tensor: CompressedTensor,
    bias: ir.Value | None,
    *,
    layer: str,
    activations: Literal["a8", "f32"],
) -> ir.Value:
    """y [.., rows] = x [.., columns] W^T (+ bias). Activations stay float32."""
    inputs = [x, graph.weight(tensor.name, tensor.dequantize)]
    y = graph.node(LINEAR, layer, inputs, domain="com.microsoft", transB=1)
    return y if bias is None else graph.node("Add", layer, [y, bias])


def embedding(graph: GraphBuilder, ids: ir.Value, tensor: CompressedTensor, *, layer: str) -> ir.Value:
    """Rows of the matrix by token id."""
    return graph.node(EMBEDDING, layer, [graph.weight(tensor.name, tensor.dequantize), ids])


def read(operator: str, inputs: Sequence[Array | None], wanted: CompressedTensor) -> CompressedTensor:
    """The matrix as it was written, from the constant inputs of its node."""
    values = inputs[0] if operator == EMBEDDING else inputs[1]
    return CompressedTensor(wanted.name, wanted.shape, Dense("float32"), {"values": values})
