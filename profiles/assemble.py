"""A measurement from the journal of a run, whoever wrote it: the local worker or the native runner."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

import msgspec

from edge.core.bundle import Bundle
from edge.core.measurement import Energy, Measurement, Parity, Phase, Protocol, Repetition, Track
from edge.profiles import journal
from edge.profiles.journal import Attempt, Entry, Span
from edge.profiles.plan import Plan, turns_of

OF_REPETITIONS = ("prefill", "decode", "call")
"""Spans that a repetition tells of itself: phases are what is around them."""


def measurement_of(
    bundle: Bundle,
    plan: Plan,
    entries: Sequence[Entry],
    *,
    device: dict[str, Any],
    energy: Energy | None = None,
    tracks: Sequence[Track] = (),
    problem: str | None = None,
    **more: Any,
) -> Measurement:
    """What a journal and what was read beside it say together. All times count from the journal's beginning.

    device: its fingerprint. tracks: times on that same scale; where there are none, what the repetitions tell of
    temperatures, clocks and their caps. problem: why the run failed; by default what its end says, or that it has none.
    more: other fields of `Measurement` (operators, memory, engine, state ..). peak_bytes is the journal's unless given.
    """
    attempts = journal.attempts(entries)
    done = repetitions_of(attempts, len(turns_of(plan)))
    peaks = [entry.peak_bytes for entry in entries if isinstance(entry, journal.Peak)]
    found: dict[str, Any] = {
        "operators": [],
        "memory": [],
        "engine": attempts[-1].begin.engine if attempts else "python",
        "peak_bytes": max(peaks, default=0),
        "measured_at": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    return Measurement(
        **identity(bundle),
        device=device,
        protocol=protocol_of(plan, done),
        load_ns=next((s.end_ns - s.start_ns for s in _spans(entries) if s.name == "load"), 0),
        repetitions=done,
        phases=phases_of(attempts),
        energy=energy or Energy(source="not_available", reason="no source of energy was read"),
        parity=_parity(entries),
        tracks=list(tracks) or tracks_of(attempts, done),
        problem=problem_of(entries) if problem is None else problem,
        **found | more,
    )


def identity(bundle: Bundle) -> dict[str, Any]:
    """What a measurement says of its bundle."""
    manifest = bundle.manifest
    return {
        "bundle": str(bundle.path),
        "bundle_sha256": bundle.hash,
        "name": manifest.name,
        "kernels": manifest.kernels,
        "runtime": manifest.runtime,
        "recipe": manifest.recipe.get("name", "float32"),
        "stored_bytes": manifest.stored_bytes,
        "bits_per_weight": manifest.bits_per_weight,
    }


def protocol_of(plan: Plan, done: Sequence[Repetition]) -> Protocol:
    """How it was measured. Of a conversation the tokens are those of all its turns together."""
    turns = turns_of(plan)
    whole = [r for r in done if r.turn == 0]
    calm = [r for r in whole if not r.throttled]
    return Protocol(
        prompt_tokens=sum(read for read, _ in turns),
        generated_tokens=sum(made for _, made in turns),
        warm_ups=plan.warm_ups,
        repetitions=len(calm if calm and plan.mode != "sustained" else whole),
        threads=plan.threads,
        mode=plan.mode,
        cores=plan.cores,
        turns=plan.turns,
        min_seconds=plan.min_seconds,
        cool_down_s=plan.cool_down_s,
        start_below_c=plan.start_below_c,
    )


def repetitions_of(attempts: Sequence[Attempt], turns: int = 1) -> list[Repetition]:
    """Every finished repetition once, turn by turn."""
    offsets = {entry.seq: attempt.offset_ns for attempt in attempts for entry in attempt.entries}
    whole = journal.finished([entry for attempt in attempts for entry in attempt.entries], turns)
    return [
        Repetition(
            prompt_tokens=r.prompt_tokens,
            prefill_ns=r.prefill_ns,
            decode_ns=r.decode_ns,
            cpu_ns=r.cpu_ns,
            frequency_khz=r.frequency_khz,
            encode_ns=r.encode_ns,
            start_ns=r.start_ns + offsets[r.seq],
            turn=r.turn,
            throttled=any(turn.throttled for turn in repetition),
            temperature_c=None if r.temperature_mc is None else r.temperature_mc / 1000,
        )
        for repetition in whole
        for r in repetition
    ]


def phases_of(attempts: Sequence[Attempt]) -> list[Phase]:
    """Named stretches in the order of their beginning; `measured` is from a process's first repetition to its last."""
    found: list[Phase] = []
    for attempt in attempts:
        spans = _spans(attempt.entries)
        phases = [Phase(s.name, s.start_ns, s.end_ns) for s in spans if s.name not in OF_REPETITIONS]
        inner = [s for s in spans if s.name in OF_REPETITIONS]
        if inner and not any(phase.name == "measured" for phase in phases):
            phases.append(Phase("measured", inner[0].start_ns, inner[-1].end_ns))
        found += [Phase(p.name, attempt.since_start(p.start_ns), attempt.since_start(p.end_ns)) for p in phases]
    return sorted(found, key=lambda phase: phase.start_ns)


def tracks_of(attempts: Sequence[Attempt], done: Sequence[Repetition]) -> list[Track]:
    """Temperature at the beginning of repetitions, clocks and caps at their end: coarse, but from nobody else."""
    warmth = [(r.start_ns, r.temperature_c) for r in done if r.temperature_c is not None]
    tracks = [Track("temperature/hottest", "C", [t for t, _ in warmth], [c for _, c in warmth])] if warmth else []
    ends = [
        (attempt.since_start(entry.start_ns + entry.prefill_ns + sum(entry.decode_ns)), entry)
        for attempt in attempts
        for entry in attempt.entries
        if isinstance(entry, journal.Repeated)
    ]
    for name, field in (("frequency", "frequency_khz"), ("cap", "caps_khz")):
        by_core: dict[int, list[tuple[int, int]]] = {}
        for at, entry in ends:
            for core, khz in enumerate(getattr(entry, field)):
                by_core.setdefault(core, []).append((at, khz))
        for core, points in by_core.items():
            tracks.append(Track(f"{name}/cpu{core}", "kHz", [t for t, _ in points], [float(v) for _, v in points]))
    return tracks


def problem_of(entries: Sequence[Entry]) -> str:
    """Why a run failed, empty where its last word is that it didn't."""
    last = entries[-1] if entries else None
    if not isinstance(last, journal.End):
        return "the run was cut off"
    return "" if last.code == "ok" else last.message or last.code


def _spans(entries: Sequence[Entry]) -> list[Span]:
    return [entry for entry in entries if isinstance(entry, Span)]


def _parity(entries: Sequence[Entry]) -> Parity | None:
    checked = [entry for entry in entries if isinstance(entry, journal.ParityChecked)]
    if not checked:
        return None
    return msgspec.convert(checked[-1], Parity, from_attributes=True)
