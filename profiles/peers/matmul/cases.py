"""The rows of the benchmark: which matrices, in which encodings, for how many tokens."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatch

import numpy as np

from edge.core.errors import UsageError
from edge.core.weight import Affine, Codebook, Compressed, CompressedTensor, GroupMixed, Sparse
from edge.kernels.testing import random_tensor
from edge.profiles.peers.matmul import Shape

LARGE, SMALL = (2048, 8192), (576, 1536)  # columns and rows
BATCHES = (2, 3, 4, 6, 8)
THREADS = (1, 2)
FOUR, THREE, TWO = Affine(4, 64), Affine(3, 64), Affine(2, 64)


@dataclass(frozen=True)
class Case:
    """One row. isa: a forced instruction set, "" for the best. density: share of the blocks that are kept."""

    encoding: Compressed
    shape: Shape
    threads: int = 1
    activations: str = "a8"
    isa: str = ""
    density: float = 1.0

    @property
    def name(self) -> str:
        """What `--filter` matches: encoding, how it is run, columns x rows, tokens, threads."""
        density = f"-{round(100 * (1 - self.density))}" if self.density < 1 else ""
        run = "".join(f"-{part}" for part in (self.isa, self.activations if self.activations != "a8" else "") if part)
        shape = self.shape
        return f"{self.encoding}{density}{run}_{shape.k}x{shape.n}_m{shape.m}_t{self.threads}"

    @property
    def bits(self) -> int:
        """Bits of a stored code; of most codes where they differ."""
        return self.encoding.bits

    @property
    def code_bits_per_weight(self) -> float:
        """What decides which peers are of its kind."""
        return self.bits / self.encoding.dim if isinstance(self.encoding, Codebook) else self.bits

    def tensor(self) -> CompressedTensor:
        """A random matrix of this encoding and density."""
        tensor = random_tensor(self.shape.n, self.shape.k, self.encoding)
        if not isinstance(self.encoding, Sparse) or self.encoding.pattern == "2:4":
            return tensor
        mask = np.random.default_rng(0).random(tensor.parts["mask"].shape) < self.density
        parts = {**tensor.parts, "mask": mask.astype(np.uint8)}
        codes = np.random.default_rng(1).integers(0, 1 << self.bits, tensor.shape, dtype=np.uint8)
        kept = self.encoding.kept(parts)
        return replace(tensor, parts={**parts, "codes": np.where(kept, codes, self.encoding.symmetric_zero)})


def all_cases(threads: Sequence[int] = THREADS) -> list[Case]:
    """Every row, those of one shape and thread count together."""
    cases = [replace(case, threads=count) for count in threads for case in _cases()]
    return sorted(cases, key=lambda case: (case.threads, case.shape))


def select(pattern: str | None, threads: Sequence[int] = THREADS) -> list[Case]:
    """The rows whose names match the pattern of a shell. Raises `UsageError` where none does."""
    cases = all_cases(threads)
    chosen = [case for case in cases if fnmatch(case.name, pattern or "*")]
    if not chosen:
        hint = f"names are like '{cases[0].name}': --filter '{cases[0].encoding}*'"
        raise UsageError("bench.filter", f"no row is called '{pattern}'", hint)
    return chosen


def _cases() -> Iterator[Case]:
    yield from _decode()
    for m in BATCHES:
        yield from (Case(encoding, Shape(m, *LARGE)) for encoding in (FOUR, THREE, TWO, Codebook(4)))
    prefill = Shape(128, *LARGE)
    tables = (Codebook(4), Codebook(3), Codebook(2), Codebook(4, entry="int16"))
    yield from (Case(encoding, prefill) for encoding in (FOUR, THREE, TWO, Affine(8, 64), *tables))
    yield Case(FOUR, prefill, isa="avx2")
    for m in (8, 64):
        yield from _block_sparse(Shape(m, *LARGE))
    yield Case(FOUR, Shape(64, *LARGE))
    yield from (Case(encoding, Shape(1, *SMALL)) for encoding in (FOUR, THREE, TWO, Codebook(4)))


def _decode() -> Iterator[Case]:
    """One token, the large matrix, every encoding."""
    shape = Shape(1, *LARGE)
    affine = (FOUR, THREE, TWO, Affine(8, 64), Affine(4, 32, "zero_point"), Affine(2, 128))
    half = (Affine(4, 64, "half_integer"), Affine(2, 64, "half_integer"))
    tables = (Codebook(4), Codebook(3), Codebook(2), Codebook(4, entry="int16"), Codebook(4, dim=2))
    more_tables = (Codebook(4, table_rows=4), Codebook(2, table_rows=1), Codebook(4, table_columns=256))
    others = (GroupMixed(64, LARGE[0] // 64 // 4), Sparse("2:4", 4, 64))
    yield from (Case(encoding, shape) for encoding in (*affine, *half, *tables, *more_tables, *others))
    yield from _block_sparse(shape)
    yield from (Case(Sparse("16x8", 4, 128), shape, density=density) for density in (0.25, 0.1))
    yield Case(Sparse("16x4", 4, 64), shape, density=0.25)
    yield Case(FOUR, shape, isa="avx2")
    yield from (Case(encoding, shape, activations="f32") for encoding in (FOUR, Codebook(4)))


def _block_sparse(shape: Shape) -> Iterator[Case]:
    for pruned in (50, 75, 90):
        yield Case(Sparse("16x8", 4, 64), shape, density=1 - pruned / 100)
