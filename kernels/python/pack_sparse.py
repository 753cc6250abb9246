"""Block-sparse encodings: tiles of different sizes, each with the indices of its blocks. All work is on lines of 64."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from edge.core.encoding import Sparse
from edge.core.parts import Array, Parts
from edge.kernels.pack_tiles import (
    by_group,
    by_row,
    from_atoms,
    from_quads,
    pair_up,
    tile_count,
    to_atoms,
    to_quads,
    unpair,
)
from edge.kernels.packed_header import LINE, STEP, Bytes, damaged

Ints = NDArray[np.int64]
HALFWORDS = LINE // 2


class _Shape(NamedTuple):
    """Sizes that follow from the header alone."""

    tiles: int
    groups: int
    blocks: int
    """Of a row, those in padded columns included."""
    group_blocks: int
    """Of every group but a short last one."""
    quads: int
    """Of a block."""
    per_line: int
    lines: int
    """A block is so many lines, or so many blocks share one."""

    @property
    def prefix(self) -> int:
        """Lines of the table of offsets."""
        return -(-4 * (self.tiles + 1) // LINE)

    @property
    def pairs(self) -> int:
        return -(-self.groups // 2)


class _Lines(NamedTuple):
    """Which lines of the payload hold what."""

    offsets: Ints
    """Of each tile, and the end of the last: [tiles + 1]."""
    heads: Ints
    """Of each pair of groups: [tiles, pairs]."""
    quants: Ints
    """Of the blocks, in the order of the stream."""


def write(parts: Parts, rows: int, columns: int, encoding: Sparse) -> Bytes:
    """The payload of a matrix."""
    shape = _shape(rows, columns, encoding)
    tile, block = np.nonzero(parts["mask"])
    real = np.ones(tile.size, bool)
    counts = _counts(tile, block, shape)
    if shape.per_line == 2:  # an odd count gets one block more: zeros, at the place of the one before
        ends = np.cumsum(counts.reshape(-1))[counts.reshape(-1) % 2 == 1]
        tile, block = np.insert(tile, ends, tile[ends - 1]), np.insert(block, ends, block[ends - 1])
        real = np.insert(real, ends, False)
        counts = counts + counts % 2
    lines = _lines(counts, shape)
    payload = np.zeros((lines.offsets[-1], LINE), np.uint8)
    payload[: shape.prefix].reshape(-1).view("<u4")[: shape.tiles + 1] = lines.offsets
    halfwords = payload.reshape(-1).view("<u2")
    at_counts, at_indices = _places(counts, lines)
    halfwords[at_counts], halfwords[at_indices] = counts, block
    payload[lines.heads] = pair_up(by_group(parts["scales"]))
    quads = to_quads(parts["codes"], shape.blocks * shape.quads * 4).reshape(shape.tiles, shape.blocks, -1, LINE)
    kept = quads[tile, block]
    kept[~real] = encoding.symmetric_zero
    payload[lines.quants] = to_atoms(kept.reshape(-1, LINE), encoding.bits)
    return payload.reshape(-1)


def read(payload: Bytes, rows: int, columns: int, encoding: Sparse) -> dict[str, Array]:
    """The parts of a matrix. Raises `EdgeError` for offsets, counts or indices that lead astray."""
    shape = _shape(rows, columns, encoding)
    counts, lines = _read_counts(payload, shape)
    halfwords = payload.view("<u2")
    block = halfwords[_places(counts, lines)[1]].astype(np.int64)
    real = _real_blocks(counts, block, -(-columns // encoding.width), shape)
    atoms = payload.reshape(-1, LINE)[lines.quants]
    kept = from_atoms(atoms, encoding.bits).reshape(block.size, shape.quads, LINE)
    if (kept[~real] != encoding.symmetric_zero).any():
        raise damaged("the packed weights are damaged: a block that fills up is not empty")
    tile = np.repeat(np.arange(shape.tiles), counts.sum(axis=1))[real]
    quads = np.full((shape.tiles, shape.blocks, shape.quads, LINE), encoding.symmetric_zero, np.uint8)
    quads[tile, block[real]] = kept[real]
    mask = np.zeros((shape.tiles, -(-columns // encoding.width)), np.uint8)
    mask[tile, block[real]] = 1
    scales = by_row(unpair(payload.reshape(-1, LINE)[lines.heads], "f2", shape.groups), rows)
    return {"codes": from_quads(quads.reshape(shape.tiles, -1, LINE), rows, columns), "mask": mask, "scales": scales}


def _shape(rows: int, columns: int, encoding: Sparse) -> _Shape:
    width, padded = encoding.width, -(-columns // STEP) * STEP
    share = 2 if width * encoding.bits == 16 else 1
    lines = width * encoding.bits // 32 or 1
    group_blocks = (encoding.group_size or padded) // width
    groups = encoding.groups(columns)
    return _Shape(tile_count(rows), groups, padded // width, group_blocks, width // 4, share, lines)


def _counts(tile: Ints, block: Ints, shape: _Shape) -> Ints:
    """Blocks of each group of each tile."""
    group = tile * shape.groups + block // shape.group_blocks
    return np.bincount(group, minlength=shape.tiles * shape.groups).reshape(shape.tiles, shape.groups)


def _lines(counts: Ints, shape: _Shape) -> _Lines:
    """Where everything lies, from the counts [tiles, groups] of blocks."""
    index = -(-(shape.groups + counts.sum(axis=1)) // HALFWORDS)
    lines = counts * shape.lines // shape.per_line
    sizes = index + shape.pairs + lines.sum(axis=1)
    offsets = shape.prefix + np.concatenate([[0], np.cumsum(sizes)])
    before = np.cumsum(lines, axis=1) - lines  # lines of blocks of the same tile before this group
    body = (offsets[:-1] + index)[:, None]
    heads = body + np.arange(shape.pairs) + before[:, ::2]
    starts = body + np.arange(shape.groups) // 2 + 1 + before
    flat = lines.reshape(-1)
    within = np.arange(flat.sum()) - np.repeat(np.cumsum(flat) - flat, flat)
    return _Lines(offsets, heads, np.repeat(starts.reshape(-1), flat) + within)


def _places(counts: Ints, lines: _Lines) -> tuple[Ints, Ints]:
    """Where the counts and the indices are, in units of two bytes."""
    groups = counts.shape[1]
    starts = lines.offsets[:-1] * HALFWORDS
    totals = counts.sum(axis=1)
    within = np.arange(totals.sum()) - np.repeat(np.cumsum(totals) - totals, totals)
    return starts[:, None] + np.arange(groups), np.repeat(starts + groups, totals) + within


def _read_counts(payload: Bytes, shape: _Shape) -> tuple[Ints, _Lines]:
    """The counts and what follows from them, once it is sure that it is what the offsets say."""
    wrong = damaged("the packed weights are damaged: their tiles don't follow each other")
    if payload.size % LINE or payload.size < LINE * shape.prefix:
        raise wrong
    offsets = payload[: 4 * (shape.tiles + 1)].view("<u4").astype(np.int64)
    least = -(-shape.groups // HALFWORDS) + shape.pairs
    if offsets[0] != shape.prefix or offsets[-1] != payload.size // LINE or (np.diff(offsets) < least).any():
        raise wrong
    counts = payload.view("<u2")[offsets[:-1, None] * HALFWORDS + np.arange(shape.groups)].astype(np.int64)
    if (counts > shape.group_blocks).any() or (counts % shape.per_line).any():
        raise damaged("the packed weights are damaged: a group has more blocks than columns")
    lines = _lines(counts, shape)
    if (lines.offsets != offsets).any():
        raise wrong
    return counts, lines


def _real_blocks(counts: Ints, block: Ints, blocks: int, shape: _Shape) -> NDArray[np.bool_]:
    """Which blocks are not there just to make a count even. Raises `EdgeError` for indices out of place or order."""
    flat = counts.reshape(-1)
    group = np.repeat(np.arange(flat.size), flat)
    last = np.zeros(block.size, bool)
    last[(np.cumsum(flat) - 1)[flat > 0]] = True
    same = np.zeros(block.size, bool)
    same[1:] = (group[1:] == group[:-1]) & (block[1:] == block[:-1])
    falling = np.zeros(block.size, bool)
    falling[1:] = (group[1:] == group[:-1]) & (block[1:] < block[:-1])
    repeats = same & last if shape.per_line == 2 else np.zeros(block.size, bool)
    astray = (block >= blocks) | (block // shape.group_blocks != group % shape.groups)
    if (astray | falling | (same & ~repeats)).any():
        raise damaged("the packed weights are damaged: indices of blocks are out of place or order")
    return ~repeats
