"""Affine matrices for ONNX Runtime's own operators: MatMulNBits and GatherBlockQuantized.

Codes are packed row by row in blocks, low bits first; both operators read the same bytes:

    4 bits:  byte 0 = c1 c0     2 bits:  byte 0 = c3 c2 c1 c0     8 bits:  byte 0 = c0

A row that is no multiple of the block is padded. Scales become float32, as both operators want them for float32 data.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
import onnx_ir as ir

from edge.core.weight import Affine, CompressedTensor, Encoding, pack_bits, unpack_bits
from edge.exporters.onnx.builder import Array, GraphBuilder

LINEAR = "MatMulNBits"
EMBEDDING = "GatherBlockQuantized"
BITS = (2, 4, 8)
# One scale per row is written as equal scales per block: larger blocks fall off ONNX Runtime's fast path.
ROW_BLOCK = 128
INT8_ACTIVATIONS, FLOAT_ACTIVATIONS = 4, 1


def refusal(encoding: Encoding) -> str:
    """Why these operators don't serve an encoding and what to use instead; empty when they do."""
    if not isinstance(encoding, Affine):
        return f"MatMulNBits can't hold {encoding}: use --kernels edge, or an affine recipe with 2, 4 or 8 bits"
    if encoding.grid == "half_integer":
        return "MatMulNBits has no half-integer grid: use --kernels edge, or the symmetric grid"
    if encoding.bits not in BITS:
        return f"MatMulNBits has no {encoding.bits} bits: use --kernels edge, or a recipe with 2, 4 or 8 bits"
    return ""


def linear(
    graph: GraphBuilder,
    x: ir.Value,
    tensor: CompressedTensor,
    bias: ir.Value | None,
    *,
    layer: str,
    activations: Literal["a8", "f32"],
) -> ir.Value:
    """y [.., rows] = x [.., columns] W^T (+ bias). `a8` asks for int8 activations, a scale per token and block."""
    codes, scales, zero_points = _weights(graph, tensor)
    inputs = [x, codes, scales, zero_points, None, bias]
    while inputs[-1] is None:
        inputs.pop()
    level = INT8_ACTIVATIONS if activations == "a8" else FLOAT_ACTIVATIONS
    bits, block, _ = _layout(tensor)
    rows, columns = tensor.shape
    attributes = {"N": rows, "K": columns, "bits": bits, "block_size": block, "accuracy_level": level}
    return graph.node(LINEAR, layer, inputs, domain="com.microsoft", **attributes)


def embedding(graph: GraphBuilder, ids: ir.Value, tensor: CompressedTensor, *, layer: str) -> ir.Value:
    """Rows of the matrix by token id. A tied head reads the same bytes."""
    codes, scales, zero_points = _weights(graph, tensor)
    bits, block, blocks = _layout(tensor)
    rows, columns = tensor.shape
    data = graph.alias(f"{tensor.name}.rows", codes, [rows, blocks * block * bits // 8])
    inputs = [data, ids, scales, *([] if zero_points is None else [zero_points])]
    attributes = {"bits": bits, "block_size": block, "gather_axis": 0, "quantize_axis": 1}
    y = graph.node(EMBEDDING, layer, inputs, domain="com.microsoft", **attributes)
    if columns == blocks * block:
        return y
    bounds = [graph.integers(f"slice.{name}", [v]) for name, v in (("0", 0), (str(columns), columns), ("-1", -1))]
    return graph.node("Slice", layer, [y, *bounds])


def read(operator: str, inputs: Sequence[Array | None], wanted: CompressedTensor) -> CompressedTensor:
    """The matrix as it was written, from the constant inputs of its node. `wanted` gives shape and encoding."""
    first = 0 if operator == EMBEDDING else 1
    codes, scales = inputs[first], inputs[2]
    zero_points = inputs[3] if len(inputs) > 3 else None
    rows, columns = wanted.shape
    bits, block, blocks = _layout(wanted)
    groups = wanted.encoding.groups(columns)
    parts = {
        "codes": unpack_bits(codes.reshape(rows, -1), bits, blocks * block)[:, :columns],
        "scales": _one_per_group(scales, groups).astype(np.float16),
    }
    if zero_points is not None:
        parts["zero_points"] = _one_per_group(unpack_bits(zero_points.reshape(rows, -1), bits, blocks), groups)
    return CompressedTensor(wanted.name, wanted.shape, wanted.encoding, parts)


def _weights(graph: GraphBuilder, tensor: CompressedTensor) -> tuple[ir.Value, ir.Value, ir.Value | None]:
    bits, block, blocks = _layout(tensor)
    rows, columns = tensor.shape

    def packed() -> Array:
        codes = np.pad(tensor.parts["codes"], ((0, 0), (0, blocks * block - columns)))
        return pack_bits(codes, bits).reshape(rows, blocks, block * bits // 8)

    def per_block(part: str) -> Array:
        return np.broadcast_to(tensor.parts[part], (rows, blocks))

    codes = graph.weight(tensor.name, packed)
    scales = graph.weight(f"{tensor.name}.scales", lambda: per_block("scales").astype(np.float32))
    if "zero_points" not in tensor.parts:
        return codes, scales, None
    zero_points = graph.weight(f"{tensor.name}.zero_points", lambda: pack_bits(per_block("zero_points"), bits))
    return codes, scales, zero_points


def _layout(tensor: CompressedTensor) -> tuple[int, int, int]:
    """Bits, columns per block, blocks per row."""
    encoding = tensor.encoding
    block = encoding.group_size or ROW_BLOCK
    return encoding.bits, block, -(-tensor.shape[1] // block)


def _one_per_group(values: Array, groups: int) -> Array:
    """Undo the repetition of a row's single value; values that differ are left to fail the comparison."""
    if values.shape[1] == groups:
        return values
    return values[:, :1] if (values == values[:, :1]).all() else values
