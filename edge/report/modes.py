"""Sweeps, sustained runs and conversations: which rows belong together, and their tables."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from edge.core.measurement import Measurement, Repetition
from edge.profiles import statistics
from edge.profiles.statistics import summarize
from edge.profiles.sustained import Sustained, sustained
from edge.report.results import Row, device_name
from edge.report.table import Cell, Table, number


@dataclass(frozen=True)
class Sweep:
    """Rows of one device that differ in one thing. series: name and rows of each model and setting of the rest."""

    axis: str
    device: str
    series: list[tuple[str, list[Row]]]


def _plan(row: Row) -> dict[str, Any]:
    plan = row.measurement.protocol if row.measurement else None
    return {
        "cores": tuple(plan.cores) if plan else (),
        "threads": plan.threads if plan else 0,
        "prompt tokens": plan.prompt_tokens if plan else 0,
        "generated tokens": plan.generated_tokens if plan else 0,
    }


# What a sweep goes over, and what else may follow from it: a run that is kept on cores has as many threads.
AXES: dict[str, tuple[str, ...]] = {
    "cores": ("cores", "threads"),
    "threads": ("threads",),
    "prompt tokens": ("prompt tokens",),
    "generated tokens": ("generated tokens",),
}


def sweeps(rows: Sequence[Row]) -> list[Sweep]:
    """What was measured several times with one thing changed, by device and by what was changed."""
    plain = [row for row in rows if row.timed and row.timed.protocol.mode == "repetitions"]
    found: dict[tuple[str, str], list[tuple[str, list[Row]]]] = {}
    for axis, moving in AXES.items():
        groups: dict[tuple[Any, ...], list[Row]] = {}
        for row in plain:
            m, plan = row.timed, _plan(row)
            if m is not None:
                fixed = [value for name, value in plan.items() if name not in moving]
                key = (device_name(m), row.model, m.bundle_sha256, m.runtime, m.engine, *fixed)
                groups.setdefault(key, []).append(row)
        for key, group in groups.items():
            values = {_plan(row)[axis] for row in group}
            if len(values) > 1 and len({tuple(_plan(row).values()) for row in group}) == len(group):
                found.setdefault((axis, key[0]), []).append((key[1], group))
    return [Sweep(axis, device, _told_apart(series)) for (axis, device), series in found.items()]


def _told_apart(series: Sequence[tuple[str, list[Row]]]) -> list[tuple[str, list[Row]]]:
    """Series of one model get the conditions that all their rows share."""
    names = [name for name, _ in series]
    found = []
    for name, group in series:
        shared = [said for said in group[0].told if all(said in row.told for row in group)]
        found.append((" · ".join([name, *shared]) if names.count(name) > 1 else name, group))
    return found


def summed_up(measurement: Measurement) -> Sustained:
    """What the rounds of a sustained run come to."""
    return sustained(measurement)


def sustained_table(rows: Sequence[Row]) -> Table | None:
    lines = []
    for row in rows:
        if (m := row.timed) is None or m.protocol.mode != "sustained":
            continue
        found = summed_up(m)
        after = found.throttled_after_s
        hot = "" if found.temperature_c is None else f"the hottest zone at {found.temperature_c:.0f} °C"
        cells = [
            Cell(number(found.cold)),
            Cell(number(found.warm)),
            Cell(number(found.sustained), "" if found.steady else "not steady at the end"),
            Cell(f"{found.retention:.0%}"),
            Cell("not slowed" if after is None else f"after {after:.0f} s"),
            Cell("", "; ".join(filter(None, [found.cause, hot]))) if found.cause else Cell("–"),
        ]
        lines.append((Cell(row.model, "; ".join(dict.fromkeys([device_name(m), *row.told]))), cells))
    columns = ["Cold, tokens/s", "Warm, tokens/s", "Sustained, tokens/s", "Retention", "Slowed", "Cause"]
    note = "Cold is the first round, warm those until it was slowed, sustained the last ten; retention is of warm."
    return Table(columns, lines, "Sustained speed", note) if lines else None


def by_turn(measurement: Measurement) -> list[list[Repetition]]:
    """The counted repetitions of every turn."""
    whole = statistics.conversations(measurement)
    return [[turns[i] for turns in whole if len(turns) > i] for i in range(max(map(len, whole), default=0))]


def turn_tables(rows: Sequence[Row]) -> list[Table]:
    """A row per turn of each conversation."""
    return [_turns(row, row.timed) for row in rows if row.timed and row.timed.protocol.mode == "conversation"]


def _turns(row: Row, measurement: Measurement) -> Table:
    lines, context = [], 0
    for i, turn in enumerate(by_turn(measurement)):
        first = summarize([r.prefill_ns / 1e6 for r in turn])
        read = summarize([r.prompt_tokens / (r.prefill_ns / 1e9) for r in turn])
        made = summarize([statistics.decode_rate(r) for r in turn if r.decode_ns])
        reads, makes = turn[0].prompt_tokens, len(turn[0].decode_ns) + 1
        cells = [Cell(str(reads), f"after {context}"), Cell(str(makes))]
        cells += [Cell(number(s.median), f"{number(s.p10)}–{number(s.p90)}") for s in (first, read, made)]
        lines.append((Cell(f"Turn {i + 1}"), cells))
        context += reads + makes - 1  # the last one made is read with the next prompt, if at all
    columns = ["Reads, tokens", "Makes, tokens", "First token, ms", "Prefill, tokens/s", "Decode, tokens/s"]
    return Table(columns, lines, f"Conversation: {row.label}", "Medians; under them the 10th to the 90th percentile.")
