"""What the benchmark says of each kernel: numbers out of raw samples."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from edge.profiles.peers.matmul.cases import Case
from edge.profiles.statistics import Summary, summarize


class KernelRow(msgspec.Struct, frozen=True):
    """One kernel on one shape. Times are of one product: process CPU time with one thread, wall time with more.

    gops counts what a dense matrix would take (2 m k n), for sparse ones too. peers: medians of every library on this
    shape, in microseconds; best_peer: the fastest with at least as many bits per weight, and ratio_to_best_peer how
    many times as long it takes. Shares are of what the same run measured, null where it can't be measured.
    """

    name: str
    kernel: str
    encoding: str
    bits: int
    group_size: int
    bits_per_weight: float
    activations: str
    isa: str
    m: int
    k: int
    n: int
    threads: int
    median_us: float
    min_us: float
    max_us: float
    gb_per_s: float
    share_of_read_bandwidth: float
    gops: float
    share_of_int8_peak: float | None
    samples: int
    peers: dict[str, float]
    best_peer: str | None
    ratio_to_best_peer: float | None


class Probes(msgspec.Struct, frozen=True):
    """What the machine gave between the kernels' turns. int8_gops 0: not known for this CPU."""

    read_gb_per_s: Summary
    int8_gops: float


class Packed(msgspec.Struct, frozen=True):
    """A packed matrix, and who multiplies by it."""

    kernel: str
    isa: str
    packed_bytes: int


def row(
    case: Case, packed: Packed, times_us: Summary, probes: Probes, peers: Mapping[str, tuple[float, float]]
) -> KernelRow:
    """peers: median microseconds and bits of the weights, by name."""
    shape = case.shape
    gb_per_s = packed.packed_bytes / times_us.median / 1e3
    gops = 2 * shape.m * shape.k * shape.n / times_us.median / 1e3
    best = best_peer(peers, case.code_bits_per_weight)
    return KernelRow(
        name=case.name,
        kernel=packed.kernel,
        encoding=str(msgspec.to_builtins(case.encoding)["kind"]),
        bits=case.bits,
        group_size=case.encoding.group_size,
        bits_per_weight=8 * packed.packed_bytes / (shape.k * shape.n),
        activations=case.activations,
        isa=packed.isa,
        m=shape.m,
        k=shape.k,
        n=shape.n,
        threads=case.threads,
        median_us=times_us.median,
        min_us=times_us.min,
        max_us=times_us.max,
        gb_per_s=gb_per_s,
        share_of_read_bandwidth=gb_per_s / probes.read_gb_per_s.median,
        gops=gops,
        share_of_int8_peak=gops / probes.int8_gops if probes.int8_gops else None,
        samples=times_us.count,
        peers={name: median for name, (median, _) in peers.items()},
        best_peer=best,
        ratio_to_best_peer=peers[best][0] / times_us.median if best else None,
    )


def best_peer(peers: Mapping[str, tuple[float, float]], bits_per_weight: float) -> str | None:
    """The fastest that stores at least as many bits per weight: fewer would be another trade."""
    fair = {name: median for name, (median, bits) in peers.items() if bits >= bits_per_weight}
    return min(fair, key=lambda name: fair[name]) if fair else None


def product_us(passes_ns: list[int], matrices: int) -> Summary:
    """Microseconds of one product, from passes over all matrices."""
    return summarize([ns / matrices / 1e3 for ns in passes_ns])
