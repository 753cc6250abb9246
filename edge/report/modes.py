"""Sweeps, sustained runs and conversations: which rows belong together, and their tables."""

from __future__ import annotations

from collections.abc import Sequence

from edge.core.measurement import Measurement, Repetition
from edge.profiles import statistics
from edge.profiles.statistics import summarize
from edge.profiles.sustained import Sustained, sustained
from edge.report.results import Row, device_name
from edge.report.table import Cell, Table, number

LEAST_POINTS = 2


def sweeps(rows: Sequence[Row]) -> list[list[list[Row]]]:
    """By device, groups of one model's rows that differ in threads or cores alone, at least `LEAST_POINTS` each.

    A device's groups are in one plot: what varies is the same in all of them.
    """
    groups: dict[tuple[str, ...], list[Row]] = {}
    for row in rows:
        if (m := row.timed) and m.protocol.mode == "repetitions":
            plan = m.protocol
            tokens = f"{plan.prompt_tokens}+{plan.generated_tokens}"
            groups.setdefault((device_name(m), m.engine, tokens, row.model, m.bundle_sha256, m.runtime), []).append(row)
    devices: dict[tuple[str, ...], list[list[Row]]] = {}
    for key, group in groups.items():
        kinds = {_placed(row) for row in group}
        if len(kinds) >= LEAST_POINTS and len(kinds) == len(group):
            varies = "cores" if len({cores for _, cores in kinds}) > 1 else "threads"
            devices.setdefault((*key[:3], varies), []).append(group)
    return list(devices.values())


def _placed(row: Row) -> tuple[int, tuple[int, ...]]:
    plan = row.measurement.protocol if row.measurement else None
    return (plan.threads, tuple(plan.cores)) if plan else (0, ())


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
        cells = [Cell(str(reads), f"on {context} before"), Cell(str(makes))]
        cells += [Cell(number(s.median), f"{number(s.p10)}–{number(s.p90)}") for s in (first, read, made)]
        lines.append((Cell(f"Turn {i + 1}"), cells))
        context += reads + makes
    columns = ["Reads, tokens", "Makes, tokens", "First token, ms", "Prefill, tokens/s", "Decode, tokens/s"]
    return Table(columns, lines, f"Conversation: {row.label}", "Medians; under them the 10th to the 90th percentile.")
