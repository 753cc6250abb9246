"""Matrices in llama.cpp's types: the smallest one that holds the codes as they are, float16 where none does.

These integer types of llama.cpp have blocks of 32 columns. Our groups have a multiple of that, so a group's scale is
repeated in each of its blocks, and the codes stay what they were:

    Q4_0  scale * (q - 8)     float16 scale                4 bits       4.5 bits per weight
    Q4_1  scale * q + least   float16 scale and least      4 bits       5.0
    Q5_0  scale * (q - 16)    float16 scale                4 + 1 bits   5.5
    Q5_1  scale * q + least   float16 scale and least      4 + 1 bits   6.0
    Q8_0  scale * q           float16 scale                8 bits       8.5
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
from gguf import GGMLQuantizationType as Type
from gguf import dequantize, quantize
from numpy.typing import NDArray

from edge.core.weight import CompressedTensor, Dense

BLOCK = 32
ROWS_AT_ONCE = 1024  # bounds the memory of what is computed in float64
NEAR = 1e-3
"""Relative error that counts as holding a matrix: float16's rounding of `least` or of a product of two scales."""


class Stored(NamedTuple):
    """A matrix as it is written: `data` [rows, bytes], or [rows, columns] of a float type."""

    kind: Type
    data: NDArray[Any]
    relative_error: float


class _Steps(NamedTuple):
    """value = scale * step, with steps [rows, blocks, 32] of whole numbers and scales [rows, blocks, 1], float32."""

    steps: NDArray[np.float32]
    scales: NDArray[np.float32]


def store(tensor: CompressedTensor) -> Stored:
    """The matrix in the first of llama.cpp's types that holds it up to `NEAR`."""
    wanted = tensor.dequantize()
    for kind, data in _candidates(tensor, wanted):
        error = relative_error(dequantize(data, kind), wanted)
        if error <= NEAR:
            return Stored(kind, data, error)
    return Stored(Type.F32, wanted, 0.0)


def relative_error(found: NDArray[np.float32], wanted: NDArray[np.float32]) -> float:
    """Norm of the difference over the norm of what was wanted; 0 only where all elements are equal."""
    if np.array_equal(found, wanted):
        return 0.0
    difference = size = 0.0
    for start in range(0, len(wanted), ROWS_AT_ONCE):
        rows = slice(start, start + ROWS_AT_ONCE)
        difference += float(np.square(found[rows].astype(np.float64) - wanted[rows]).sum())
        size += float(np.square(wanted[rows].astype(np.float64)).sum())
    return (difference / size) ** 0.5 if size else float("inf")


def _candidates(tensor: CompressedTensor, wanted: NDArray[np.float32]) -> Iterator[tuple[Type, NDArray[Any]]]:
    """What may hold the matrix, smallest first."""
    if isinstance(tensor.encoding, Dense):
        if tensor.encoding.dtype == "bfloat16":
            yield Type.BF16, quantize(wanted, Type.BF16)
    elif tensor.shape[1] % BLOCK == 0:
        yield from _whole_numbers(_steps(tensor))
    with np.errstate(over="ignore"):
        half = wanted.astype(np.float16)
    if np.isfinite(half).all():
        yield Type.F16, half


def _whole_numbers(made: _Steps) -> Iterator[tuple[Type, NDArray[np.uint8]]]:
    steps, scales = made
    low, high = steps.min(axis=2, keepdims=True), steps.max(axis=2, keepdims=True)
    least, most, widest = low.min(), high.max(), (high - low).max()
    if least >= -8 and most <= 7:
        yield Type.Q4_0, _bytes(_half(scales), _nibbles(steps + 8))
    if widest <= 15:
        yield Type.Q4_1, _bytes(_half(scales), _half(scales * low), _nibbles(steps - low))
    if least >= -16 and most <= 15:
        yield Type.Q5_0, _bytes(_half(scales), _fifth_bits(steps + 16), _nibbles(steps + 16))
    if widest <= 31:
        codes = steps - low
        yield Type.Q5_1, _bytes(_half(scales), _half(scales * low), _fifth_bits(codes), _nibbles(codes))
    if least >= -128 and most <= 127:
        yield Type.Q8_0, _bytes(_half(scales), steps.astype(np.int8).view(np.uint8))


def _steps(tensor: CompressedTensor) -> _Steps:
    """With every scale 1, an encoding's own `dequantize` gives the whole numbers that scales multiply."""
    rows, columns = tensor.shape
    parts = tensor.parts
    ones = {name: np.ones_like(parts[name]) for name in ("scales", "row_scales") if name in parts}
    steps = tensor.encoding.dequantize({**parts, **ones}).reshape(rows, -1, BLOCK)
    scales = parts["scales"].astype(np.float32) * parts.get("row_scales", np.float16(1)).astype(np.float32)
    group = columns if scales.shape[1] == 1 else tensor.encoding.group_size
    return _Steps(steps, scales[:, np.arange(0, columns, BLOCK) // group, None])


def _half(values: NDArray[np.float32]) -> NDArray[np.uint8]:
    return values.astype("<f2").view(np.uint8)


def _nibbles(codes: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Lower 4 bits: byte j = code[j + 16] code[j]."""
    low = codes.astype(np.uint8) & 15
    return low[..., : BLOCK // 2] | low[..., BLOCK // 2 :] << 4


def _fifth_bits(codes: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Bit 4 of every code: bit j of a little-endian word."""
    return np.packbits(codes.astype(np.uint8) >> 4, axis=-1, bitorder="little")


def _bytes(*fields: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """A row's blocks, each with its fields in this order."""
    blocks = np.concatenate(fields, axis=2)
    return blocks.reshape(len(blocks), -1)
