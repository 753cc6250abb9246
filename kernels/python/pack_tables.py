"""Tables of codebooks as the kernels look them up: lines of four lanes of 16 bytes, a lane for four rows."""

from __future__ import annotations

import numpy as np

from edge.core.encoding import Codebook
from edge.core.parts import Array
from edge.kernels.pack_tiles import tile_count
from edge.kernels.packed_header import ROWS, Bytes, damaged

LANES, LANE = 4, 16


def table_bytes(encoding: Codebook) -> int:
    """Bytes of the tables of 16 rows for one block of columns."""
    slot, slots = _slots(encoding)
    return _planes(encoding) * LANES * slot * slots


def write_tables(tables: Array, encoding: Codebook, rows: int) -> Bytes:
    """Tables [row blocks, column blocks, entries, dim] as bytes [tiles, column blocks, table_bytes]."""
    slot, slots = _slots(encoding)
    blocks, columns, entries, dim = tables.shape
    padded = np.zeros((blocks + 1, columns, slot, dim), tables.dtype)  # the last block is that of rows past the end
    padded[:-1, :, :entries] = tables
    if encoding.entry == "int16":
        unsigned = (padded.view(np.uint16) ^ 0x8000).astype("<u2").view(np.uint8)
        planes = unsigned.reshape(blocks + 1, columns, slot, 2)
    else:
        planes = padded.view(np.uint8) ^ 0x80
    tiles = tile_count(rows)
    row = np.arange(0, tiles * ROWS, LANE // (LANES * slots))  # the first that a slot serves
    block = np.where(row < rows, row // (encoding.table_rows or tiles * ROWS), blocks)
    lanes = planes[block].reshape(tiles, LANES, slots, columns, slot, -1).transpose(0, 3, 5, 1, 2, 4)
    lines = lanes.reshape(tiles, columns, _planes(encoding), LANES, -1, LANE).swapaxes(3, 4)
    return lines.reshape(tiles, columns, -1)


def read_tables(stored: Bytes, encoding: Codebook, rows: int) -> Array:
    """The inverse of `write_tables`. Raises `EdgeError` if rows that share a table have different ones."""
    slot, slots = _slots(encoding)
    tiles, columns, _ = stored.shape
    lines = stored.reshape(tiles, columns, _planes(encoding), -1, LANES, LANE).swapaxes(3, 4)
    lanes = lines.reshape(tiles, columns, _planes(encoding), LANES, slots, slot).transpose(0, 3, 4, 1, 5, 2)
    by_slot = lanes.reshape(tiles * LANES * slots, columns, slot, -1)
    first = np.arange(0, rows, encoding.table_rows or rows) * slots // LANES
    planes = np.ascontiguousarray(by_slot[first, :, : 1 << encoding.bits])
    if encoding.entry == "int16":
        tables = (planes.view("<u2").astype(np.uint16) ^ 0x8000).view(np.int16)
    else:
        tables = (planes ^ 0x80).view(np.int8)
    if (write_tables(tables, encoding, rows) != stored).any():
        raise damaged("the packed weights are damaged: tables contradict each other")
    return tables


def _planes(encoding: Codebook) -> int:
    """Low and high bytes of the entries, or their coordinates."""
    return 2 if encoding.entry == "int16" else encoding.dim


def _slots(encoding: Codebook) -> tuple[int, int]:
    """Bytes of a table in a plane, and how many of them serve the four rows of a lane."""
    return (max(4, 1 << encoding.bits), LANES) if encoding.table_rows == 1 else (LANE, 1)
