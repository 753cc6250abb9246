"""What the benchmark says of each kernel: numbers out of raw samples."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import msgspec

from edge.profiles.peers.matmul.cases import Case
from edge.profiles.statistics import paired_ratio, summarize


class KernelRow(msgspec.Struct, frozen=True):
    """One kernel on one shape. Times are of one product: process CPU time with one thread, wall time with more.

    gops counts what a dense matrix would take (2 m k n), for sparse ones too. peers: medians of every library on this
    shape, in microseconds; best_peer: the fastest with at least as many bits per weight, and ratio_to_best_peer how
    many times as long it takes. Ratios and shares are medians over the rounds, of what ran in the same round.
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
    """What the machine gave in the kernels' rounds, one sample each. int8_gops 0: not known for this CPU."""

    read_gb_per_s: list[float]
    int8_gops: list[float]


class Packed(msgspec.Struct, frozen=True):
    """A packed matrix, and who multiplies by it."""

    kernel: str
    isa: str
    packed_bytes: int


class Peer(msgspec.Struct, frozen=True):
    """Microseconds of one product, one sample a round, and the bits of its weights."""

    bits: int
    times_us: list[float]


def row(case: Case, packed: Packed, times_us: Sequence[float], probes: Probes, peers: Mapping[str, Peer]) -> KernelRow:
    """times_us: of one product, a sample a round; so are the probes' and the peers'."""
    shape, time = case.shape, summarize(times_us)
    operations = 2 * shape.m * shape.k * shape.n
    medians = {name: summarize(peer.times_us).median for name, peer in peers.items()}
    best = best_peer({name: (medians[name], peer.bits) for name, peer in peers.items()}, case.code_bits_per_weight)
    known_peak = min(probes.int8_gops) > 0
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
        median_us=time.median,
        min_us=time.min,
        max_us=time.max,
        gb_per_s=packed.packed_bytes / time.median / 1e3,
        share_of_read_bandwidth=paired_ratio([packed.packed_bytes / us / 1e3 for us in times_us], probes.read_gb_per_s),
        gops=operations / time.median / 1e3,
        share_of_int8_peak=paired_ratio([operations / us / 1e3 for us in times_us], probes.int8_gops)
        if known_peak
        else None,
        samples=time.count,
        peers=medians,
        best_peer=best,
        ratio_to_best_peer=paired_ratio(peers[best].times_us, times_us) if best else None,
    )


def best_peer(peers: Mapping[str, tuple[float, float]], bits_per_weight: float) -> str | None:
    """The fastest that stores at least as many bits per weight, from medians and bits: fewer would be another trade."""
    fair = {name: median for name, (median, bits) in peers.items() if bits >= bits_per_weight}
    return min(fair, key=lambda name: fair[name]) if fair else None
