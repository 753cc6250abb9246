"""The report as one HTML file with everything inside: styles, plots and plotly itself. It loads nothing."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from edge.core.files import write_text
from edge.core.measurement import Agreement, Evaluation, Measurement
from edge.profiles import statistics
from edge.profiles.compare import Comparison
from edge.report import method, modes, overview, plots, table
from edge.report.results import Row, device_name, join

TEMPLATES = Path(__file__).parent / "templates"


@dataclass(frozen=True)
class Tile:
    """A headline number."""

    title: str
    value: str
    unit: str
    note: str


def write(
    evaluations: Sequence[Evaluation | Agreement],
    measurements: Sequence[Measurement],
    path: Path,
    *,
    title: str = "edge report",
    comparisons: Sequence[Comparison] = (),
) -> Path:
    """Write the report to `path`. Raises `UsageError` for no results, `EdgeError` for a path that can't be written."""
    write_text(path, render(evaluations, measurements, title=title, comparisons=comparisons))
    return path


def render(
    evaluations: Sequence[Evaluation | Agreement],
    measurements: Sequence[Measurement],
    *,
    title: str,
    comparisons: Sequence[Comparison] = (),
) -> str:
    """The page's text."""
    compared = overview.comparisons(comparisons)
    rows = join(evaluations, measurements, alone=not compared)
    shown = plots.sections(rows)
    lead = overview.lead(rows)
    return page(
        title=title,
        subtitle=_subtitle(rows),
        lead=lead.label if lead and len(rows) > 1 else "",
        tiles=tiles(lead) if lead else [],
        tables=[*compared, *overview.results(rows)],
        emulated=overview.emulated(rows),
        runs=overview.runs(rows),
        sections=shown,
        facts=method.facts(rows),
        caveats=method.caveats(rows),
    )


def page(
    *,
    title: str,
    subtitle: str,
    tables: Sequence[table.Table],
    sections: Sequence[plots.Section],
    facts: Sequence[tuple[str, method.Facts]],
    caveats: Sequence[str],
    lead: str = "",
    tiles: Sequence[Tile] = (),
    emulated: table.Table | None = None,
    runs: table.Table | None = None,
) -> str:
    """The text of a page with these parts, whoever made them."""
    return _template().render(
        title=title,
        subtitle=subtitle,
        lead=lead,
        tiles=tiles,
        tables=tables,
        emulated=emulated,
        runs=runs,
        sections=sections,
        figures_json=script_json([_plot(figure) for section in sections for figure in section.figures]),
        facts=facts,
        caveats=caveats,
        plotly=_plotly() if sections else "",
        sortable=any(one.sortable for one in tables),
    )


def tiles(row: Row) -> list[Tile]:
    """The headline numbers of one row."""
    shown = []
    if row.stored_bytes and row.bits_per_weight:
        size, unit = table.megabytes(row.stored_bytes).split()
        bits = f"{row.bits_per_weight:.2f} bits per weight, {32 / row.bits_per_weight:.1f}× less than fp32"
        shown.append(Tile("Size on disk", size, unit, bits))
    if row.evaluation:
        lost = table.change(row.evaluation)
        note = f"{lost} against the original" if lost else f"on {row.evaluation.text}"
        shown.append(Tile("Perplexity", table.perplexity(row.evaluation.perplexity), "", note))
    if row.agreement and row.agreement.cosine_mean is not None:
        shown.append(Tile("Cosine to the original", f"{row.agreement.cosine_mean:.4f}", "", row.agreement.data))
    if row.agreement and row.agreement.top1_agreement is not None:
        agreement = f"{100 * row.agreement.top1_agreement:.1f}"
        shown.append(Tile("Agreement with the original", agreement, "%", row.agreement.data))
    return shown + (_speed_tiles(row.timed) if row.timed else [])


def _speed_tiles(measurement: Measurement) -> list[Tile]:
    shown = []
    if measurement.protocol.mode == "sustained":
        long = modes.summed_up(measurement)
        note = f"{long.retention:.0%} of {table.number(long.warm)} when warm"
        shown.append(Tile("Sustained", table.number(long.sustained), "tokens/s", note))
    elif table.has_decoded(measurement):
        decode = statistics.decode_tokens_per_s(measurement)
        shown.append(Tile("Decode", table.number(decode.median), "tokens/s", table.spread(decode)))
    if table.generates(measurement):
        first = statistics.ttft_ms(measurement)
        prompt = f"after {measurement.repetitions[0].prompt_tokens} tokens"
        shown.append(Tile("First token", table.number(first.median), "ms", prompt))
    elif table.has_first(measurement):
        call = statistics.ttft_ms(measurement)
        shown.append(Tile("Time per call", table.number(call.median), "ms", table.spread(call)))
    if measurement.peak_bytes and statistics.decodes(measurement):
        peak, unit = table.megabytes(measurement.peak_bytes).split()
        shown.append(Tile("Peak memory", peak, unit, "whole process"))
    return shown


def _plot(figure: plots.Figure) -> dict[str, Any]:
    return {"name": figure.name, "data": figure.data, "layout": figure.layout}


def script_json(value: Any) -> str:
    """JSON that can stand inside a <script>: no `<` can end it or open a comment."""
    return json.dumps(value, ensure_ascii=True, separators=(",", ":")).replace("<", "\\u003c")


def _subtitle(rows: Sequence[Row]) -> str:
    names = dict.fromkeys(known.name for row in rows for known in (row.measurement, row.quality) if known)
    machines = dict.fromkeys(device_name(row.measurement) for row in rows if row.measurement and not row.emulated)
    return " · ".join(filter(None, [_few(list(names)), _few(list(machines))]))


def _few(names: list[str]) -> str:
    return ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")


def _template() -> Any:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("report.html.j2")


@cache
def _plotly() -> str:
    from plotly.offline import get_plotlyjs

    return get_plotlyjs().replace("</script", "<\\/script")
