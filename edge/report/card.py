"""The report as a short Markdown model card."""

from __future__ import annotations

import html
from collections.abc import Iterable, Sequence
from pathlib import Path

from edge.core.files import write_text
from edge.core.measurement import Agreement, Evaluation, Measurement
from edge.profiles.compare import Comparison
from edge.report import method, overview
from edge.report.results import join
from edge.report.table import Cell, Table


def write(
    evaluations: Sequence[Evaluation | Agreement],
    measurements: Sequence[Measurement],
    path: Path,
    *,
    title: str = "edge report",
    comparisons: Sequence[Comparison] = (),
) -> Path:
    """Write the card to `path`. Raises `UsageError` for no results, `EdgeError` for a path that can't be written."""
    write_text(path, render(evaluations, measurements, title=title, comparisons=comparisons))
    return path


def render(
    evaluations: Sequence[Evaluation | Agreement],
    measurements: Sequence[Measurement],
    *,
    title: str,
    comparisons: Sequence[Comparison] = (),
) -> str:
    """The card's text: the headline table, how it was measured, and what to keep in mind."""
    compared = overview.comparisons(comparisons)
    rows = join(evaluations, measurements, alone=not compared)
    lines = [f"# {plain(title)}", ""]
    for shown in [*compared, *overview.results(rows)]:
        lines += table_lines(shown)
    if stood_in := overview.emulated(rows):
        lines += table_lines(stood_in)
    lines += ["## How this was measured", ""]
    for heading, facts in method.facts(rows):
        lines += [f"**{plain(heading)}**", "", *(f"- {plain(name)}: {plain(value)}" for name, value in facts), ""]
    if ran := overview.runs(rows):
        lines += table_lines(ran)
    lines += ["## Keep in mind", "", *(f"- {plain(caveat)}" for caveat in method.caveats(rows))]
    return "\n".join(lines) + "\n"


def table_lines(shown: Table) -> list[str]:
    """A table under its heading."""
    lines = [f"## {plain(shown.title)}", ""] if shown.title else []
    lines += [plain(shown.note), ""] if shown.note else []
    lines += [_row(["", *shown.columns]), "|" + " --- |" * (1 + len(shown.columns))]
    return [*lines, *(_row(map(_text, [head, *cells])) for head, cells in shown.rows), ""]


def _text(cell: Cell) -> str:
    return f"{cell.value} ({cell.note})" if cell.value and cell.note else cell.value or cell.note


def plain(text: str) -> str:
    """Text that Markdown shows as it is: no HTML, no table cell, emphasis, link or line break of its own."""
    escaped = html.escape(" ".join(text.split()), quote=False)
    for character in "\\`*_[]|#":
        escaped = escaped.replace(character, f"\\{character}")
    return escaped


def _row(cells: Iterable[str]) -> str:
    return "| " + " | ".join(plain(cell) for cell in cells) + " |"
