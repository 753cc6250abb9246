"""Group-mixed encodings: the groups of a tile in two streams, those at fewer bits and those at more."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from edge.core.encoding import GroupMixed
from edge.core.parts import Array, Parts
from edge.kernels.pack_stream import Fields, Stream
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
from edge.kernels.packed_header import LINE, STEP, Bytes, damaged

Order = NDArray[np.int64]
"""The groups of each tile as they follow each other: [tiles, groups]."""


def payload_bytes(rows: int, columns: int, encoding: GroupMixed) -> int:
    """Bytes after the header."""
    return tile_count(rows) * _streams(columns, encoding)[1].end


def group_order(high: Array) -> Order:
    """Those at fewer bits ascending, then those at more bits ascending, from `high` [tiles, groups]."""
    return np.argsort(high, axis=1, kind="stable")


def write(parts: Parts, rows: int, columns: int, encoding: GroupMixed) -> Bytes:
    """The payload of a matrix."""
    streams, groups = _streams(columns, encoding), encoding.groups(columns)
    tiles = np.zeros((tile_count(rows), streams[1].end), np.uint8)
    order = group_order(parts["high"])
    tiles[:, : 2 * groups] = order.astype("<u2").view(np.uint8)
    if encoding.scale == "second_order":
        tiles[:, streams[0].start - LINE : streams[0].start] = row_scales(parts["row_scales"])
    fields = {name: _take(by_group(parts[name]), order) for name in streams[0].head}
    quads = to_quads(parts["codes"], groups * encoding.group_size).reshape(len(tiles), groups, -1, 8, LINE)
    quads = _take(quads, order)
    start = 0
    for stream, bits in zip(streams, (encoding.bits, encoding.high_bits), strict=True):
        part = slice(start, start + stream.groups)
        steps = to_atoms(quads[:, part], bits).reshape(len(tiles), stream.steps, stream.step_bytes)
        stream.write(tiles, {name: values[:, part] for name, values in fields.items()}, steps)
        start = part.stop
    return tiles.reshape(-1)


def read(payload: Bytes, rows: int, columns: int, encoding: GroupMixed) -> dict[str, Array]:
    """The parts of a matrix, from a payload of the right size. Raises `EdgeError` for an order that is none."""
    streams, groups = _streams(columns, encoding), encoding.groups(columns)
    tiles = payload.reshape(-1, streams[1].end)
    place = np.argsort(_read_order(tiles, groups, streams[0].groups), axis=1)
    both: list[Fields] = []
    for stream, bits in zip(streams, (encoding.bits, encoding.high_bits), strict=True):
        fields, steps, _ = stream.read(tiles)
        atoms = steps.reshape(len(tiles), stream.groups, stream.group_steps, bits, LINE)
        both.append({**fields, "quads": from_atoms(atoms, bits)})
    whole = {name: _take(np.concatenate([part[name] for part in both], axis=1), place) for name in both[0]}
    quads = whole.pop("quads").reshape(len(tiles), -1, LINE)
    parts = {name: by_row(values, rows) for name, values in whole.items()}
    if encoding.scale == "second_order":
        parts["row_scales"] = read_row_scales(tiles[:, streams[0].start - LINE : streams[0].start], rows)
    high = (place >= streams[0].groups).astype(np.uint8)
    return {**parts, "codes": from_quads(quads, rows, columns), "high": high}


def _streams(columns: int, encoding: GroupMixed) -> tuple[Stream, Stream]:
    groups, steps = encoding.groups(columns), encoding.group_size // STEP
    second_order = encoding.scale == "second_order"
    head = {"scales": "u1" if second_order else "f2"}
    if encoding.grid == "zero_point":
        head["zero_points"] = "u1"
    start = -(-2 * groups // LINE) * LINE + (LINE if second_order else 0)
    count = groups - encoding.high_groups
    low = Stream(start, head, count, count * steps, steps, LINE * encoding.bits)
    count = encoding.high_groups
    return low, Stream(low.end, head, count, count * steps, steps, LINE * encoding.high_bits)


def _read_order(tiles: Bytes, groups: int, low: int) -> Order:
    order = np.ascontiguousarray(tiles[:, : 2 * groups]).view("<u2").astype(np.int64)
    steps = np.diff(order, axis=1) > 0
    ascending = steps[:, : max(low - 1, 0)].all() and steps[:, low:].all()
    if not ascending or (np.sort(order, axis=1) != np.arange(groups)).any():
        raise damaged("the packed weights are damaged: the order of groups is none")
    return order


def _take(values: Array, order: Order) -> Array:
    """values [tiles, groups, ..] with the groups of each tile as `order` names them."""
    return values[np.arange(len(values))[:, None], order]
