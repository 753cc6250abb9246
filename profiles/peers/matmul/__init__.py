"""Matrix products of edge's kernels and of other libraries, in turns in one process, with weights that no cache holds.

One file adds one library: it lists its variants and opens each of them as a `Contender`.
"""

from __future__ import annotations

import mmap
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

COLD_BYTES = 168_000_000
"""Weights of each contender: several times the last-level cache, so that every product reads its matrix from memory."""


@dataclass(frozen=True, order=True)
class Shape:
    """x [m, k] times a matrix [n, k] transposed."""

    m: int
    k: int
    n: int

    def matrices(self, matrix_bytes: float, cold_bytes: int) -> int:
        """How many matrices of so many bytes exceed the cold size."""
        return max(1, -(-cold_bytes // int(matrix_bytes)))

    def activations(self) -> NDArray[np.float32]:
        """Random x [m, k], the same for all."""
        return np.random.default_rng(0).standard_normal((self.m, self.k)).astype(np.float32)


class Contender(Protocol):
    """`run` makes one product with each of `matrices` equal matrices of different memory."""

    matrices: int

    def run(self) -> None: ...


@dataclass
class Pass:
    """A contender from a function."""

    matrices: int
    run: Callable[[], object]


Variants = Mapping[str, int]
"""What a library offers, by name, with the bits of its weights: 32 is float."""


class Missing(Exception):
    """This library or this variant isn't here; the message says why."""


def cold_memory(size: int) -> NDArray[np.uint8]:
    """Zeroed bytes from a page's start on, in huge pages where the system gives them."""
    memory = mmap.mmap(-1, size)
    if hasattr(mmap, "MADV_HUGEPAGE"):
        memory.madvise(mmap.MADV_HUGEPAGE)
    return np.frombuffer(memory, np.uint8)
