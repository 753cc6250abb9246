"""Encodings: how the values of a matrix are written as codes, scales, tables and masks, and what they mean.

An encoding knows its parts (plain arrays, one code per element), which values they may hold, the float32 matrix that
they stand for, and their compact form: what is stored, each part at the bits that it needs.
"""

from __future__ import annotations

from typing import Literal

import msgspec
import numpy as np
from numpy.typing import NDArray

from edge.core.errors import UsageError
from edge.core.group_mixed import GroupMixed
from edge.core.parts import (
    ANY,
    TILE_ROWS,
    Array,
    Floats,
    Grouped,
    Layout,
    Parts,
    Whole,
    block_count,
    part_of,
    wrong_value,
)

__all__ = [
    "TILE_ROWS",
    "Affine",
    "Codebook",
    "Compressed",
    "Dense",
    "Encoding",
    "Grid",
    "GroupMixed",
    "Sparse",
    "check_values",
]

Grid = Literal["symmetric", "zero_point", "half_integer"]

ROWS_AT_ONCE = 1024  # bounds the memory


class Affine(Grouped, Whole, msgspec.Struct, frozen=True, tag="affine", tag_field="kind", forbid_unknown_fields=True):
    """`value = scale * (code - zero)` with one float16 scale per row and group of columns.

    bits: 2 to 8. group_size: columns per scale; 0 means the whole row. The last group of a row may be short.
    grid: `symmetric` has the implied zero `2**(bits-1)`; `zero_point` stores one unsigned integer per group;
    `half_integer` has no zero: `value = scale * (2 * code - (2**bits - 1))`.
    Parts: `codes` uint8 [rows, columns], `scales` float16 [rows, groups], `zero_points` uint8 [rows, groups].
    """

    bits: int
    group_size: int
    grid: Grid = "symmetric"

    def __post_init__(self) -> None:
        if not 2 <= self.bits <= 8:
            raise UsageError("encoding.bits", f"{self.bits} bits can't be stored", "use 2 to 8 bits")
        self.check_group(32, 64, 128, 0)

    @property
    def symmetric_zero(self) -> int:
        return 1 << (self.bits - 1)

    def layout(self, rows: int, columns: int) -> Layout:
        """The parts of a matrix [rows, columns]."""
        groups = (rows, self.groups(columns))
        parts = {"codes": part_of((rows, columns), np.uint8, self.bits), "scales": part_of(groups, np.float16)}
        if self.grid == "zero_point":
            parts["zero_points"] = part_of(groups, np.uint8, self.bits)
        return parts

    compact_layout = layout

    def check(self, name: str, parts: Parts) -> None:
        """Raise `EdgeError` for values that mean nothing; those that exceed their bits are found by the caller."""

    def dequantize(self, parts: Parts) -> Floats:
        """The float32 matrix [rows, columns] that the parts stand for."""
        scales = parts["scales"].astype(np.float32)
        if self.grid == "half_integer":
            values = 2 * parts["codes"].astype(np.float32) - np.float32((1 << self.bits) - 1)
        elif self.grid == "zero_point":
            values = self.centred(parts["codes"], parts["zero_points"].astype(np.float32))
        else:
            values = parts["codes"].astype(np.float32) - np.float32(self.symmetric_zero)
        return self.scaled(values, scales)

    def __str__(self) -> str:
        return f"affine{self.bits}{self.group_name}{_grid_name(self.grid)}"


