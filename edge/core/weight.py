"""A compressed matrix: its encoding, its canonical parts, and what it means (`dequantize`).

Parts are plain arrays, one code per element. `pack_bits` packs them for the disk; kernels pack them for a machine.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edge.core.encoding import Affine, Codebook, Compressed, Dense, Encoding, Grid, GroupMixed, Sparse, check_values
from edge.core.errors import EdgeError
from edge.core.parts import Array, Floats, Layout, packed_bytes

__all__ = [
    "Affine",
    "Array",
    "Codebook",
    "Compressed",
    "CompressedTensor",
    "Dense",
    "Encoding",
    "Grid",
    "GroupMixed",
    "Sparse",
    "pack_bits",
    "packed_bytes",
    "unpack_bits",
]


@dataclass(frozen=True)
class CompressedTensor:
    """A matrix of shape [rows, columns] = [out_features, in_features] (or [vocabulary, hidden] for an embedding).

    `parts` are those that the encoding describes: plain arrays, one code per element.
    """

    name: str
    shape: tuple[int, int]
    encoding: Encoding
    parts: Mapping[str, Array]

    def __post_init__(self) -> None:
        for part, (shape, dtype, _) in self.layout().items():
            array = self.parts.get(part)
            if array is None or array.shape != shape or array.dtype != dtype:
                found = "absent" if array is None else f"{array.dtype}{list(array.shape)}"
                message = f"{self.name}: part '{part}' is {found}, not {dtype}{list(shape)}"
                raise EdgeError("tensor.part", message, "the file is damaged or was written by another program")

    def layout(self) -> Layout:
        """Shape, type and bits of every part that the encoding asks for."""
        return self.encoding.layout(*self.shape)

    def check(self) -> None:
        """Raise `EdgeError` for values that mean nothing in this encoding; shapes are checked already."""
        check_values(self.name, self.encoding, *self.shape, self.parts)

    def dequantize(self) -> Floats:
        """The float32 matrix that this tensor stands for: the definition that every kernel and runtime is held to."""
        return self.encoding.dequantize(self.parts)

    @property
    def stored_bytes(self) -> int:
        """Bytes on disk: the compact parts, codes bit-packed row by row."""
        compact, layout = self.encoding.compact(self.parts), self.encoding.compact_layout(*self.shape)
        return sum(part._replace(shape=compact[name].shape).packed().nbytes for name, part in layout.items())

    @property
    def bits_per_weight(self) -> float:
        return 8 * self.stored_bytes / (self.shape[0] * self.shape[1])


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
        out[start : start + 1024] = stream.reshape(len(stream), count, bits) @ weights
    return out
