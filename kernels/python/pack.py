"""Packed weights: a 64-byte header and tiles of 16 rows, as `edge_kernels.h` draws them. Pure NumPy."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import cast

import numpy as np
from numpy.typing import NDArray

from edge.core.errors import EdgeError, UsageError
from edge.core.weight import Affine, CompressedTensor, Encoding

MAGIC, VERSION, AFFINE, TILE16_STREAM = 0x4B474445, 1, 1, 1
HEADER = struct.Struct("<IHBBIIIBBBxQQ24x")  # edge_packed_header
CHECKSUM_WORD = 4
ROWS, STEP, MAX_GROUP = 16, 32, 65536
SERVED_BITS = (2, 3, 4, 8)

Bytes = NDArray[np.uint8]


def supported(encoding: Encoding) -> str:
    """Empty when edge's kernels serve `encoding`; else why they don't and what to use instead."""
    if not isinstance(encoding, Affine):
        return f"edge's kernels serve affine encodings, not {encoding}: leave this tensor to a standard operator"
    if encoding.bits not in SERVED_BITS:
        return f"no kernel serves {encoding.bits} bits: use {4 if encoding.bits == 5 else 8} bits"
    return ""


@dataclass(frozen=True)
class Layout:
    """Where everything lies in the tiles of one matrix."""

    rows: int
    columns: int
    encoding: Affine

    @property
    def tiles(self) -> int:
        return -(-self.rows // ROWS)

    @property
    def steps(self) -> int:
        return -(-self.columns // STEP)

    @property
    def groups(self) -> int:
        return self.encoding.groups(self.columns)

    @property
    def step_bytes(self) -> int:
        return 64 * self.encoding.bits

    @property
    def head_bytes(self) -> int:
        return 4 * ROWS + (2 * ROWS if self.encoding.grid == "zero_point" else 0)

    @property
    def tile_bytes(self) -> int:
        return -(-self.groups // 2) * self.head_bytes + self.steps * self.step_bytes

    @property
    def payload_bytes(self) -> int:
        return self.tiles * self.tile_bytes

    def pairs(self) -> Iterator[tuple[slice, slice, slice]]:
        """For each pair of groups: its head and its quants within a tile, and its steps within a row."""
        per_pair = self.steps if self.encoding.group_size == 0 else 2 * self.encoding.group_size // STEP
        offset = 0
        for first in range(0, self.steps, per_pair):
            steps = slice(first, min(first + per_pair, self.steps))
            quants = offset + self.head_bytes
            end = quants + (steps.stop - steps.start) * self.step_bytes
            yield slice(offset, quants), slice(quants, end), steps
            offset = end


def pack(tensor: CompressedTensor) -> Bytes:
    """The bytes that the kernels read, uint8 [64 + payload]: the same on every machine.

    Raises `UsageError` for an encoding that no kernel serves, `EdgeError` for values that the format can't hold.
    """
    encoding = tensor.encoding
    if reason := supported(encoding):
        raise UsageError("kernels.encoding", f"{tensor.name}: {reason}", "change the recipe for this tensor")
    encoding = cast(Affine, encoding)
    _check(tensor, encoding)
    layout = Layout(*tensor.shape, encoding)
    out = np.zeros(HEADER.size + layout.payload_bytes, np.uint8)
    tiles = out[HEADER.size :].reshape(layout.tiles, layout.tile_bytes)
    heads = _heads(tensor, layout)
    quants = _to_atoms(_quads(tensor.parts["codes"], layout), encoding.bits)
    for pair, (head, quant, steps) in enumerate(layout.pairs()):
        tiles[:, head] = heads[:, pair]
        tiles[:, quant] = quants[:, steps].reshape(layout.tiles, -1)
    out[: HEADER.size] = np.frombuffer(_header(layout, 0), np.uint8)
    out[: HEADER.size] = np.frombuffer(_header(layout, checksum(out)), np.uint8)
    return out


def unpack(packed: Bytes, name: str = "packed") -> CompressedTensor:
    """The tensor that was packed: codes, scales and zero points exactly as they were given.

    Raises `EdgeError` for bytes that are not packed weights, are damaged or come from a newer version.
    """
    layout = read_layout(packed)
    encoding = layout.encoding
    tiles = packed[HEADER.size :].reshape(layout.tiles, layout.tile_bytes)
    atoms = np.empty((layout.tiles, layout.steps, layout.step_bytes), np.uint8)
    heads = np.empty((layout.tiles, -(-layout.groups // 2), layout.head_bytes), np.uint8)
    for pair, (head, quant, steps) in enumerate(layout.pairs()):
        heads[:, pair] = tiles[:, head]
        atoms[:, steps] = tiles[:, quant].reshape(layout.tiles, -1, layout.step_bytes)
    quads = _from_atoms(atoms.reshape(layout.tiles, layout.steps, -1, 64), encoding.bits)
    shape = (layout.tiles, layout.steps, 8, ROWS, 4)
    codes = quads.reshape(shape).transpose(0, 3, 1, 2, 4).reshape(layout.tiles * ROWS, layout.steps * STEP)
    parts = {"codes": np.ascontiguousarray(codes[: layout.rows, : layout.columns])}
    parts["scales"] = _by_row(heads[:, :, : 4 * ROWS].copy().view("<f2"), layout).astype(np.float16, copy=False)
    if encoding.grid == "zero_point":
        parts["zero_points"] = _by_row(heads[:, :, 4 * ROWS :], layout)
    return CompressedTensor(name, (layout.rows, layout.columns), encoding, parts)


def read_layout(packed: Bytes) -> Layout:
    """Check header, size and checksum; what the header says."""
    hint = "export the model again"
    if packed.ndim != 1 or packed.dtype != np.uint8 or packed.size < HEADER.size:
        raise EdgeError(
            "kernels.packed", f"packed weights are one run of bytes, not {packed.dtype}{packed.shape}", hint
        )
    fields = HEADER.unpack(packed[: HEADER.size].tobytes())
    magic, version, kind, bits, rows, columns, group_size, grid, layout_id, tile_rows, payload, stored = fields
    if magic != MAGIC:
        raise EdgeError("kernels.packed", "these bytes are not packed weights", hint)
    if version > VERSION:
        raise EdgeError(
            "kernels.newer", f"the weights have packed format {version}, newer than {VERSION}", "upgrade edge"
        )
    known = (kind, layout_id, tile_rows) == (AFFINE, TILE16_STREAM, ROWS) and grid in (0, 1) and version > 0
    if not known or bits not in SERVED_BITS or group_size not in (0, 32, 64, 128) or not (rows and columns):
        raise EdgeError("kernels.packed", "the header of the packed weights is damaged", hint)
    layout = Layout(rows, columns, Affine(bits, group_size, "zero_point" if grid else "symmetric"))
    if payload != layout.payload_bytes or packed.size != HEADER.size + payload:
        expected = HEADER.size + layout.payload_bytes
        raise EdgeError("kernels.packed", f"packed weights have {packed.size} bytes, not {expected}", hint)
    if checksum(packed) != stored:
        raise EdgeError("kernels.packed", "the packed weights are damaged: their checksum differs", hint)
    return layout


def checksum(packed: Bytes) -> int:
    """Sum of (2i + 1) * word i modulo 2^64 over the 64-bit words of a blob, its checksum field taken as zero."""
    words = np.frombuffer(packed.tobytes() if not packed.flags.c_contiguous else packed, "<u8")
    total = -(2 * CHECKSUM_WORD + 1) * int(words[CHECKSUM_WORD])
    block = 1 << 20
    for start in range(0, words.size, block):
        part = words[start : start + block]
        factors = np.arange(2 * start + 1, 2 * (start + part.size) + 1, 2, dtype=np.uint64)
        total += int((part * factors).sum(dtype=np.uint64))
    return total % (1 << 64)


def _check(tensor: CompressedTensor, encoding: Affine) -> None:
    name, columns = tensor.name, tensor.shape[1]
    if 0 in tensor.shape:
        raise EdgeError("kernels.shape", f"{name}: an empty matrix {list(tensor.shape)} can't be packed")
    if encoding.group_size == 0 and columns > MAX_GROUP:
        raise EdgeError("kernels.group", f"{name}: one group of {columns} columns overflows", "use groups of 32 to 128")
    if not np.isfinite(tensor.parts["scales"]).all():
        raise EdgeError("kernels.scales", f"{name}: a scale is infinite or NaN in float16", "compress the model again")
    if int(tensor.parts["codes"].max()) >> encoding.bits:
        raise EdgeError(
            "kernels.codes", f"{name}: a code needs more than {encoding.bits} bits", "compress the model again"
        )


def _header(layout: Layout, check: int) -> bytes:
    encoding = layout.encoding
    grid = int(encoding.grid == "zero_point")
    shape = (layout.rows, layout.columns, encoding.group_size)
    sizes = (grid, TILE16_STREAM, ROWS, layout.payload_bytes, check)
    return HEADER.pack(MAGIC, VERSION, AFFINE, encoding.bits, *shape, *sizes)


def _quads(codes: Bytes, layout: Layout) -> Bytes:
    """Codes [rows, columns] to [tiles, steps, 8, 64]: per quad of columns, 16 rows of 4 codes."""
    padded = np.zeros((layout.tiles * ROWS, layout.steps * STEP), np.uint8)
    padded[: layout.rows, : layout.columns] = codes
    words = padded.view(np.uint32).reshape(layout.tiles, ROWS, layout.steps, 8)  # four codes move as one
    quads = np.ascontiguousarray(words.transpose(0, 2, 3, 1))
    return quads.view(np.uint8).reshape(layout.tiles, layout.steps, 8, 64)


def _to_atoms(quads: Bytes, bits: int) -> Bytes:
    """Quads [..., 8, 64] to atoms [..., bits, 64]: several codes to a byte."""
    if bits == 8:
        return quads
    if bits == 4:
        return quads[..., 0::2, :] | quads[..., 1::2, :] << 4
    atoms = np.zeros((*quads.shape[:-2], bits, 64), np.uint8)
    for j in range(8):
        atoms[..., j // 4, :] |= (quads[..., j, :] & 3) << (2 * (j % 4))
        if bits == 3:
            atoms[..., 2, :] |= quads[..., j, :] >> 2 << j
    return atoms


def _from_atoms(atoms: Bytes, bits: int) -> Bytes:
    """The inverse of `_to_atoms`."""
    if bits == 8:
        return atoms
    quads = np.empty((*atoms.shape[:-2], 8, 64), np.uint8)
    for j in range(8):
        if bits == 4:
            quads[..., j, :] = (atoms[..., j // 2, :] >> (4 * (j % 2))) & 15
        else:
            quads[..., j, :] = (atoms[..., j // 4, :] >> (2 * (j % 4))) & 3
        if bits == 3:
            quads[..., j, :] |= ((atoms[..., 2, :] >> j) & 1) << 2
    return quads


def _heads(tensor: CompressedTensor, layout: Layout) -> Bytes:
    """Scales and zero points as bytes [tiles, pairs, head_bytes]."""
    scales = _by_pair(tensor.parts["scales"].astype("<f2", copy=False), layout)
    parts = [scales.view(np.uint8)]
    if layout.encoding.grid == "zero_point":
        parts.append(_by_pair(tensor.parts["zero_points"], layout))
    return np.concatenate(parts, axis=2)


def _by_pair(values: NDArray[np.generic], layout: Layout) -> NDArray[np.generic]:
    """[rows, groups] to [tiles, pairs, 32]: 16 rows of the first group, then of the second; zeros past the end."""
    pairs = -(-layout.groups // 2)
    padded = np.zeros((layout.tiles * ROWS, 2 * pairs), values.dtype)
    padded[: layout.rows, : layout.groups] = values
    by_tile = padded.reshape(layout.tiles, ROWS, 2 * pairs).transpose(0, 2, 1)
    return np.ascontiguousarray(by_tile).reshape(layout.tiles, pairs, 2 * ROWS)


def _by_row(values: NDArray[np.generic], layout: Layout) -> NDArray[np.generic]:
    """The inverse of `_by_pair`."""
    by_tile = values.reshape(layout.tiles, -1, ROWS).transpose(0, 2, 1)
    return np.ascontiguousarray(by_tile.reshape(layout.tiles * ROWS, -1)[: layout.rows, : layout.groups])
