"""Which tables a report has: models side by side while they are few, else a row each; devices; stand-ins apart."""

from __future__ import annotations

from collections.abc import Sequence

from edge.profiles.compare import Comparison
from edge.report import devices, modes, table
from edge.report.results import Row, device_name, judged
from edge.report.table import NONE, Cell, Table

SIDE_BY_SIDE = 4


def lead(rows: Sequence[Row]) -> Row | None:
    """The row for the headline: the first that isn't emulated and didn't fail."""
    return next((row for row in rows if row.timed or row.measurement is None), None)


def results(rows: Sequence[Row]) -> list[Table]:
    """Emulated runs are only here with the quality that was found of their models."""
    real = [row for row in rows if not row.emulated or row.quality]
    timed = [row for row in real if row.measurement and not row.emulated]
    several = len({device_name(row.measurement) for row in timed if row.measurement}) > 1
    long = modes.sustained_table(real)
    particular = [*([long] if long else []), *modes.turn_tables(real)]
    if len(real) <= SIDE_BY_SIDE:
        return [*([table.build(real)] if real else []), *(devices.tables(real) if several else []), *particular]
    models = judged(real)
    quality = [table.build(models, table.QUALITY).turned()] if models else []
    return [*quality, *(devices.tables(real) if timed else []), *particular]


def emulated(rows: Sequence[Row]) -> Table | None:
    return devices.emulated(rows) if any(row.emulated for row in rows) else None


def comparisons(found: Sequence[Comparison]) -> list[Table]:
    """What was compared, and what noise alone would have done. Not of emulated runs: their times mean nothing."""
    return [_comparison(one) for one in found if not any(run.emulated for run in one.runs)]


def _comparison(found: Comparison) -> Table:
    lines = []
    for change in found.changes:
        values = [Cell("–") if v is None else Cell(f"{table.number(v)} {change.unit}") for v in (change.a, change.b)]
        ratio, noise = NONE, NONE
        if change.ratio is not None and change.low is not None and change.high is not None:
            ratio = Cell(_percent(change.ratio), f"{_percent(change.low)} to {_percent(change.high)}")
            noise = NONE if change.floor is None else Cell(f"±{change.floor:.1%}")
        lines.append((Cell(change.metric), [*values, ratio, noise, Cell(change.words, change.why)]))
    sides = f"A is {found.a}, B is {found.b}, {found.runs_a} and {found.runs_b} runs."
    note = (
        f"{sides} Under the change its 95 % interval; the floor is what differs where nothing does, from {found.floor}."
    )
    return Table(["A", "B", "B to A", "Noise floor", "B is"], lines, "Comparison", " ".join([note, *found.notes]))


def _percent(ratio: float) -> str:
    return f"{100 * (ratio - 1):+.1f}%"


def runs(rows: Sequence[Row]) -> Table | None:
    """Of the real ones."""
    real = devices.by_device([row for row in rows if row.measurement and not row.emulated])
    return devices.runs(real) if real else None
