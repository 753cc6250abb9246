"""Matrices of one shape and encoding as one tall matrix: an accelerator then starts a few kernels for all of them.

Rows have scales of their own and tables serve rows that lie together, so that nothing is shared but the work.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import msgspec
import numpy as np

from edge.core.encoding import Encoding
from edge.core.weight import Affine, Codebook, CompressedTensor


@dataclass(frozen=True)
class Member:
    """What a matrix is called by itself, its shape [rows, columns] and its encoding."""

    name: str
    shape: tuple[int, int]
    encoding: Encoding


def alike(
    tensors: Iterable[CompressedTensor], kinds: Mapping[str, Hashable], most: int
) -> Iterator[list[CompressedTensor]]:
    """Groups of matrices that can be joined, of one kind, with `most` weights together unless one alone has more."""
    groups: dict[Hashable, list[CompressedTensor]] = {}
    for tensor in tensors:
        key = (tensor.shape, tensor.encoding, kinds.get(tensor.name)) if _joins(tensor) else tensor.name
        group = groups.setdefault(key, [])
        if group and (len(group) + 1) * tensor.shape[0] * tensor.shape[1] > most:
            yield groups.pop(key)
            group = groups.setdefault(key, [])
        group.append(tensor)
    yield from groups.values()


def join(tensors: Sequence[CompressedTensor]) -> CompressedTensor:
    """The tall matrix, under the first one's name."""
    first = tensors[0]
    if len(tensors) == 1:
        return first
    (rows, columns), encoding = first.shape, first.encoding
    if isinstance(encoding, Codebook):
        encoding = msgspec.structs.replace(encoding, table_rows=encoding.table_rows or rows)
    parts = {part: np.concatenate([tensor.parts[part] for tensor in tensors]) for part in first.parts}
    return CompressedTensor(first.name, (rows * len(tensors), columns), encoding, parts)


def split(tall: CompressedTensor, members: Sequence[Member]) -> list[CompressedTensor]:
    """The inverse of `join`."""
    parts = {part: np.split(values, len(members)) for part, values in tall.parts.items()}
    return [
        CompressedTensor(member.name, member.shape, member.encoding, {part: some[i] for part, some in parts.items()})
        for i, member in enumerate(members)
    ]


def _joins(tensor: CompressedTensor) -> bool:
    rows, encoding = tensor.shape[0], tensor.encoding
    if isinstance(encoding, Codebook):
        return rows % 4 == 0 and rows % (encoding.table_rows or rows) == 0
    return isinstance(encoding, Affine)
