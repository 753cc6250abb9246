"""Plots as plain plotly figures. The page gives them its fonts and colours; a figure says what is in it."""

from __future__ import annotations

from collections.abc import Sequence

from edge.report.plots import latency, modes, operators, quality, timeline
from edge.report.plots.base import Figure, Section
from edge.report.results import Row

__all__ = ["Figure", "Section", "sections"]


def sections(rows: Sequence[Row]) -> list[Section]:
    """All plots that there is data for. Times of emulated devices are in none."""
    timed = [(row.label, row.timed) for row in rows if row.timed is not None]
    plain = [(label, m) for label, m in timed if m.protocol.mode == "repetitions"]  # the other modes have their own
    watched = [(row.label, row.measurement) for row in rows if row.measurement is not None and not row.emulated]
    found = [
        Section("Quality against size", quality.figures(rows)),
        Section("Latency", latency.figures(plain)),
        Section("Threads, cores and lengths", modes.sweep_figures(rows)),
        Section("Sustained speed", modes.sustained_figures(rows)),
        Section("Conversation", modes.conversation_figures(rows)),
        Section("Where the time goes", operators.figures([(label, m) for label, m in watched if m.operators])),
        Section("The run over time", timeline.figures(watched)),
    ]
    return [section for section in found if section.figures]
