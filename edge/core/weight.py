"""A compressed matrix: its encoding, its canonical parts, and what it means (`dequantize`).

Parts are plain arrays, one code per element. `pack_bits` packs them for the disk; kernels pack them for a machine.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import msgspec
import numpy as np
from numpy.typing import NDArray

from edge.core.errors import EdgeError, UsageError

Array = NDArray[np.generic]
Grid = Literal["symmetric", "zero_point"]


class Affine(msgspec.Struct, frozen=True, tag="affine", tag_field="kind", forbid_unknown_fields=True):
    """`value = scale * (code - zero)` with one float16 scale per row and group of columns.

    bits: 2 to 8. group_size: columns per scale; 0 means the whole row. The last group of a row may be short.
    grid: `symmetric` has the implied zero `2**(bits-1)`; `zero_point` stores one unsigned integer per group.
    """

    bits: int
    group_size: int
    grid: Grid = "symmetric"

    def __post_init__(self) -> None:
        if not 2 <= self.bits <= 8:
            raise UsageError("encoding.bits", f"{self.bits} bits can't be stored", "use 2 to 8 bits")
        if self.group_size not in (0, 32, 64, 128):
            hint = "use 32, 64, 128, or 0 for one scale per row"
            raise UsageError("encoding.group", f"a group of {self.group_size} columns is not served", hint)

    def groups(self, columns: int) -> int:
        """Number of scales in a row of `columns`."""
        return 1 if self.group_size == 0 else -(-columns // self.group_size)

    @property
    def symmetric_zero(self) -> int:
        return 1 << (self.bits - 1)

    def __str__(self) -> str:
        group = "row" if self.group_size == 0 else f"g{self.group_size}"
        return f"affine{self.bits}{group}{'z' if self.grid == 'zero_point' else ''}"


class Dense(msgspec.Struct, frozen=True, tag="dense", tag_field="kind", forbid_unknown_fields=True):
    """Plain floating-point values."""

    dtype: Literal["float32", "float16", "bfloat16"]

    def __str__(self) -> str:
        return self.dtype


Encoding = Affine | Dense


@dataclass(frozen=True)
class CompressedTensor:
    """A matrix of shape [rows, columns] = [out_features, in_features] (or [vocabulary, hidden] for an embedding).

    parts of `Affine`: `codes` uint8 [rows, columns], `scales` float16 [rows, groups], and for the zero-point grid
    `zero_points` uint8 [rows, groups]. Part of `Dense`: `values` [rows, columns]; bfloat16 as uint16 bit patterns.
    """

    name: str
    shape: tuple[int, int]
    encoding: Encoding
    parts: Mapping[str, Array]

    def __post_init__(self) -> None:
        for part, (shape, dtype) in self.layout().items():
            array = self.parts.get(part)
            if array is None or array.shape != shape or array.dtype != dtype:
                found = "absent" if array is None else f"{array.dtype}{list(array.shape)}"
                message = f"{self.name}: part '{part}' is {found}, not {np.dtype(dtype)}{list(shape)}"
                raise EdgeError("tensor.part", message, "the file is damaged or was written by another program")

    def layout(self) -> dict[str, tuple[tuple[int, ...], np.dtype[np.generic]]]:
        """Shape and type of every part that the encoding asks for."""
        if isinstance(self.encoding, Dense):
            stored = {"float32": np.float32, "float16": np.float16, "bfloat16": np.uint16}[self.encoding.dtype]
            return {"values": (self.shape, np.dtype(stored))}
        groups = (self.shape[0], self.encoding.groups(self.shape[1]))
        parts: dict[str, tuple[tuple[int, ...], np.dtype[np.generic]]] = {
            "codes": (self.shape, np.dtype(np.uint8)),
            "scales": (groups, np.dtype(np.float16)),
        }
        if self.encoding.grid == "zero_point":
            parts["zero_points"] = (groups, np.dtype(np.uint8))
        return parts

    def dequantize(self) -> NDArray[np.float32]:
        """The float32 matrix that this tensor stands for: the definition that every kernel and runtime is held to."""
        if isinstance(self.encoding, Dense):
            values = self.parts["values"]
            if self.encoding.dtype == "bfloat16":
                return (values.astype(np.uint32) << 16).view(np.float32)
            return values.astype(np.float32)
        columns = self.shape[1]
        group_size = self.encoding.group_size or columns
        scales = self.parts["scales"].astype(np.float32)
        if self.encoding.grid == "zero_point":
            zeros = self.parts["zero_points"].astype(np.float32)
        else:
            zeros = np.full_like(scales, self.encoding.symmetric_zero)
        out = self.parts["codes"].astype(np.float32)
        for group in range(scales.shape[1]):
            block = out[:, group * group_size : (group + 1) * group_size]
            block -= zeros[:, group, None]
            block *= scales[:, group, None]
        return out

    @property
    def stored_bytes(self) -> int:
        """Bytes on disk: codes and zero points bit-packed row by row, scales as float16."""
        if isinstance(self.encoding, Dense):
            return self.parts["values"].nbytes
        rows, columns = self.shape
        groups = self.encoding.groups(columns)
        zeros = packed_bytes(groups, self.encoding.bits) if self.encoding.grid == "zero_point" else 0
        return rows * (packed_bytes(columns, self.encoding.bits) + 2 * groups + zeros)

    @property
    def bits_per_weight(self) -> float:
        return 8 * self.stored_bytes / (self.shape[0] * self.shape[1])


def packed_bytes(count: int, bits: int) -> int:
    """Bytes of `count` codes of `bits` bits as one little-endian bit stream."""
    return (count * bits + 7) // 8


def pack_bits(codes: NDArray[np.uint8], bits: int) -> NDArray[np.uint8]:
    """Codes [rows, n] to bytes [rows, packed_bytes(n, bits)]: a little-endian bit stream per row, first code lowest.

    bits 3:  byte 0 = c2[1:0] c1[2:0] c0[2:0]   byte 1 = c5[0] c4 c3 c2[2] ...
    """
    out = np.empty((codes.shape[0], packed_bytes(codes.shape[1], bits)), np.uint8)
    shifts = np.arange(bits, dtype=np.uint8)
    for start in range(0, codes.shape[0], 1024):  # one bit per byte in between: bound the memory
        block = codes[start : start + 1024]
        stream = ((block[:, :, None] >> shifts) & 1).reshape(block.shape[0], -1)
        out[start : start + 1024] = np.packbits(stream, axis=1, bitorder="little")
    return out


def unpack_bits(data: NDArray[np.uint8], bits: int, count: int) -> NDArray[np.uint8]:
    """The inverse of `pack_bits`: bytes [rows, packed_bytes(count, bits)] to codes [rows, count]."""
    if data.ndim != 2 or data.shape[1] != packed_bytes(count, bits):
        expected = packed_bytes(count, bits)
        raise EdgeError("tensor.packed", f"packed codes have shape {list(data.shape)}, not [rows, {expected}]")
    out = np.empty((data.shape[0], count), np.uint8)
    weights = (1 << np.arange(bits, dtype=np.uint8)).astype(np.uint8)
    for start in range(0, data.shape[0], 1024):
        stream = np.unpackbits(data[start : start + 1024], axis=1, bitorder="little", count=count * bits)
        out[start : start + 1024] = stream.reshape(-1, count, bits) @ weights
    return out
