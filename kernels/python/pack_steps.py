"""Encodings whose tiles are one stream of steps: affine, codebook and 2:4."""

from __future__ import annotations

import numpy as np

from edge.core.encoding import Affine, Codebook, Sparse
from edge.core.parts import Array, Parts
from edge.kernels.pack_stream import Stream
from edge.kernels.pack_tables import read_tables, table_bytes, write_tables
from edge.kernels.pack_tiles import (
    by_group,
    by_row,
    from_atoms,
    from_quads,
    read_row_scales,
    row_scales,
    tile_count,
    to_atoms,
    to_quads,
)
from edge.kernels.packed_header import LINE, ROWS, STEP, Bytes, damaged

Steps = Affine | Codebook | Sparse
SWAPPED = [0, 2, 1, 3]  # where the four codes of 8 columns lie when each serves two of them; its own inverse
MASKS = np.array([[1 << first | 1 << second, first, second] for second in range(4) for first in range(second)])


def payload_bytes(rows: int, columns: int, encoding: Steps) -> int:
    """Bytes after the header."""
    return _prefix_bytes(encoding) + tile_count(rows) * _stream(columns, encoding).end


def write(parts: Parts, rows: int, columns: int, encoding: Steps) -> Bytes:
    """The payload of a matrix."""
    stream, prefix = _stream(columns, encoding), _prefix_bytes(encoding)
    payload = np.zeros(payload_bytes(rows, columns, encoding), np.uint8)
    tiles = payload[prefix:].reshape(-1, stream.end)
    tables = None
    if isinstance(encoding, Codebook):
        tables = write_tables(parts["tables"], encoding, ROWS if prefix else rows)
        payload[:prefix] = tables.reshape(-1)[:prefix]
    if stream.start:
        tiles[:, : stream.start] = row_scales(parts["scales"])
    fields = {name: by_group(parts[name]) for name in stream.head}
    steps = _to_steps(parts, stream, encoding)
    stream.write(tiles, fields, steps.reshape(len(tiles), stream.steps, -1), tables)
    return payload


def read(payload: Bytes, rows: int, columns: int, encoding: Steps) -> dict[str, Array]:
    """The parts of a matrix, from a payload of the right size."""
    stream, prefix = _stream(columns, encoding), _prefix_bytes(encoding)
    tiles = payload[prefix:].reshape(-1, stream.end)
    fields, steps, tables = stream.read(tiles)
    parts = {name: by_row(values, rows) for name, values in fields.items()}
    if stream.start:
        parts["scales"] = read_row_scales(tiles[:, : stream.start], rows)
    if isinstance(encoding, Codebook):
        stored = payload[:prefix].reshape(1, 1, -1) if prefix else tables
        parts["tables"] = read_tables(stored, encoding, ROWS if prefix else rows)
    atoms = steps.reshape(len(tiles), stream.steps, -1, LINE)
    return parts | _from_steps(atoms, rows, columns, encoding)


def _prefix_bytes(encoding: Steps) -> int:
    """Of the one table of the whole matrix."""
    whole = isinstance(encoding, Codebook) and not (encoding.table_rows or encoding.table_columns)
    return table_bytes(encoding) if whole else 0


