"""`edge bench kernels`: every shape and thread count in a process of its own, so that no engine is left to another."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import groupby

import msgspec

from edge.core.console import info, progress
from edge.core.files import SCHEMA
from edge.profiles.fingerprint import fingerprint
from edge.profiles.peers.apart import Worker
from edge.profiles.peers.matmul import COLD_BYTES
from edge.profiles.peers.matmul.cases import Case
from edge.profiles.peers.matmul.rows import KernelRow, Probes
from edge.profiles.peers.matmul.worker import Answer, Request

WORKER = "edge.profiles.peers.matmul.worker"
# glibc's large allocations ask for huge pages: the peers' weights lie as ours do.
ENVIRONMENT = {"GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"}
QUICK_COLD_BYTES, QUICK_SECONDS, SECONDS = 48_000_000, 0.3, 8.0


class KernelBench(msgspec.Struct, frozen=True):
    """Rows; by shape and threads what the machine gave and every sample, in microseconds of one product; what was left
    out and why."""

    device: dict[str, object]
    cold_bytes: int
    seconds: float
    rows: list[KernelRow]
    probes: dict[str, Probes]
    samples_us: dict[str, dict[str, list[float]]]
    missing: list[str]
    schema: int = SCHEMA


def bench(
    cases: Sequence[Case], *, peers: bool = True, seconds: float = SECONDS, cold_bytes: int = COLD_BYTES
) -> KernelBench:
    """Time the cases. seconds: for each shape and thread count, beside what it takes to build the matrices.

    Raises `EdgeError` where a measured process dies.
    """
    rows: list[KernelRow] = []
    probes: dict[str, Probes] = {}
    samples: dict[str, dict[str, list[float]]] = {}
    missing: list[str] = []
    groups = [list(group) for _, group in groupby(cases, lambda case: (case.threads, case.shape))]
    with progress("kernels", len(groups)) as tick:
        for group in groups:
            done = 0.0
            for answer in _measure(group, peers=peers, seconds=seconds, cold_bytes=cold_bytes):
                step = min(answer.progress, 1 - done)
                done += step
                tick(step, answer.note)
                rows += answer.rows
                if answer.probes is not None:
                    probes[_label(group[0])] = answer.probes
                    samples[_label(group[0])] = answer.samples_us
                if answer.missing and answer.missing not in missing:
                    missing.append(answer.missing)
                    info(f"left out: {answer.missing}")
            tick(1 - done, _label(group[0]))
    return KernelBench(fingerprint(), cold_bytes, seconds, rows, probes, samples, missing)


def _measure(group: Sequence[Case], *, peers: bool, seconds: float, cold_bytes: int) -> Iterator[Answer]:
    request = Request([case.name for case in group], group[0].threads, peers, seconds, cold_bytes)
    with Worker(WORKER, ENVIRONMENT) as worker:
        for value in worker.ask(msgspec.to_builtins(request)):
            yield msgspec.convert(value, Answer)


def _label(case: Case) -> str:
    return f"{case.shape.k}x{case.shape.n} m{case.shape.m} t{case.threads}"
