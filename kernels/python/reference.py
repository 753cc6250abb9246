"""What the kernels compute, in NumPy: the definition that every instruction set is held to, bit by bit."""

from __future__ import annotations

from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from edge.core.encoding import GroupMixed
from edge.core.weight import CompressedTensor
from edge.kernels.pack import Bytes, unpack
from edge.kernels.pack_mixed import group_order
from edge.kernels.packed_header import ROWS

Activations = Literal["a8", "f32"]
Floats = NDArray[np.float32]


def quantize_activations(x: Floats) -> tuple[NDArray[np.int8], Floats]:
    """One group of columns of all tokens, x [tokens, width], to int8 [tokens, width] with one scale per token [tokens].

    scale = max|x| / 127; q = rint(x * (1 / scale)), half to even, clipped to ±127. A row too small for a finite
    1 / scale is all zeros with scale 0; one with a NaN or an infinity is all zeros with scale NaN.
    """
    largest = np.abs(x).max(axis=1, initial=0).astype(np.float32)
    finite = np.isfinite(x).all(axis=1)
    scale = np.where(finite, largest, np.float32(0)) / np.float32(127)
    with np.errstate(divide="ignore", over="ignore"):
        inverse = np.float32(1) / scale
    usable = np.isfinite(inverse)
    scaled = np.where(finite[:, None], x, np.float32(0)) * np.where(usable, inverse, np.float32(0))[:, None]
    q = np.clip(np.rint(scaled), -127, 127).astype(np.int8)
    return q, np.where(finite, np.where(usable, scale, np.float32(0)), np.float32(np.nan)).astype(np.float32)


def linear(packed: Bytes, x: Floats, activations: Activations = "a8", bias: Floats | None = None) -> Floats:
    """x [tokens, columns] times the packed matrix [rows, columns] transposed, plus bias: [tokens, rows]."""
    tensor = unpack(packed)
    weights = _weights(tensor)
    groups, width = weights.integers.shape[2:]
    padded = np.zeros((x.shape[0], groups, width), np.float32)
    padded.reshape(x.shape[0], groups * width)[:, : x.shape[1]] = x
    by_group = np.ascontiguousarray(padded.transpose(1, 0, 2))
    out = _linear_a8(weights, by_group) if activations == "a8" else _linear_f32(weights, by_group)
    out = out.transpose(1, 0, 2).reshape(x.shape[0], out.shape[0] * out.shape[2])[:, : tensor.shape[0]]
    return out if bias is None else out + bias.astype(np.float32)


def embedding(packed: Bytes, ids: NDArray[np.int64]) -> Floats:
    """The dequantized rows that `ids` [..] name: [.., columns]."""
    return unpack(packed).dequantize()[ids]


class _Weights(NamedTuple):
    """A matrix by blocks of rows that have their groups in the same order: 16 rows, or all of them."""

    integers: NDArray[np.int32]
    """[blocks, rows, groups, columns of a group]; padding is 0."""
    scales: Floats
    """[blocks, rows, groups]"""
    order: NDArray[np.int64]
    """[blocks, groups]: the groups as they follow each other in the stream."""


def _weights(tensor: CompressedTensor) -> _Weights:
    rows, columns = tensor.shape
    encoding, parts = tensor.encoding, tensor.parts
    groups = encoding.groups(columns)
    factors = [parts[name].astype(np.float32) for name in ("scales", "row_scales") if name in parts]
    scales = np.broadcast_to(factors[0] * factors[-1] if len(factors) == 2 else factors[0], (rows, groups))
    unscaled = {name: np.ones_like(part) for name, part in parts.items() if name in ("scales", "row_scales")}
    integers = encoding.dequantize({**parts, **unscaled}).astype(np.int32)  # a weight without its scale
    order, block = np.arange(groups)[None], rows
    if isinstance(encoding, GroupMixed):
        order, block = group_order(parts["high"]), ROWS
    blocks = len(order)
    width = encoding.group_size or -(-columns // 4) * 4
    padded = np.zeros((blocks * block, groups * width), np.int32)
    padded[:rows, :columns] = integers
    padded_scales = np.zeros((blocks * block, groups), np.float32)
    padded_scales[:rows] = scales
    return _Weights(padded.reshape(blocks, block, groups, width), padded_scales.reshape(blocks, block, groups), order)


def _linear_a8(weights: _Weights, x: Floats) -> Floats:
    """Sum over groups of float(exact integer sum) * (weight scale * activation scale), in float32: from x [groups,
    tokens, columns of a group] to [blocks, tokens, rows]."""
    quantized = [quantize_activations(group) for group in x]
    q = np.stack([codes for codes, _ in quantized]).astype(np.float64)
    q_scales = np.stack([scales for _, scales in quantized])
    blocks, rows = weights.scales.shape[:2]
    block = np.arange(blocks)
    total = np.zeros((blocks, x.shape[1], rows), np.float32)
    for group in weights.order.T:  # of every block, the next in its stream
        integers = weights.integers[block, :, group].astype(np.float64)
        exact = q[group] @ integers.swapaxes(1, 2)  # integers below 2^53: float64 is exact
        scales = weights.scales[block, :, group]
        total += exact.astype(np.float32) * (scales[:, None, :] * q_scales[group][:, :, None])
    return total


def _linear_f32(weights: _Weights, x: Floats) -> Floats:
    """Four partial sums, of the columns 0 to 3 modulo 4, each in the order of the stream; then (p0 + p1) + (p2 + p3).

    Pruned weights count as zeros. Shapes as in `_linear_a8`.
    """
    blocks, rows = weights.scales.shape[:2]
    block = np.arange(blocks)
    partial = np.zeros((4, blocks, x.shape[1], rows), np.float32)
    for group in weights.order.T:
        values = weights.integers[block, :, group].astype(np.float32) * weights.scales[block, :, group][:, :, None]
        for column in range(values.shape[2]):
            partial[column % 4] += x[group, :, column, None] * values[:, None, :, column]
    return (partial[0] + partial[1]) + (partial[2] + partial[3])