def _stream(columns: int, encoding: Steps) -> Stream:
    groups, codebook = encoding.groups(columns), isinstance(encoding, Codebook)
    step_columns = STEP * encoding.dim if codebook else STEP
    steps = -(-columns // step_columns)
    step_bytes = LINE + LINE // 2 * encoding.bits if isinstance(encoding, Sparse) else LINE * encoding.bits
    start, head = 0, {"scales": "f2"}
    if codebook and encoding.scale == "row":
        start, head = LINE, {}
    if isinstance(encoding, Affine) and encoding.grid == "zero_point":
        head["zero_points"] = "u1"
    tables = (0, 0)
    if codebook and not _prefix_bytes(encoding):
        together = encoding.table_columns // encoding.group_size if encoding.table_columns else groups
        tables = (table_bytes(encoding), together)
    return Stream(start, head, groups, steps, encoding.group_size // step_columns or steps, step_bytes, *tables)


def _to_steps(parts: Parts, stream: Stream, encoding: Steps) -> Bytes:
    """Atoms [tiles, steps, atoms, 64]."""
    codes = parts["codes"]
    if isinstance(encoding, Sparse):
        return _to_kept(codes, parts["mask"], stream.steps, encoding.bits)
    width = stream.steps * STEP
    if isinstance(encoding, Codebook) and encoding.dim == 2:
        codes = np.pad(codes, ((0, 0), (0, width - codes.shape[1])))
        codes = codes.reshape(-1, 4)[:, SWAPPED].reshape(codes.shape)
    return to_atoms(_by_step(to_quads(codes, width), stream.steps), encoding.bits)


def _from_steps(atoms: Bytes, rows: int, columns: int, encoding: Steps) -> dict[str, Array]:
    """The inverse of `_to_steps`: codes, and the mask of 2:4."""
    if isinstance(encoding, Sparse):
        return _from_kept(atoms, rows, columns, encoding)
    quads = from_atoms(atoms, encoding.bits)
    tiles, steps = quads.shape[:2]
    quads = quads.reshape(tiles, -1, LINE)
    if isinstance(encoding, Codebook) and encoding.dim == 2:
        codes = from_quads(quads, rows, steps * STEP)
        codes = codes.reshape(-1, 4)[:, SWAPPED].reshape(codes.shape)
        return {"codes": np.ascontiguousarray(codes[:, : columns // 2])}
    return {"codes": from_quads(quads, rows, columns // encoding.dim if isinstance(encoding, Codebook) else columns)}


def _by_step(quads: Bytes, steps: int) -> Bytes:
    return quads.reshape(len(quads), steps, -1, LINE)


def _to_kept(codes: Array, mask: Array, steps: int, bits: int) -> Bytes:
    """2:4: per step one atom of positions, then the kept codes. Both come as rows of two elements for every quad."""
    nibbles = np.ascontiguousarray(mask).view("<u4") * np.uint32(0x01020408) >> 24  # four bytes of 0 or 1 to four bits
    positions = np.zeros((16, 2), np.uint8)
    positions[MASKS[:, 0]] = MASKS[:, 1:]
    padding = ((0, -len(codes) % ROWS), (0, steps * 8 - nibbles.shape[1]))
    at = positions[np.pad(nibbles, padding, constant_values=0b0011)]
    kept = np.asarray(codes)[mask.astype(bool)].reshape(len(codes), -1)
    where = _by_step(to_quads(at.reshape(len(at), -1), steps * 16), steps)
    values = _by_step(to_quads(kept, steps * 16), steps)
    return np.concatenate([to_atoms(where, 2), to_atoms(values, bits)], axis=2)


def _from_kept(atoms: Bytes, rows: int, columns: int, encoding: Sparse) -> dict[str, Array]:
    """The inverse of `_to_kept`."""
    where, values = from_atoms(atoms[:, :, :1], 2), from_atoms(atoms[:, :, 1:], encoding.bits)
    flat = (len(atoms), -1, LINE)
    at = from_quads(where.reshape(flat), rows, columns // 2).reshape(rows, -1, 2)
    if (at[:, :, 0] >= at[:, :, 1]).any():
        raise damaged("the packed weights are damaged: kept columns are not in order")
    kept = from_quads(values.reshape(flat), rows, columns // 2).reshape(at.shape)
    codes = np.full((rows, columns // 4, 4), encoding.symmetric_zero, np.uint8)
    mask = np.zeros_like(codes)
    np.put_along_axis(codes, at.astype(np.intp), kept, axis=2)
    np.put_along_axis(mask, at.astype(np.intp), 1, axis=2)
    return {"codes": codes.reshape(rows, columns), "mask": mask.reshape(rows, columns)}
