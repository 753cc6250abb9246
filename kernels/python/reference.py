"""What the kernels compute, in NumPy: the definition that every instruction set is held to, bit by bit."""

from __future__ import annotations

from typing import Literal, cast

import numpy as np
from numpy.typing import NDArray

from edge.core.weight import Affine, CompressedTensor
from edge.kernels.pack import Bytes, unpack

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
    out = _linear_a8(tensor, x) if activations == "a8" else _linear_f32(tensor, x)
    return out if bias is None else out + bias.astype(np.float32)


def embedding(packed: Bytes, ids: NDArray[np.int64]) -> Floats:
    """The dequantized rows that `ids` [..] name: [.., columns]."""
    return unpack(packed).dequantize()[ids]


def _linear_a8(tensor: CompressedTensor, x: Floats) -> Floats:
    """Sum over groups, ascending, of float(exact integer sum) * (weight scale * activation scale); all in float32."""
    codes, scales = tensor.parts["codes"], tensor.parts["scales"].astype(np.float32)
    encoding = cast(Affine, tensor.encoding)
    zeros = tensor.parts.get("zero_points", np.full(scales.shape, encoding.symmetric_zero, np.uint8))
    width = encoding.group_size or tensor.shape[1]
    total = np.zeros((x.shape[0], tensor.shape[0]), np.float32)
    for group in range(scales.shape[1]):
        columns = slice(group * width, (group + 1) * width)
        weights = codes[:, columns].astype(np.float64) - zeros[:, group, None]
        q, scale = quantize_activations(x[:, columns])
        exact = q.astype(np.float64) @ weights.T  # integers below 2^53: float64 is exact
        total += exact.astype(np.float32) * (scales[:, group] * scale[:, None])
    return total


def _linear_f32(tensor: CompressedTensor, x: Floats) -> Floats:
    """Four partial sums, of the columns 0, 1, 2, 3 modulo 4, each ascending; then (p0 + p1) + (p2 + p3)."""
    weights = np.ascontiguousarray(tensor.dequantize().T)
    partial = np.zeros((4, x.shape[0], tensor.shape[0]), np.float32)
    for column in range(tensor.shape[1]):
        partial[column % 4] += x[:, column, None] * weights[column]
    return (partial[0] + partial[1]) + (partial[2] + partial[3])
