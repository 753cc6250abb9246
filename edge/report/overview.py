"""Which tables a report has: models side by side while they are few, else a row each; devices; stand-ins apart."""

from __future__ import annotations

from collections.abc import Sequence

from edge.report import devices, modes, table
from edge.report.results import Row, device_name, judged
from edge.report.table import Table

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


def runs(rows: Sequence[Row]) -> Table | None:
    """Of the real ones."""
    real = devices.by_device([row for row in rows if row.measurement and not row.emulated])
    return devices.runs(real) if real else None
