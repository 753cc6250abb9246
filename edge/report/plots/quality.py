"""What a model lost, by its size."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from edge.report.plots.base import Figure, color, dashed, layout, safe
from edge.report.results import Row, judged
from edge.report.table import perplexity


def figures(rows: Sequence[Row]) -> list[Figure]:
    points = [(row.model, row.stored_bytes / 1e6, row.evaluation) for row in judged(rows) if row.evaluation is not None]
    if not points:
        return []
    largest = max((size for _, size, _ in points), default=0.0)
    data = [
        {
            "type": "scatter",
            "mode": "markers+text",
            "name": safe(label),
            "x": [size],
            "y": [found.perplexity],
            "text": [safe(label)],
            "textposition": "top left" if size > 0.6 * largest else "top right",
            "cliponaxis": False,
            "marker": {"size": 14, "color": color(i)},
            "hovertemplate": "%{text}<br>%{x:.1f} MB<br>perplexity %{y:.2f}<extra></extra>",
        }
        for i, (label, size, found) in enumerate(points)
    ]
    originals = sorted({e.perplexity_original for _, _, e in points if e.perplexity_original})
    shown = layout("size on disk, MB", "perplexity, lower is better", height=380)
    log = perplexity_axis(shown["yaxis"], [found.perplexity for _, _, found in points] + originals)
    shown["xaxis"]["range"] = [0, 1.15 * largest]
    shown["shapes"] = [dashed(value) for value in originals]
    shown["annotations"] = [line_label(value, log=log) for value in originals]
    said = "; ".join(f"{label}: {size:.0f} MB, perplexity {perplexity(e.perplexity)}" for label, size, e in points)
    caption = "Down and to the left is better. The dashed line is the original model." if originals else ""
    return [Figure("quality", "Perplexity by size on disk", said, caption, data, shown)]


def perplexity_axis(axis: dict[str, Any], values: Sequence[float]) -> bool:
    """Room around the values; logarithmic (True) where a broken model would press the others flat."""
    low, high = min(values), max(values)
    if high > 20 * low:
        axis["type"] = "log"
        return True
    margin = max(0.2 * (high - low), 0.02 * high)
    axis["range"] = [low - margin, high + margin]
    return False


def line_label(value: float, *, log: bool) -> dict[str, Any]:
    """What stands at the dashed line of the original."""
    place = {"xref": "paper", "x": 0, "xanchor": "left", "yanchor": "top", "showarrow": False}
    return {**place, "y": float(np.log10(value)) if log else value, "text": f"original {perplexity(value)}"}
