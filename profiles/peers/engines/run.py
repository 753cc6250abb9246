"""`edge bench peers`: every engine and format takes its turn in every round; ratios are taken round by round."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from fnmatch import fnmatch
from importlib import import_module
from pathlib import Path

import msgspec

from edge.core.console import info, progress
from edge.core.errors import EdgeError, UsageError
from edge.core.files import SCHEMA
from edge.models.checkpoint import open_checkpoint
from edge.profiles.fingerprint import fingerprint
from edge.profiles.peers.apart import Worker
from edge.profiles.peers.engines import ENGINES, OURS, Model
from edge.profiles.peers.engines.models import prepare_model
from edge.profiles.peers.engines.worker import Opening, Times, Turn
from edge.profiles.statistics import paired_ratio, summarize

WORKER = "edge.profiles.peers.engines.worker"
CONTEXT = 1024


class PeerRow(msgspec.Struct, frozen=True):
    """One engine and format. Speeds are medians over the rounds: by process CPU time with one thread (clock `cpu`), by
    wall time with more; those by wall time follow. Ratios are medians of the rounds' ratios to the peer, not ours, that
    is fastest at it.
    """

    engine: str
    format: str
    threads: int
    stored_bytes: int
    clock: str
    prefill_tokens_per_s: float
    prefill_tokens_per_s_min: float
    prefill_tokens_per_s_max: float
    decode_tokens_per_s: float
    decode_tokens_per_s_min: float
    decode_tokens_per_s_max: float
    prefill_tokens_per_wall_s: float
    decode_tokens_per_wall_s: float
    ratio_to_best_peer: float | None
    best_peer: str | None
    prefill_ratio_to_best_peer: float | None
    best_prefill_peer: str | None


class Entry(msgspec.Struct, frozen=True):
    """What runs: files of one engine and format."""

    engine: str
    format: str
    path: Path

    @property
    def name(self) -> str:
        return f"{self.engine} {self.format}"

    @property
    def stored_bytes(self) -> int:
        """Bytes of the model's files: weights and graph."""
        weights = (".gguf", ".onnx", ".data", ".bin", ".pte")
        files = [self.path] if self.path.is_file() else self.path.rglob("*")
        return sum(file.stat().st_size for file in files if file.suffix in weights)


class Protocol(msgspec.Struct, frozen=True):
    """Tokens of each turn, and rounds that count; one more warms up."""

    prompt_tokens: int = 512
    generated_tokens: int = 64
    rounds: int = 7


class PeerBench(msgspec.Struct, frozen=True):
    """Rows and the raw samples behind them: by threads, then by engine and format."""

    model: str
    device: dict[str, object]
    protocol: Protocol
    rows: list[PeerRow]
    samples: dict[str, dict[str, list[Times]]]
    missing: list[str]
    schema: int = SCHEMA


def bench(model_name: str, *, threads: Sequence[int], pattern: str, protocol: Protocol) -> PeerBench:
    """Prepare what is missing, then run. Raises `UsageError` where the pattern leaves nothing to run."""
    chosen = _chosen(pattern)
    model = prepare_model(model_name)
    entries, missing = _prepare(model, chosen)
    if not entries:
        raise EdgeError("bench.peers", "none of them can run here", missing[0])
    vocab_size = open_checkpoint(model.folder).spec.vocab_size
    prompt = [(17 + 7919 * i) % vocab_size for i in range(protocol.prompt_tokens)]
    rows: list[PeerRow] = []
    samples: dict[str, dict[str, list[Times]]] = {}
    for count in threads:
        times, failed = _measure(entries, count, prompt, protocol)
        samples[str(count)] = {entry.name: taken for entry, taken in times.items()}
        missing += failed
        rows += rows_of(times, count, protocol)
    return PeerBench(model.name, fingerprint(), protocol, rows, samples, missing)


def _chosen(pattern: str) -> list[tuple[str, str]]:
    known = [(engine, format) for engine in ENGINES for format in _engine(engine).FORMATS]
    chosen = [(engine, format) for engine, format in known if fnmatch(f"{engine} {format}", pattern)]
    if not chosen:
        names = ", ".join(f"'{engine} {format}'" for engine, format in known)
        raise UsageError("bench.filter", f"nothing is called '{pattern}'", f"there are {names}")
    return chosen


def _engine(name: str):  # type: ignore[no-untyped-def]
    return import_module(f"edge.profiles.peers.engines.{name}")


