"""What every plot is made of. A plain plotly figure: the page gives it fonts and colours."""

from __future__ import annotations

import html
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np

PALETTE = ("#3b6fd8", "#d9652b", "#1f9d7a", "#a05bd0", "#c4971a", "#d6487a", "#3aa0bd", "#8a7f72")
GREY = "#8a8f98"
WIDEST = 28  # letters of a line beside a plot
POINTS = 800  # of a line: more can't be seen, and a run of minutes has thousands


@dataclass(frozen=True)
class Figure:
    """`summary` is read out in place of the plot, `caption` stands under it."""

    name: str
    title: str
    summary: str
    caption: str
    data: list[dict[str, Any]]
    layout: dict[str, Any]
    wide: bool = True


@dataclass(frozen=True)
class Section:
    """Figures on one question."""

    title: str
    figures: list[Figure]


def layout(x_title: str, y_title: str, *, height: int, legend: int = 0) -> dict[str, Any]:
    """legend: its names; one alone needs none. Room is left above the plot for as many lines as a phone needs."""
    lines = min(legend, 4) if legend > 1 else 0
    return {
        "height": height,
        "margin": {"l": 60, "r": 24, "t": 16 + 20 * lines, "b": 52},
        "showlegend": bool(lines),
        "legend": {"orientation": "h", "x": 0, "y": 1.04, "yanchor": "bottom", "traceorder": "normal"},
        "xaxis": axis(x_title),
        "yaxis": axis(y_title),
    }


def axis(title: str) -> dict[str, Any]:
    return {"title": {"text": title}, "automargin": True, "zeroline": False}


def dashed(value: float) -> dict[str, Any]:
    """A line across the plot at a height."""
    line = {"dash": "dash", "width": 1.5, "color": GREY}
    return {"type": "line", "xref": "paper", "x0": 0, "x1": 1, "y0": value, "y1": value, "line": line}


def color(position: int) -> str:
    return PALETTE[position % len(PALETTE)]


def safe(text: str) -> str:
    """Plotly reads a little HTML in its labels."""
    return html.escape(text, quote=False)


def in_lines(label: str) -> str:
    """A label beside a plot, in at most three lines short enough for a phone."""
    lines = textwrap.wrap(label, WIDEST, max_lines=3, placeholder=" …")
    return "<br>".join(safe(line.strip(" ·")) for line in lines)


def row_height(labels: Sequence[str], least: int) -> int:
    """Pixels of a row beside which these labels stand."""
    lines = max((len(textwrap.wrap(label, WIDEST)) for label in labels), default=1)
    return max(least, 12 + 16 * min(lines, 3))


def thinned(times: Sequence[float], values: Sequence[float]) -> tuple[list[float], list[float]]:
    """At most about `POINTS` points of a line, in order; each stretch keeps its lowest and its highest."""
    if len(times) <= POINTS:
        return list(times), list(values)
    array = np.asarray(values, np.float64)
    edges = np.linspace(0, len(array), POINTS // 2 + 1).astype(int)
    kept = {0, len(array) - 1}
    for start, end in pairwise(edges):
        kept |= {start + int(array[start:end].argmin()), start + int(array[start:end].argmax())}
    order = sorted(kept)
    return [times[i] for i in order], [values[i] for i in order]
