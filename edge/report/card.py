"""The report as a short Markdown model card."""

from __future__ import annotations

import html
from collections.abc import Sequence
from pathlib import Path

from edge.core.files import write_text
from edge.core.measurement import Agreement, Evaluation, Measurement
from edge.report import method, table
from edge.report.results import join


def write(
    evaluations: Sequence[Evaluation | Agreement],
    measurements: Sequence[Measurement],
    path: Path,
    *,
    title: str = "edge report",
) -> Path:
    """Write the card to `path`. Raises `UsageError` for no results, `EdgeError` for a path that can't be written."""
    write_text(path, render(evaluations, measurements, title=title))
    return path


def render(evaluations: Sequence[Evaluation | Agreement], measurements: Sequence[Measurement], *, title: str) -> str:
    """The card's text: the headline table, how it was measured, and what to keep in mind."""
    rows = join(evaluations, measurements)
    shown = table.build(rows)
    lines = [f"# {plain(title)}", ""]
    lines += [_row(["", *shown.models]), "|" + " --- |" * (1 + len(shown.models))]
    for metric, cells in shown.metrics:
        lines.append(_row([metric, *(f"{c.value} ({c.note})" if c.note else c.value for c in cells)]))
    lines += ["", "## How this was measured", ""]
    for heading, facts in method.facts(rows):
        lines += [f"**{plain(heading)}**", "", *(f"- {plain(name)}: {plain(value)}" for name, value in facts), ""]
    lines += ["## Keep in mind", "", *(f"- {plain(caveat)}" for caveat in method.caveats(rows))]
    return "\n".join(lines) + "\n"


def plain(text: str) -> str:
    """Text that Markdown shows as it is: no HTML, no table cell, emphasis, link or line break of its own."""
    escaped = html.escape(" ".join(text.split()), quote=False)
    for character in "\\`*_[]|#":
        escaped = escaped.replace(character, f"\\{character}")
    return escaped


def _row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(plain(cell) for cell in cells) + " |"
