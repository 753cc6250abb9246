"""A stream of pairs of groups within a tile: for each pair a table where one begins, a head, and steps."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from edge.core.parts import Array
from edge.kernels.pack_tiles import pair_up, unpair
from edge.kernels.packed_header import ROWS, Bytes

Fields = dict[str, Array]
"""What heads hold, by part: [tiles, groups, 16]."""


class Pair(NamedTuple):
    """Where a pair of groups lies: bytes of the tile (none of a table if it begins none), and its steps."""

    table: slice
    head: slice
    quants: slice
    steps: slice


@dataclass(frozen=True)
class Stream:
    """Groups of one width in bits that follow each other."""

    start: int
    head: dict[str, str]
    """Parts in the heads, and their types."""
    groups: int
    steps: int
    group_steps: int
    """Steps of every group; the last may have fewer."""
    step_bytes: int
    table_bytes: int = 0
    table_groups: int = 0
    """Groups that a table serves; 0: no table stands in the stream."""

    @property
    def head_bytes(self) -> int:
        return sum(2 * ROWS * np.dtype(dtype).itemsize for dtype in self.head.values())

    @property
    def tables(self) -> int:
        return -(-self.groups // self.table_groups) if self.table_groups else 0

    @property
    def end(self) -> int:
        heads = -(-self.groups // 2) * self.head_bytes
        return self.start + self.tables * self.table_bytes + heads + self.steps * self.step_bytes

    def pairs(self) -> Iterator[Pair]:
        """Every pair of groups; an odd last group is alone in its pair."""
        offset = self.start
        for group in range(0, self.groups, 2):
            begins_table = self.table_groups and group % self.table_groups == 0
            head = offset + (self.table_bytes if begins_table else 0)
            quants = head + self.head_bytes
            steps = slice(group * self.group_steps, min((group + 2) * self.group_steps, self.steps))
            end = quants + (steps.stop - steps.start) * self.step_bytes
            yield Pair(slice(offset, head), slice(head, quants), slice(quants, end), steps)
            offset = end

    def write(self, tiles: Bytes, fields: Fields, steps: Bytes, tables: Bytes | None = None) -> None:
        """Lay heads, steps [tiles, steps, step_bytes] and tables [tiles, tables, table_bytes] into the tiles."""
        heads = [pair_up(fields[name]) for name in self.head]
        table = 0
        for number, pair in enumerate(self.pairs()):
            if tables is not None and pair.table.start < pair.table.stop:
                tiles[:, pair.table] = tables[:, table]
                table += 1
            if heads:
                tiles[:, pair.head] = np.concatenate([head[:, number] for head in heads], axis=1)
            tiles[:, pair.quants] = steps[:, pair.steps].reshape(len(tiles), -1)

    def read(self, tiles: Bytes) -> tuple[Fields, Bytes, Bytes]:
        """The inverse of `write`: fields, steps and tables."""
        pairs, count = list(self.pairs()), len(tiles)
        heads = np.empty((count, len(pairs), self.head_bytes), np.uint8)
        steps = np.empty((count, self.steps, self.step_bytes), np.uint8)
        for number, pair in enumerate(pairs):
            heads[:, number] = tiles[:, pair.head]
            steps[:, pair.steps] = tiles[:, pair.quants].reshape(count, -1, self.step_bytes)
        found = [tiles[:, pair.table] for pair in pairs if pair.table.start < pair.table.stop]
        tables = np.stack(found, axis=1) if found else np.empty((count, 0, self.table_bytes), np.uint8)
        fields, start = {}, 0
        for name, dtype in self.head.items():
            end = start + 2 * ROWS * np.dtype(dtype).itemsize
            fields[name] = unpair(heads[:, :, start:end], dtype, self.groups)
            start = end
        return fields, steps, tables
