"""What matrix products of one token take: from `edge bench kernels`, or from the bytes that they read.

A decode step reads every weight once, so that a product's time grows with the matrix: the time of a row of the
benchmark, by its weights, is taken for matrices of the same encoding, from the row that is nearest in size. Where the
benchmark has no row for an encoding, its bytes are divided by the bandwidth that the other kernels reach.
"""

from __future__ import annotations

import math
from pathlib import Path
from statistics import median
from typing import Literal

import msgspec

from edge.core.errors import UsageError
from edge.core.weight import Encoding


class Row(msgspec.Struct, frozen=True):
    """What is needed of a row of `edge bench kernels`; a name starts with the encoding's."""

    name: str
    activations: Literal["a8", "f32"]
    m: int
    k: int
    n: int
    threads: int
    median_us: float
    gb_per_s: float


class _Bench(msgspec.Struct, frozen=True):
    rows: list[Row]


class KernelTimes:
    """Times of the products of one token with `threads` threads.

    by_bandwidth: encodings that were asked for and had no row.
    """

    def __init__(self, rows: list[Row], gb_per_s: float) -> None:
        self._rows, self.gb_per_s = rows, gb_per_s
        self.by_bandwidth: set[str] = set()

    def nanoseconds(self, encoding: Encoding, stored_bytes: int, shape: tuple[int, int]) -> int:
        """Of one product with a matrix [rows, columns]."""
        weights = shape[0] * shape[1]
        rows = [row for row in self._rows if row.name.partition("_")[0].partition("-")[0] == str(encoding)]
        if not rows:
            self.by_bandwidth.add(str(encoding))
            return round(stored_bytes / self.gb_per_s)
        nearest = min(rows, key=lambda row: abs(math.log(row.k * row.n / weights)))
        return round(1e3 * nearest.median_us * weights / (nearest.k * nearest.n))


def kernel_times(path: str | None, gb_per_s: float | None, threads: int, activations: str) -> KernelTimes:
    """From a file of `edge bench kernels`, written by `--output` or `--json`. gb_per_s goes before its bandwidth."""
    if path is None:
        return KernelTimes([], gb_per_s or 0.0)
    rows = [row for row in _read(path) if (row.m, row.threads, row.activations) == (1, threads, activations)]
    # A forced instruction set is in the name, `affine4g64-avx2_...`: only what runs by itself counts.
    plain = {"", "f32"}
    rows = [row for row in rows if row.name.partition("_")[0].partition("-")[2] in plain]
    if not rows:
        hint = f"edge bench kernels --threads {threads} --filter '*_m1_*' -o {path}"
        message = f"{path} has no row of one token, {threads} threads and {activations} activations"
        raise UsageError("allocate.kernels", message, hint)
    return KernelTimes(rows, gb_per_s or median(row.gb_per_s for row in rows))


def _read(path: str) -> list[Row]:
    try:
        raw = Path(path).read_bytes()
        bench = raw.lstrip().startswith(b"{")
        return msgspec.json.decode(raw, type=_Bench).rows if bench else msgspec.json.decode(raw, type=list[Row])
    except (OSError, msgspec.DecodeError) as error:
        hint = "make it with `edge bench kernels -o FILE` on the device"
        raise UsageError("allocate.kernels", f"can't read kernel times from {path}: {error}", hint) from error
