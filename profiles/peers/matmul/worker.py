"""The process that is measured: the rows of one shape and thread count, with all peers on that shape, in turns."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib import import_module
from typing import Any

import msgspec

from edge.core.errors import EdgeError
from edge.kernels import lib, pack
from edge.profiles.peers.apart import serve
from edge.profiles.peers.matmul import Contender, Missing, Shape, native
from edge.profiles.peers.matmul.cases import Case, select
from edge.profiles.peers.matmul.rows import KernelRow, Packed, Peer, Probes, row

LIBRARIES = ("onnxruntime", "openvino", "ggml", "torch")
LEAST_ROUNDS = 5
SETTLE_S = 0.003  # threads of the one before may still spin, and would take the core from the next
READ, INT8 = "memory", "int8"


class Request(msgspec.Struct, frozen=True):
    """Names of rows, all of one shape and thread count; seconds to time them in."""

    names: list[str]
    threads: int
    peers: bool
    seconds: float
    cold_bytes: int


class Answer(msgspec.Struct, frozen=True):
    """Part of the work done; at the end the rows, and in between a reason why something is left out."""

    progress: float = 0.0
    note: str = ""
    missing: str = ""
    rows: list[KernelRow] = []
    probes: Probes | None = None
    samples_us: dict[str, list[float]] = {}


def handle(raw: Any) -> Iterator[Any]:
    """Build every contender, time them in turns, make the rows."""
    for answer in _answers(msgspec.convert(raw, Request)):
        yield msgspec.to_builtins(answer)


def _answers(request: Request) -> Iterator[Answer]:
    cases = {case.name: case for case in select(None, [request.threads]) if case.name in request.names}
    shape = next(iter(cases.values())).shape
    contenders: dict[str, Contender] = {}
    contenders[READ], read_bytes = native.reader(request.threads, request.cold_bytes)
    contenders[INT8], int8_operations = native.multiplier(request.threads)
    packed: dict[str, Packed] = {}
    for name, case in cases.items():
        try:
            packed[name], contenders[name] = _kernel(case, request.cold_bytes)
        except EdgeError as error:
            yield Answer(missing=f"{name}: {error.message}")
        yield Answer(progress=0.3 / len(cases), note=name)
    peer_bits = {}
    for name, bits, opened in _peers(shape, request) if request.peers else ():
        if isinstance(opened, str):
            yield Answer(missing=opened)
        else:
            contenders[name], peer_bits[name] = opened, bits
            yield Answer(progress=0.02, note=name)
    settle = SETTLE_S if request.threads > 1 else 0.0
    clock = time.process_time_ns if request.threads == 1 else time.perf_counter_ns
    passes = in_turns(contenders, request.seconds, clock, settle)
    times = {name: [ns / contenders[name].matrices / 1e3 for ns in taken] for name, taken in passes.items()}
    read, int8 = times.pop(READ), times.pop(INT8)
    probes = Probes([read_bytes / us / 1e3 for us in read], [int8_operations / us / 1e3 for us in int8])
    peers = {name: Peer(bits, times[name]) for name, bits in peer_bits.items()}
    rows = [row(cases[name], packed[name], times[name], probes, peers) for name in packed]
    yield Answer(rows=rows, probes=probes, samples_us=times)


def _kernel(case: Case, cold_bytes: int) -> tuple[Packed, Contender]:
    """Raises `EdgeError` for an instruction set or an encoding that isn't served here."""
    if case.isa and case.isa not in lib.isas():
        raise EdgeError("bench.isa", f"this CPU has no {case.isa}")
    blob = pack(case.tensor())
    activations: Any = case.activations
    kernel = lib.kernel_name(blob, case.isa or None, activations)
    isa = next(entry.isa for entry in lib.kernels() if entry.name == kernel)
    mode = (case.activations, case.isa)
    contender = native.linear(blob, case.shape.n, case.shape, case.threads, cold_bytes, mode)
    return Packed(kernel, isa, int(blob.size)), contender


def _peers(shape: Shape, request: Request) -> Iterator[tuple[str, int, Contender | str]]:
    """Each library's variants, opened, or the reason why one can't be; a reason is said once."""
    said = set()
    for library in LIBRARIES:
        module = import_module(f"edge.profiles.peers.matmul.{library}")
        for name, bits in module.VARIANTS.items():
            try:
                yield name, bits, module.open(name, shape, request.threads, request.cold_bytes)
            except Missing as reason:
                if str(reason) not in said:
                    yield name, bits, str(reason)
                said.add(str(reason))


def in_turns(
    contenders: Mapping[str, Contender],
    seconds: float,
    clock: Callable[[], int],
    settle_s: float = 0.0,
    least_rounds: int = LEAST_ROUNDS,
) -> dict[str, list[int]]:
    """Ticks of the clock for each pass. Every round runs all, in an order that turns over; the first warms up."""
    passes: dict[str, list[int]] = {name: [] for name in contenders}
    order: Sequence[str] = list(contenders)
    gc.collect()
    gc.disable()  # a collection would be charged to whoever runs
    try:
        for contender in contenders.values():
            contender.run()
        end = time.perf_counter() + seconds
        while len(passes[order[0]]) < least_rounds or time.perf_counter() < end:
            for name in order:
                time.sleep(settle_s)
                start = clock()
                contenders[name].run()
                passes[name].append(clock() - start)
            order = order[::-1]
    finally:
        gc.enable()
    return passes


if __name__ == "__main__":
    serve(handle)
