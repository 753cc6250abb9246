"""What every encoding is made of: parts with a shape, a type and a width in bits; groups of columns."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import NamedTuple

import numpy as np
from numpy.typing import DTypeLike, NDArray

from edge.core.errors import EdgeError, UsageError

Array = NDArray[np.generic]
Parts = Mapping[str, Array]
Floats = NDArray[np.float32]
ANY = -1
"""A dimension of a compact part that depends on the data."""
TILE_ROWS = 16
"""Rows that share what block-sparse and group-mixed encodings decide by block: a tile of the kernels."""


class Part(NamedTuple):
    """Shape and type of a part. bits: what each of its values is stored at; 0: as it is."""

    shape: tuple[int, ...]
    dtype: np.dtype[np.generic]
    bits: int = 0

    def packed(self) -> Part:
        """The part as it is stored: codes as a bit stream per row."""
        if not self.bits:
            return self
        return Part((*self.shape[:-1], packed_bytes(self.shape[-1], self.bits)), np.dtype(np.uint8))

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


Layout = dict[str, Part]


def packed_bytes(count: int, bits: int) -> int:
    """Bytes of `count` codes of `bits` bits as one little-endian bit stream."""
    return (count * bits + 7) // 8


def part_of(shape: tuple[int, ...], dtype: DTypeLike, bits: int = 0) -> Part:
    """A part by anything that NumPy takes for a type."""
    return Part(shape, np.dtype(dtype), bits)


class Grouped:
    """What encodings with a scale per row and group of columns share. group_size 0: the whole row is one group."""

    __slots__ = ()
    group_size: int

    def groups(self, columns: int) -> int:
        """Number of groups in a row of `columns`; the last may be short."""
        return block_count(columns, self.group_size)

    def slices(self, columns: int) -> Iterator[slice]:
        """The columns of each group."""
        for group in range(self.groups(columns)):
            yield slice(group * self.group_size, (group + 1) * self.group_size if self.group_size else columns)

    def scaled(self, values: Floats, scales: Floats) -> Floats:
        """values [rows, columns] times scales [rows, groups], in place."""
        for group, columns in enumerate(self.slices(values.shape[1])):
            values[:, columns] *= scales[:, group, None]
        return values

    def centred(self, codes: Array, zeros: Floats) -> Floats:
        """codes [rows, columns] less zeros [rows, groups]: exact."""
        values = codes.astype(np.float32)
        for group, columns in enumerate(self.slices(values.shape[1])):
            values[:, columns] -= zeros[:, group, None]
        return values

    def check_group(self, *served: int) -> None:
        """Raise `UsageError` for a group size that is not among `served`."""
        if self.group_size not in served:
            sizes = ", ".join(str(size) for size in served if size)
            hint = f"use {sizes}" + (", or 0 for the whole row" if 0 in served else "")
            message = f"a group of {self.group_size} columns is not served"
            raise UsageError("encoding.group", message, hint)

    @property
    def group_name(self) -> str:
        """The group in an encoding's name."""
        return "row" if self.group_size == 0 else f"g{self.group_size}"


class Whole:
    """What encodings share whose compact form is their parts."""

    __slots__ = ()

    def compact(self, parts: Parts) -> dict[str, Array]:
        """The parts as they are stored, before packing."""
        return dict(parts)

    def expand(self, name: str, shape: tuple[int, int], stored: Parts) -> dict[str, Array]:
        """The inverse of `compact`. Raises `EdgeError` for parts that contradict each other."""
        return dict(stored)


def wrong_value(name: str, what: str) -> EdgeError:
    """The error for a part whose values mean nothing."""
    return EdgeError("tensor.value", f"{name}: {what}", "the file is damaged: compress the model again")


def block_count(count: int, size: int) -> int:
    """Blocks of `size` in `count`; 0 means that one block is all."""
    return -(-count // size) if size else 1
