"""A second reader of packed weights, byte by byte from the text in edge_kernels.h: it shares nothing with `unpack`."""

from __future__ import annotations

import struct
from itertools import pairwise

import numpy as np
import pytest

from edge.core.weight import Affine, Codebook, GroupMixed, Sparse
from edge.kernels import pack
from edge.kernels.testing import EVERY_LAYOUT

HEADER = (
    "magic",
    "version",
    "encoding",
    "bits",
    "rows",
    "columns",
    "group_size",
    "grid",
    "layout",
    "tile_rows",
    "scale",
)
HEADER += ("payload_bytes", "checksum", "table_rows", "table_columns", "high_groups", "dim", "entry", "pattern")


class Decoder:
    """Walks through a blob and fills `integers` and `scales`, one value at a time."""

    def __init__(self, blob: bytes) -> None:
        fields = struct.unpack("<IHBBIIIBBBBQQIIIBBB9x", blob[:64])
        for name, value in zip(HEADER, fields, strict=True):
            setattr(self, name, value)
        self.blob, self.at = blob, 64
        self.tiles = (self.rows + 15) // 16
        self.integers = [[0] * self.columns for _ in range(self.rows)]
        self.scales = [[0.0] * self.columns for _ in range(self.rows)]

    def take(self, size: int) -> bytes:
        taken = self.blob[self.at : self.at + size]
        assert len(taken) == size
        self.at += size
        return taken

    def put(self, tile: int, row: int, column: int, integer: int, scale: float) -> None:
        if 16 * tile + row < self.rows and column < self.columns:
            self.integers[16 * tile + row][column] = integer
            self.scales[16 * tile + row][column] = scale

    def decode(self) -> np.ndarray:
        walk = {
            1: self.affine,
            2: self.codebook,
            3: self.mixed,
            4: self.two_of_four if self.pattern == 3 else self.blocks,
        }
        walk[self.encoding]()
        assert self.at == len(self.blob) == 64 + self.payload_bytes
        return np.array(self.integers, np.float32) * np.array(self.scales, np.float32)

    def groups_of(self, step: int) -> list[list[int]]:
        """First columns of the steps of each group."""
        starts = list(range(0, self.columns, step))
        if self.group_size == 0:
            return [starts]
        return [starts[i : i + self.group_size // step] for i in range(0, len(starts), self.group_size // step)]

    def head(self, bits: int, scale_bytes: int = 2) -> list[tuple[list[float], list[int]]]:
        """Scales and zeros of the 16 rows, for the first and the second group of a pair."""
        scales = [self.take(16 * scale_bytes) for _ in range(2)]
        values = [list(s) if scale_bytes == 1 else list(struct.unpack("<16e", s)) for s in scales]
        if self.grid == 1:
            return [(values[half], list(self.take(16))) for half in range(2)]
        return [(values[half], [1 << (bits - 1)] * 16) for half in range(2)]

    @staticmethod
    def code(step: bytes, bits: int, row: int, column: int) -> int:
        quad, byte = column // 4, 4 * row + (column & 3)
        if bits == 8:
            return step[64 * quad + byte]
        if bits == 1:
            return step[byte] >> quad & 1
        if bits == 4:
            return step[64 * (quad // 2) + byte] >> 4 * (quad % 2) & 0xF
        low = step[64 * (quad // 4) + byte] >> 2 * (quad % 4) & 0x3
        return low if bits == 2 else low + 4 * (step[128 + byte] >> quad & 1)

    def affine(self) -> None:
        groups = self.groups_of(32)
        for tile in range(self.tiles):
            for pair in range(0, len(groups), 2):
                heads = self.head(self.bits)
                for (scales, zeros), group in zip(heads, groups[pair : pair + 2], strict=False):
                    self.affine_steps(tile, group, self.bits, scales, zeros)

    def affine_steps(self, tile: int, group: list[int], bits: int, scales: list[float], zeros: list[int]) -> None:
        for first in group:
            step = self.take(64 * bits)
            for row in range(16):
                for column in range(32):
                    code = self.code(step, bits, row, column)
                    integer = 2 * code - ((1 << bits) - 1) if self.grid == 2 else code - zeros[row]
                    integer = 64 * code - 32 if bits == 1 else integer
                    self.put(tile, row, first + column, integer, scales[row])

    def mixed(self) -> None:
        groups = self.groups_of(32)
        count, low = len(groups), len(groups) - self.high_groups
        whole = [[g * self.group_size + c for c in range(0, self.group_size, 32)] for g in range(count)]
        for tile in range(self.tiles):
            order = struct.unpack_from(f"<{count}H", self.take((2 * count + 63) // 64 * 64))
            row_scales = struct.unpack_from("<16e", self.take(64)) if self.scale == 2 else None
            for bits, part in ((self.bits, order[:low]), (8 if self.bits == 1 else 4, order[low:])):
                assert list(part) == sorted(part)
                for pair in range(0, len(part), 2):
                    heads = self.head(bits, 1 if row_scales else 2)
                    for (scales, zeros), group in zip(heads, part[pair : pair + 2], strict=False):
                        scaled = [s * r for s, r in zip(scales, row_scales or [1.0] * 16, strict=True)]
                        self.affine_steps(tile, whole[group], bits, scaled, zeros)

    def codebook(self) -> None:
        groups = self.groups_of(32 * self.dim)
        lines = max(4, 1 << self.bits) // 4 if self.table_rows == 1 else 1
        planes = 2 if self.entry == 1 else self.dim
        in_stream = self.table_rows or self.table_columns
        table = [] if in_stream else [self.take(64 * lines) for _ in range(planes)]
        for tile in range(self.tiles):
            row_scales = list(struct.unpack_from("<16e", self.take(64))) if self.scale == 1 else []
            for pair in range(0, len(groups), 2):
                first = groups[pair][0]
                if in_stream and (first == 0 if self.table_columns == 0 else first % self.table_columns == 0):
                    table = [self.take(64 * lines) for _ in range(planes)]
                heads = [(row_scales, [])] * 2 if row_scales else self.head(self.bits)
                for (scales, _), group in zip(heads, groups[pair : pair + 2], strict=False):
                    for start in group:
                        self.codebook_step(tile, start, table, scales)

    def codebook_step(self, tile: int, start: int, table: list[bytes], scales: list[float]) -> None:
        step = self.take(64 * self.bits)
        for row in range(16):
            for i in range(32):
                if self.dim == 1:
                    code = self.code(step, self.bits, row, i)
                    self.put(tile, row, start + i, self.entry_of(table, row, code), scales[row])
                    continue
                place = (0, 2, 1, 3)[i & 3] + (i & ~3) if self.dim == 2 else i
                code = self.code(step, self.bits, row, place)
                for coordinate in range(self.dim):
                    integer = self.entry_of(table[coordinate:], row, code)
                    self.put(tile, row, start + self.dim * i + coordinate, integer, scales[row])

    def entry_of(self, planes: list[bytes], row: int, code: int) -> int:
        lane, within, size = row // 4, row % 4, 1 << self.bits
        if self.table_rows != 1:
            byte = 16 * lane + code
        elif size <= 4:
            byte = 16 * lane + 4 * within + code
        elif size == 8:
            byte = 64 * (within // 2) + 16 * lane + 8 * (within % 2) + code
        else:
            byte = 64 * within + 16 * lane + code
        return planes[0][byte] + 256 * planes[1][byte] - 32768 if self.entry == 1 else planes[0][byte] - 128

    def two_of_four(self) -> None:
        groups = self.groups_of(32)
        for tile in range(self.tiles):
            for pair in range(0, len(groups), 2):
                heads = self.head(self.bits)
                for (scales, zeros), group in zip(heads, groups[pair : pair + 2], strict=False):
                    for start in group:
                        step = self.take(64 + 32 * self.bits)
                        for row in range(16):
                            for quad in range(8):
                                self.kept_of_quad(tile, row, start, quad, step, scales[row], zeros[row])

    def kept_of_quad(self, tile: int, row: int, start: int, quad: int, step: bytes, scale: float, zero: int) -> None:
        for kept in range(2):
            byte, m = 4 * row + 2 * (quad % 2) + kept, quad // 2
            column = step[byte] >> 2 * m & 3
            code = step[64 + 64 * m + byte] if self.bits == 8 else step[64 + 64 * (m // 2) + byte] >> 4 * (m % 2) & 15
            self.put(tile, row, start + 4 * quad + column, code - zero, scale)

    def blocks(self) -> None:
        width, zero = {1: 8, 2: 4}[self.pattern], 1 << (self.bits - 1)
        groups = len(self.groups_of(32))
        offsets = struct.unpack_from(f"<{self.tiles + 1}I", self.blob, 64)
        self.take((4 * (self.tiles + 1) + 63) // 64 * 64)
        for tile, (start, end) in enumerate(pairwise(offsets)):
            assert self.at == 64 + 64 * start
            counts = struct.unpack_from(f"<{groups}H", self.blob, self.at)
            indices = list(struct.unpack_from(f"<{sum(counts)}H", self.blob, self.at + 2 * groups))
            self.take((2 * (groups + sum(counts)) + 63) // 64 * 64)
            for pair in range(0, groups, 2):
                heads = self.head(self.bits)
                for (scales, _), count in zip(heads, counts[pair : pair + 2], strict=False):
                    mine, indices = indices[:count], indices[count:]
                    codes = self.take(count * width * 16 * self.bits // 8)
                    for number, index in enumerate(mine):
                        if number and index == mine[number - 1]:
                            continue  # makes the count even
                        for row in range(16):
                            for column in range(width):
                                code = self.block_code(codes, number, row, column)
                                self.put(tile, row, width * index + column, code - zero, scales[row])
            assert self.at == 64 + 64 * end

    def block_code(self, codes: bytes, number: int, row: int, column: int) -> int:
        byte = 4 * row + column % 4
        if self.pattern == 1 and self.bits == 4:
            return codes[64 * number + byte] >> 4 * (column // 4) & 15
        if self.pattern == 1:
            return codes[128 * number + 64 * (column // 4) + byte]
        if self.bits == 8:
            return codes[64 * number + byte]
        return codes[64 * (number // 2) + byte] >> 4 * (number % 2) & 15


ENCODINGS = (
    *EVERY_LAYOUT,
    Affine(8, 64, "half_integer"),
    Codebook(2, dim=2, table_rows=4),
    Codebook(2, table_rows=1, entry="int16", scale="row"),
    GroupMixed(32, 5, "zero_point", "second_order"),
    Sparse("16x4", 4, 0),
)


@pytest.mark.parametrize("encoding", ENCODINGS, ids=str)
def test_the_text_describes_what_pack_writes(make_tensor, encoding):
    tensor = make_tensor(37, 300, encoding)
    assert np.array_equal(Decoder(pack(tensor).tobytes()).decode(), tensor.dequantize())
