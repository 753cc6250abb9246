"""Matrices whose groups of columns have either of two widths in bits."""

from __future__ import annotations

from typing import Literal

import msgspec
import numpy as np
from numpy.typing import NDArray

from edge.core.errors import UsageError
from edge.core.parts import TILE_ROWS, Array, Floats, Grouped, Layout, Parts, block_count, part_of, wrong_value

BINARY_STEPS = 32
"""What a binary weight is on the grid that its group would have at 8 bits: between its mean and its largest."""


class GroupMixed(Grouped, msgspec.Struct, frozen=True, tag="group_mixed", tag_field="kind", forbid_unknown_fields=True):
    """Affine at 2 bits, but `high_groups` groups of every 16 rows at 4 bits: the same groups for all 16.

    bits: 2; or 1 for partly binary weights, with `high_groups` at 8 bits. A binary weight is 32 steps of the grid that
    the group would have at 8 bits, up or down: `value = scale * (64 * code - 32)`.
    grid: `symmetric` has the implied zero 2, 8 or 128; `zero_point`, not with 1 bit, stores one per row and group.
    scale: `group` has a float16 scale per row and group; `second_order` has an uint8 there, times a float16 per row.
    Parts: `codes` uint8 [rows, columns], `high` uint8 0 or 1 [ceil(rows / 16), groups], `scales` float16 or uint8
    [rows, groups], `row_scales` float16 [rows, 1], `zero_points` uint8 [rows, groups].
    """

    group_size: int
    high_groups: int
    grid: Literal["symmetric", "zero_point"] = "symmetric"
    scale: Literal["group", "second_order"] = "group"
    bits: int = 2

    def __post_init__(self) -> None:
        self.check_group(32, 64, 128)
        if self.bits not in (1, 2):
            raise UsageError("encoding.bits", f"{self.bits} bits of mixed groups are not served", "use 1 or 2 bits")
        if self.bits == 1 and self.grid != "symmetric":
            raise UsageError("encoding.grid", "binary weights have no zero points", "use the symmetric grid")
        if self.high_groups < 0:
            raise UsageError("encoding.high_groups", f"{self.high_groups} groups at more bits", "use 0 or more")

    @property
    def high_bits(self) -> int:
        return 8 if self.bits == 1 else 4

    def layout(self, rows: int, columns: int) -> Layout:
        """The parts of a matrix [rows, columns]."""
        groups = (rows, self.groups(columns))
        if self.high_groups > groups[1]:
            message = f"{self.high_groups} groups at {self.high_bits} bits are asked for in a row of {groups[1]}"
            raise UsageError("encoding.high_groups", message, f"use at most {groups[1]} for {columns} columns")
        second_order = self.scale == "second_order"
        parts = {
            "codes": part_of((rows, columns), np.uint8, self.high_bits),
            "high": part_of((block_count(rows, TILE_ROWS), groups[1]), np.uint8, 1),
            "scales": part_of(groups, np.uint8 if second_order else np.float16),
        }
        if second_order:
            parts["row_scales"] = part_of((rows, 1), np.float16)
        if self.grid == "zero_point":
            parts["zero_points"] = part_of(groups, np.uint8, self.high_bits)
        return parts

    def compact_layout(self, rows: int, columns: int) -> Layout:
        """Codes at the low bits, and for the groups at more bits the upper ones apart."""
        parts = self.layout(rows, columns)
        parts["codes"] = part_of((rows, columns), np.uint8, self.bits)
        parts["high_codes"] = part_of((rows, self.high_groups * self.group_size), np.uint8, self.high_bits - self.bits)
        return parts

    def compact(self, parts: Parts) -> dict[str, Array]:
        """The parts as they are stored, before packing."""
        codes = np.asarray(parts["codes"], np.uint8)
        rows, groups = codes.shape[0], parts["high"].shape[1]
        upper = np.zeros((rows, groups * self.group_size), np.uint8)
        upper[:, : codes.shape[1]] = codes >> self.bits
        kept = upper.reshape(rows, groups, self.group_size)[self.high_by_row(parts["high"], rows)]
        high_codes = kept.reshape(rows, self.high_groups * self.group_size)
        return {**parts, "codes": codes & (1 << self.bits) - 1, "high_codes": high_codes}

    def expand(self, name: str, shape: tuple[int, int], stored: Parts) -> dict[str, Array]:
        """The inverse of `compact`. Raises `EdgeError` for parts that contradict each other."""
        rows, columns = shape
        self._check_high(name, stored)
        upper = np.zeros((rows, stored["high"].shape[1], self.group_size), np.uint8)
        upper[self.high_by_row(stored["high"], rows)] = stored["high_codes"].reshape(-1, self.group_size)
        parts = dict(stored)
        del parts["high_codes"]
        parts["codes"] = np.asarray(stored["codes"], np.uint8) | upper.reshape(rows, -1)[:, :columns] << self.bits
        return parts

    def check(self, name: str, parts: Parts) -> None:
        """Raise `EdgeError` for a wrong number of groups at more bits, or a value that doesn't fit its group's bits."""
        self._check_high(name, parts)
        codes = np.asarray(parts["codes"], np.uint8)
        low = ~self.high_by_row(parts["high"], codes.shape[0])
        for group, columns in enumerate(self.slices(codes.shape[1])):
            wide = codes[:, columns].max(axis=1, initial=0) >> self.bits
            if (wide[low[:, group]]).any():
                raise wrong_value(name, f"a code of a group at {self.bits} bits needs more")
        if self.grid == "zero_point" and (np.asarray(parts["zero_points"], np.uint8)[low] >> self.bits).any():
            raise wrong_value(name, f"a zero point of a group at {self.bits} bits needs more")

    def _check_high(self, name: str, parts: Parts) -> None:
        if (np.asarray(parts["high"], np.int64).sum(axis=1) != self.high_groups).any():
            wanted = f"{self.high_groups} groups at {self.high_bits} bits"
            raise wrong_value(name, f"{TILE_ROWS} rows have more or fewer than {wanted}")

    def dequantize(self, parts: Parts) -> Floats:
        """The float32 matrix [rows, columns] that the parts stand for."""
        codes = parts["codes"].astype(np.float32)
        high = self.high_by_row(parts["high"], len(codes))
        zeros = np.where(high, 1 << (self.high_bits - 1), BINARY_STEPS if self.bits == 1 else 2)
        if self.grid == "zero_point":
            zeros = parts["zero_points"]
        if self.bits == 1:
            codes = self.scaled(codes, np.where(high, 1, 2 * BINARY_STEPS).astype(np.float32))
        scales = parts["scales"].astype(np.float32)
        if self.scale == "second_order":
            scales *= parts["row_scales"].astype(np.float32)
        return self.scaled(self.centred(codes, zeros.astype(np.float32)), scales)

    @staticmethod
    def high_by_row(high: Array, rows: int) -> NDArray[np.bool_]:
        """Which groups are at more bits, [rows, groups]."""
        return np.repeat(high.astype(bool), TILE_ROWS, axis=0)[:rows]

    def __str__(self) -> str:
        zeros, second_order = "z" if self.grid == "zero_point" else "", "s" if self.scale == "second_order" else ""
        return f"mixed{self.bits}{self.group_name}{zeros}{second_order}+{self.high_groups}"
