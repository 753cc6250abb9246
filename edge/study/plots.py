"""What a study shows at a glance: quality against size and against time, with the front that nothing beats."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from edge.report.plots.base import Figure, Section, color, dashed, layout, safe
from edge.report.plots.quality import line_label, perplexity_axis
from edge.report.table import number, perplexity
from edge.study.pareto import front
from edge.study.result import Row, Study
from edge.study.table import original

Axis = Callable[[Row], float | None]
OFF_THE_PLOT = 20.0
"""Times the best perplexity beyond which a row says nothing, and would press the others flat."""


def sections(study: Study) -> list[Section]:
    """The plots that there is data for."""
    found = [
        _figure(study.rows, "size", "Quality by size", "bits per weight, all tensors", lambda row: row.bits_per_weight),
        _figure(study.rows, "latency", "Quality by time", "ms per decoded token", _latency_ms),
    ]
    figures = [figure for figure in found if figure is not None]
    return [Section("What is lost for what", figures)] if figures else []


def _latency_ms(row: Row) -> float | None:
    return 1000 / row.decode_tokens_per_s if row.decode_tokens_per_s else None


def _figure(rows: Sequence[Row], name: str, title: str, x_title: str, x_of: Axis) -> Figure | None:
    known = [(x, row.perplexity, row) for row in rows if (x := x_of(row)) is not None and row.perplexity is not None]
    limit = OFF_THE_PLOT * min((y for _, y, _ in known), default=0.0)
    compared = [point for point in known if point[2].kind != "original"]
    small = [point for point in compared if point[1] <= limit]
    if not small:
        return None
    best = [small[index] for index in front([(x, y) for x, y, _ in small])]
    families = list(dict.fromkeys(_family(row) for _, _, row in small))
    data = [_front(best), *(_trace(family, index, small, best, x_title) for index, family in enumerate(families))]
    shown = layout(x_title, "perplexity, lower is better", height=460, legend=len(data))
    reference = original(rows)
    lines = [reference.perplexity] if reference is not None and reference.perplexity else []
    log = perplexity_axis(shown["yaxis"], [y for _, y, _ in small] + lines)
    shown["shapes"] = [dashed(value) for value in lines]
    shown["annotations"] = [line_label(value, log=log) for value in lines]
    xs = [x for x, _, _ in small]
    room = 0.1 * (max(xs) - min(xs)) or 0.1 * max(xs)
    shown["xaxis"]["range"] = [min(xs) - room, max(xs) + room]
    said = "; ".join(f"{row.label}: {number(x)}, perplexity {perplexity(y)}" for x, y, row in best)
    caption = "Down and to the left is better. Nothing beats what is on the line in both; dashed is the original model."
    if off := [f"{row.label} ({perplexity(y)})" for _, y, row in compared if y > limit]:
        caption += f" Too far up to be shown: {', '.join(off)}."
    return Figure(name, title, f"On the front: {said}", caption, data, shown)


def _family(row: Row) -> str:
    """What shares a colour: a method, a toolkit."""
    return row.method or (row.label.partition(" ")[0] if row.kind == "peer" else "recipes")


def _front(best: Sequence[tuple[float, float, Row]]) -> dict[str, Any]:
    return {
        "type": "scatter",
        "mode": "lines",
        "name": "front",
        "x": [x for x, _, _ in best],
        "y": [y for _, y, _ in best],
        "line": {"width": 1.5, "color": "#8a8f98"},
        "hoverinfo": "skip",
    }


def _trace(
    family: str, index: int, points: Sequence[tuple[float, float, Row]], best: Sequence[Any], x_title: str
) -> dict[str, Any]:
    own = [point for point in points if _family(point[2]) == family]
    return {
        "type": "scatter",
        "mode": "markers+text",
        "name": safe(family),
        "x": [x for x, _, _ in own],
        "y": [y for _, y, _ in own],
        "text": [safe(row.label) for _, _, row in own],
        "textposition": ["bottom left" if point in best else "top right" for point in own],
        "textfont": {"size": 11},
        "cliponaxis": False,
        "marker": {"size": 11, "color": color(index)},
        "customdata": [_details(row) for _, _, row in own],
        "hovertemplate": (
            f"<b>%{{text}}</b><br>%{{x:.3g}} {x_title}<br>perplexity %{{y:.2f}}%{{customdata}}<extra></extra>"
        ),
    }


def _details(row: Row) -> str:
    said = [
        "" if row.kl_divergence is None else f"KL divergence {row.kl_divergence:.3f} nats",
        "" if row.top1_agreement is None else f"top-1 agreement {row.top1_agreement:.1%}",
        "" if row.stored_bytes is None else f"{row.stored_bytes / 1e6:.1f} MB",
        "" if row.decode_tokens_per_s is None else f"{number(row.decode_tokens_per_s)} tokens/s",
    ]
    return "".join(f"<br>{line}" for line in said if line)
