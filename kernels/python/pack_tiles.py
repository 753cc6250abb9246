"""What all packed encodings share: quads of columns, atoms of 64 bytes, heads of pairs of groups."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from edge.core.parts import Array
from edge.kernels.packed_header import ROWS, Bytes


def tile_count(rows: int) -> int:
    """Tiles of 16 rows, the last one padded."""
    return -(-rows // ROWS)


def to_quads(codes: Array, width: int, fill: int = 0) -> Bytes:
    """Codes [rows, columns] to [tiles, width / 4, 64]: per quad of columns, 16 rows of 4 codes. Padding is `fill`."""
    rows, columns = codes.shape
    tiles = tile_count(rows)
    padded = np.full((tiles * ROWS, width), fill, np.uint8)
    padded[:rows, :columns] = codes
    words = padded.view(np.uint32).reshape(tiles, ROWS, width // 4)  # four codes move as one
    return np.ascontiguousarray(words.transpose(0, 2, 1)).view(np.uint8)


def from_quads(quads: Bytes, rows: int, columns: int) -> Bytes:
    """The inverse of `to_quads`."""
    words = np.ascontiguousarray(quads).view(np.uint32)
    padded = np.ascontiguousarray(words.transpose(0, 2, 1)).view(np.uint8)
    return np.ascontiguousarray(padded.reshape(-1, padded.shape[2])[:rows, :columns])


def to_atoms(quads: Bytes, bits: int) -> Bytes:
    """Quads [..., n, 64] to atoms [..., n * bits / 8, 64]: several codes to a byte. At 3 bits n is 8: one step."""
    if bits == 8:
        return quads
    if bits == 3:
        high = np.zeros((*quads.shape[:-2], 1, quads.shape[-1]), np.uint8)
        for j in range(8):
            high[..., 0, :] |= quads[..., j, :] >> 2 << j
        return np.concatenate([to_atoms(quads & 3, 2), high], axis=-2)
    per_byte = 8 // bits
    fields = [quads[..., field::per_byte, :] << (bits * field) for field in range(per_byte)]
    return np.bitwise_or.reduce(fields)


def from_atoms(atoms: Bytes, bits: int) -> Bytes:
    """The inverse of `to_atoms`."""
    if bits == 8:
        return atoms
    if bits == 3:
        quads = from_atoms(atoms[..., :2, :], 2)
        for j in range(8):
            quads[..., j, :] |= (atoms[..., 2, :] >> j & 1) << 2
        return quads
    per_byte = 8 // bits
    quads = np.empty((*atoms.shape[:-2], atoms.shape[-2] * per_byte, atoms.shape[-1]), np.uint8)
    for field in range(per_byte):
        quads[..., field::per_byte, :] = atoms >> (bits * field) & (1 << bits) - 1
    return quads


def by_group(values: Array) -> Array:
    """[rows, groups] to [tiles, groups, 16], zero beyond the last row."""
    rows, groups = values.shape
    padded = np.zeros((tile_count(rows) * ROWS, groups), values.dtype)
    padded[:rows] = values
    return padded.reshape(-1, ROWS, groups).transpose(0, 2, 1)


def by_row(values: Array, rows: int) -> Array:
    """The inverse of `by_group`."""
    return np.ascontiguousarray(values.transpose(0, 2, 1).reshape(-1, values.shape[1])[:rows])


def pair_up(values: Array) -> Bytes:
    """[tiles, groups, 16] to the bytes [tiles, pairs, 32 * size of a value]; zeros beyond the last group."""
    tiles, groups, _ = values.shape
    padded = np.zeros((tiles, groups + groups % 2, ROWS), values.dtype.newbyteorder("<"))
    padded[:, :groups] = values
    return padded.reshape(tiles, -1, 2 * ROWS).view(np.uint8)


def unpair(head: Bytes, dtype: str, groups: int) -> NDArray[np.generic]:
    """The inverse of `pair_up`."""
    values = np.ascontiguousarray(head).view(np.dtype(dtype).newbyteorder("<")).astype(dtype, copy=False)
    return values.reshape(head.shape[0], -1, ROWS)[:, :groups]


def row_scales(scales: Array) -> Bytes:
    """The line [tiles, 64] that holds scales [rows, 1]."""
    return pair_up(by_group(scales))[:, 0]


def read_row_scales(line: Bytes, rows: int) -> Array:
    """The inverse of `row_scales`."""
    return by_row(unpair(line[:, None], "f2", 1), rows)