def _prepare(model: Model, chosen: Sequence[tuple[str, str]]) -> tuple[list[Entry], list[str]]:
    entries, missing = [], []
    with progress(f"preparing {model.name}", len(chosen)) as tick:
        for engine, format in chosen:
            try:
                entries.append(Entry(engine, format, _engine(engine).prepare(model, format)))
            except EdgeError as error:
                missing.append(_left_out(f"{engine} {format}", error))
            tick(1, f"{engine} {format}")
    return entries, missing


def _left_out(name: str, error: EdgeError) -> str:
    info(f"left out: {name}: {error}")
    return f"{name}: {error}"


def _measure(
    entries: Sequence[Entry], threads: int, prompt: list[int], protocol: Protocol
) -> tuple[dict[Entry, list[Times]], list[str]]:
    """Open all, then run the rounds, in an order that turns over. One that dies is left out, and said."""
    turn = msgspec.to_builtins(Turn(prompt, protocol.generated_tokens))
    times: dict[Entry, list[Times]] = {}
    missing: list[str] = []
    with ExitStack() as stack, progress(f"{threads} threads", (protocol.rounds + 2) * len(entries)) as tick:
        workers: dict[Entry, Worker] = {}
        for entry in entries:
            worker = stack.enter_context(Worker(WORKER))
            opening = Opening(entry.engine, entry.format, str(entry.path), threads, CONTEXT)
            try:
                list(worker.ask(msgspec.to_builtins(opening)))
                workers[entry], times[entry] = worker, []
            except EdgeError as error:
                missing.append(_left_out(entry.name, error))
            tick(1, entry.name)
        order = list(workers)
        for _ in range(protocol.rounds + 1):
            for entry in order:
                if entry not in times:
                    continue
                try:
                    times[entry] += [msgspec.convert(value, Times) for value in workers[entry].ask(turn)]
                except EdgeError as error:
                    missing.append(_left_out(entry.name, error))
                    del times[entry]
                tick(1, entry.name)
            order = order[::-1]
    return {entry: taken[1:] for entry, taken in times.items()}, missing


def rows_of(times: Mapping[Entry, Sequence[Times]], threads: int, protocol: Protocol) -> list[PeerRow]:
    """Speeds and paired ratios from the rounds' times."""
    clock = "cpu" if threads == 1 else "wall"
    prefill = {e: _rates(taken, "prefill", clock, protocol.prompt_tokens) for e, taken in times.items()}
    decode = {e: _rates(taken, "decode", clock, protocol.generated_tokens) for e, taken in times.items()}
    best_prefill, best_decode = _best_peer(prefill), _best_peer(decode)
    rows = []
    for entry, taken in times.items():
        first, then = summarize(prefill[entry]), summarize(decode[entry])
        rows.append(
            PeerRow(
                engine=entry.engine,
                format=entry.format,
                threads=threads,
                stored_bytes=entry.stored_bytes,
                clock=clock,
                prefill_tokens_per_s=first.median,
                prefill_tokens_per_s_min=first.min,
                prefill_tokens_per_s_max=first.max,
                decode_tokens_per_s=then.median,
                decode_tokens_per_s_min=then.min,
                decode_tokens_per_s_max=then.max,
                prefill_tokens_per_wall_s=_median(_rates(taken, "prefill", "wall", protocol.prompt_tokens)),
                decode_tokens_per_wall_s=_median(_rates(taken, "decode", "wall", protocol.generated_tokens)),
                ratio_to_best_peer=paired_ratio(decode[entry], decode[best_decode]) if best_decode else None,
                best_peer=best_decode.name if best_decode else None,
                prefill_ratio_to_best_peer=paired_ratio(prefill[entry], prefill[best_prefill])
                if best_prefill
                else None,
                best_prefill_peer=best_prefill.name if best_prefill else None,
            )
        )
    return rows


def _rates(taken: Sequence[Times], phase: str, clock: str, tokens: int) -> list[float]:
    field = f"{phase}_cpu_ns" if clock == "cpu" else f"{phase}_ns"
    return [tokens * 1e9 / getattr(times, field) for times in taken]


def _best_peer(rates: Mapping[Entry, Sequence[float]]) -> Entry | None:
    peers = [entry for entry in rates if entry.engine != OURS]
    return max(peers, key=lambda entry: _median(rates[entry])) if peers else None


def _median(values: Sequence[float]) -> float:
    return summarize(values).median
