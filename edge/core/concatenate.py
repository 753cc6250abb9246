"""Matrices with the same input as one matrix, rows one below the other."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from edge.core.encoding import TILE_ROWS, Codebook, Encoding, GroupMixed, Sparse
from edge.core.weight import Array, CompressedTensor


def concatenate_rows(name: str, tensors: Sequence[CompressedTensor]) -> CompressedTensor | None:
    """One tensor called `name` that dequantizes to the rows of all `tensors` in order; a single one is left as it is.

    None where no encoding can say that: encodings or columns differ, or a block of rows would span two tensors.
    """
    first = tensors[0]
    if len(tensors) == 1:
        return first
    encoding = first.encoding
    if any((t.encoding, t.shape[1]) != (encoding, first.shape[1]) for t in tensors):
        return None
    if isinstance(encoding, Codebook):
        return _codebooks(name, encoding, tensors)
    if any(t.shape[0] % _rows_of_a_block(encoding) for t in tensors[:-1]):
        return None
    return _stacked(name, encoding, tensors)


def _codebooks(name: str, encoding: Codebook, tensors: Sequence[CompressedTensor]) -> CompressedTensor | None:
    """With the tables that all rows share where they are the same, else with tables for as many rows as fit all."""
    tables = tensors[0].parts["tables"]
    if encoding.table_rows == 0 and all(np.array_equal(t.parts["tables"], tables) for t in tensors):
        return _stacked(name, encoding, tensors, tables=tables)
    table_rows = math.gcd(encoding.table_rows, *(t.shape[0] for t in tensors[:-1]))
    if table_rows % 4 and encoding.table_rows != 1:  # a table per row would serve, but slowly
        return None
    shared = [encoding.share_tables(t.parts, table_rows) for t in tensors]
    tables = np.concatenate([own for _, own in shared])
    return _stacked(name, shared[0][0], tensors, tables=tables)


def _stacked(name: str, encoding: Encoding, tensors: Sequence[CompressedTensor], **other: Array) -> CompressedTensor:
    """Every part stacked, but for `other`."""
    parts = {part: np.concatenate([t.parts[part] for t in tensors]) for part in tensors[0].parts if part not in other}
    shape = (sum(t.shape[0] for t in tensors), tensors[0].shape[1])
    return CompressedTensor(name, shape, encoding, {**parts, **other})


def _rows_of_a_block(encoding: Encoding) -> int:
    if isinstance(encoding, GroupMixed):
        return TILE_ROWS
    return encoding.height if isinstance(encoding, Sparse) else 1