class Codebook(
    Grouped, Whole, msgspec.Struct, frozen=True, tag="codebook", tag_field="kind", forbid_unknown_fields=True
):
    """`value[r, c] = scale * table[code, c % dim]`: indices into tables of integers.

    bits: 2, 3, 4, 6 or 8 per index, or 1 with dim 1. dim: columns that one index serves, 1, 2 or 4. entry: type of the
    tables' entries; int8 has no -128; int16 is for up to 4 bits, dim 1 and groups. table_rows, table_columns: rows and
    columns that share a table; 0 is all of them. scale: one per row and group, or one per row; `group_size` is that of
    the activations in either case. Kernels look up at most 16 entries: 6 and 8 bits with dim 1 are 8-bit codes there,
    with dim 2 and 4 they stay on the host.
    Parts: `codes` uint8 [rows, columns / dim], `tables` [row_blocks, column_blocks, 2**bits, dim], `scales` float16
    [rows, groups] or [rows, 1].
    """

    bits: int
    dim: int = 1
    entry: Literal["int8", "int16"] = "int8"
    table_rows: int = 0
    table_columns: int = 0
    group_size: int = 64
    scale: Literal["group", "row"] = "group"

    def __post_init__(self) -> None:
        if self.dim not in (1, 2, 4):
            raise UsageError("encoding.dim", f"{self.dim} columns to an index are not served", "use dim 1, 2 or 4")
        if self.bits not in (1, 2, 3, 4, 6, 8) or (self.bits == 1 and self.dim > 1):
            hint = "use 2, 3, 4, 6 or 8 bits, or 1 with dim 1"
            raise UsageError("encoding.bits", f"an index of {self.bits} bits is not served", hint)
        self.check_group(*{1: (32, 64, 128, 0), 2: (64, 128, 0), 4: (128, 0)}[self.dim])
        if self.entry == "int16" and (self.dim > 1 or self.group_size == 0 or self.bits > 4):
            hint = "use dim 1, up to 4 bits and groups of 32, 64 or 128, or int8 entries"
            raise UsageError("encoding.entry", "int16 entries need groups, dim 1 and at most 4 bits", hint)
        if self.table_rows < 0 or (self.table_rows % 4 and (self.table_rows, self.dim) != (1, 1)):
            hint = "use a multiple of 4, 0 for all rows, or 1 with dim 1"
            raise UsageError("encoding.table_rows", f"tables for {self.table_rows} rows are not served", hint)
        if self.table_columns and (self.table_columns < 0 or self._ragged_table_columns()):
            message = f"tables for {self.table_columns} columns are not served with a group of {self.group_size}"
            hint = "use a multiple of two groups, or 0 for all columns"
            raise UsageError("encoding.table_columns", message, hint)

    def _ragged_table_columns(self) -> bool:
        return self.group_size == 0 or self.table_columns % (2 * self.group_size) != 0

    def layout(self, rows: int, columns: int) -> Layout:
        """The parts of a matrix [rows, columns]."""
        if columns % self.dim:
            hint = "use dim 1 for this matrix"
            raise UsageError("encoding.columns", f"{columns} columns are no multiple of dim {self.dim}", hint)
        blocks = (block_count(rows, self.table_rows), block_count(columns, self.table_columns))
        return {
            "codes": part_of((rows, columns // self.dim), np.uint8, self.bits),
            "tables": part_of((*blocks, 1 << self.bits, self.dim), self.entry),
            "scales": part_of((rows, 1 if self.scale == "row" else self.groups(columns)), np.float16),
        }

    compact_layout = layout

    def share_tables(self, parts: Parts, table_rows: int) -> tuple[Codebook, Array]:
        """Encoding and tables of the same matrix with a table for every `table_rows` rows, a divisor of the present."""
        rows = parts["codes"].shape[0]
        tables = parts["tables"][np.arange(0, rows, table_rows) // (self.table_rows or rows)]
        return msgspec.structs.replace(self, table_rows=table_rows), tables

    def check(self, name: str, parts: Parts) -> None:
        """Raise `EdgeError` for an int8 entry of -128: kernels multiply by its magnitude."""
        if self.entry == "int8" and (parts["tables"].view(np.uint8) == 128).any():
            raise wrong_value(name, "a table has an entry of -128, which int8 entries leave out")

    def dequantize(self, parts: Parts) -> Floats:
        """The float32 matrix [rows, columns] that the parts stand for."""
        codes, tables = parts["codes"], parts["tables"].astype(np.float32)
        rows, columns = codes.shape[0], codes.shape[1] * self.dim
        values = np.empty((rows, columns), np.float32)
        table_column = np.arange(0, columns, self.dim) // (self.table_columns or columns)
        for start in range(0, rows, ROWS_AT_ONCE):
            block = codes[start : start + ROWS_AT_ONCE]
            table_row = np.arange(start, start + len(block))[:, None] // (self.table_rows or rows)
            values[start : start + len(block)] = tables[table_row, table_column, block].reshape(-1, columns)
        scales = parts["scales"].astype(np.float32)
        return values * scales if self.scale == "row" else self.scaled(values, scales)

    def __str__(self) -> str:
        dim = f"d{self.dim}" if self.dim > 1 else ""
        entry = "i16" if self.entry == "int16" else ""
        row_scale = "r" if self.scale == "row" else ""
        tables = f"t{self.table_rows}x{self.table_columns}" if self.table_rows or self.table_columns else ""
        return f"codebook{self.bits}{dim}{entry}{self.group_name}{row_scale}{tables}"


class Sparse(Grouped, msgspec.Struct, frozen=True, tag="sparse", tag_field="kind", forbid_unknown_fields=True):
    """Affine on the symmetric grid where the mask is 1, else 0.

    pattern: `16x8` and `16x4` keep blocks of 16 rows by 8 or 4 columns; `2:4` keeps 2 of every 4 columns of a row.
    bits: 4 or 8. group_size: columns per scale; 0 means the whole row.
    Parts: `codes` uint8 [rows, columns] (pruned ones hold the zero `2**(bits-1)`), `mask` uint8 0 or 1
    [ceil(rows / 16), ceil(columns / width)] of blocks or [rows, columns] of `2:4`, `scales` float16 [rows, groups].
    """

    pattern: Literal["16x8", "16x4", "2:4"]
    bits: int
    group_size: int

    def __post_init__(self) -> None:
        if self.bits not in (4, 8):
            hint = "use 4 or 8 bits"
            raise UsageError("encoding.bits", f"{self.bits} bits of a sparse matrix are not served", hint)
        self.check_group(32, 64, 128, 0)

    @property
    def width(self) -> int:
        """Columns of a block; 1 for `2:4`, whose mask has an element per weight."""
        return {"16x8": 8, "16x4": 4, "2:4": 1}[self.pattern]

    @property
    def height(self) -> int:
        """Rows of a block."""
        return 1 if self.pattern == "2:4" else TILE_ROWS

    @property
    def symmetric_zero(self) -> int:
        return 1 << (self.bits - 1)

    def layout(self, rows: int, columns: int) -> Layout:
        """The parts of a matrix [rows, columns]."""
        if self.pattern == "2:4" and columns % 4:
            hint = "keep this matrix dense, or use blocks"
            raise UsageError("encoding.columns", f"{columns} columns can't be 2:4 sparse", hint)
        return {
            "codes": part_of((rows, columns), np.uint8, self.bits),
            "mask": part_of((block_count(rows, self.height), block_count(columns, self.width)), np.uint8, 1),
            "scales": part_of((rows, self.groups(columns)), np.float16),
        }

    def compact_layout(self, rows: int, columns: int) -> Layout:
        """Codes of kept weights only: [rows, columns / 2] of `2:4`, [kept blocks, 16 * width] of blocks."""
        parts = self.layout(rows, columns)
        kept = (rows, columns // 2) if self.pattern == "2:4" else (ANY, self.height * self.width)
        parts["codes"] = part_of(kept, np.uint8, self.bits)
        return parts

    def compact(self, parts: Parts) -> dict[str, Array]:
        """The parts as they are stored, before packing."""
        codes = np.asarray(parts["codes"], np.uint8)
        (rows, columns), mask = codes.shape, parts["mask"].astype(bool)
        if self.pattern == "2:4":
            return {**parts, "codes": codes[mask].reshape(rows, columns // 2)}
        padding = ((0, mask.shape[0] * self.height - rows), (0, mask.shape[1] * self.width - columns))
        padded = np.pad(codes, padding, constant_values=self.symmetric_zero)
        blocks = padded.reshape(mask.shape[0], self.height, mask.shape[1], self.width).swapaxes(1, 2)
        return {**parts, "codes": blocks[mask].reshape(-1, self.height * self.width)}

    def expand(self, name: str, shape: tuple[int, int], stored: Parts) -> dict[str, Array]:
        """The inverse of `compact`. Raises `EdgeError` for parts that contradict each other."""
        rows, columns = shape
        mask = stored["mask"].astype(bool)
        if mask.sum() * self.height * self.width != stored["codes"].size:
            raise wrong_value(name, "the mask and the codes have different numbers of weights")
        blocks = np.full((*mask.shape, self.height, self.width), self.symmetric_zero, np.uint8)
        blocks[mask] = stored["codes"].reshape(-1, self.height, self.width)
        codes = blocks.swapaxes(1, 2).reshape(mask.shape[0] * self.height, -1)
        return {**stored, "codes": np.ascontiguousarray(codes[:rows, :columns])}

    def check(self, name: str, parts: Parts) -> None:
        """Raise `EdgeError` for a mask that isn't 2:4, and for pruned weights whose code isn't the zero."""
        if self.pattern == "2:4" and (parts["mask"].reshape(-1, 4).astype(np.int64).sum(axis=1) != 2).any():
            raise wrong_value(name, "not every 4 columns keep exactly 2 weights")
        codes = np.asarray(parts["codes"], np.uint8)
        if ((codes != self.symmetric_zero) & ~self.kept(parts)).any():
            raise wrong_value(name, f"a pruned weight has another code than {self.symmetric_zero}")

    def dequantize(self, parts: Parts) -> Floats:
        """The float32 matrix [rows, columns] that the parts stand for; pruned weights are +0."""
        values = parts["codes"].astype(np.float32) - np.float32(self.symmetric_zero)
        values = self.scaled(values, parts["scales"].astype(np.float32))
        values[~self.kept(parts)] = 0
        return values

    def kept(self, parts: Parts) -> NDArray[np.bool_]:
        """The mask by weight, [rows, columns]."""
        rows, columns = parts["codes"].shape
        mask = parts["mask"].astype(bool)
        return np.repeat(np.repeat(mask, self.height, axis=0), self.width, axis=1)[:rows, :columns]

    def __str__(self) -> str:
        return f"sparse{self.bits}-{self.pattern.replace(':', 'of')}{self.group_name}"


class Dense(Whole, msgspec.Struct, frozen=True, tag="dense", tag_field="kind", forbid_unknown_fields=True):
    """Plain floating-point values. Part: `values` [rows, columns]; bfloat16 as uint16 bit patterns."""

    dtype: Literal["float32", "float16", "bfloat16"]

    def layout(self, rows: int, columns: int) -> Layout:
        """The part of a matrix [rows, columns]."""
        return {"values": part_of((rows, columns), "uint16" if self.dtype == "bfloat16" else self.dtype)}

    compact_layout = layout

    def check(self, name: str, parts: Parts) -> None:
        """All values mean something."""

    def dequantize(self, parts: Parts) -> Floats:
        """The float32 matrix [rows, columns] that the part stands for."""
        values = parts["values"]
        if self.dtype == "bfloat16":
            wide = values.astype(np.uint32)
            wide <<= 16  # in place: an embedding's float32 is the largest there is
            return wide.view(np.float32)
        return values.astype(np.float32)

    def __str__(self) -> str:
        return self.dtype


Compressed = Affine | Codebook | GroupMixed | Sparse
Encoding = Compressed | Dense


def check_values(name: str, encoding: Encoding, rows: int, columns: int, parts: Parts) -> None:
    """Raise `EdgeError` for values that a reader could not make sense of: kernels and files rely on it."""
    for key, (_, dtype, bits) in encoding.layout(rows, columns).items():
        if 0 < bits < 8 and int(np.asarray(parts[key], np.uint8).max(initial=0)) >> bits:
            raise wrong_value(name, f"a value of '{key}' needs more than {bits} bits")
        if dtype == np.float16 and not np.isfinite(parts[key].astype(np.float32)).all():
            raise wrong_value(name, f"'{key}' holds NaN or infinite values")
    encoding.check(name, parts)


def _grid_name(grid: Grid) -> str:
    return {"symmetric": "", "zero_point": "z", "half_integer": "h"}[grid]
