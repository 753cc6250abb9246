"""Plots as plain plotly figures. The page gives them its fonts and colours; a figure says what is in it."""

from __future__ import annotations

import html
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from edge.core.measurement import Measurement
from edge.profiles import operators
from edge.profiles.statistics import decodes, summarize
from edge.report.results import Row
from edge.report.table import megabytes, number, perplexity

PALETTE = ("#3b6fd8", "#d9652b", "#1f9d7a", "#a05bd0", "#c4971a", "#d6487a", "#3aa0bd", "#8a7f72")
SHOWN_KINDS = len(PALETTE)
SHOWN_LAYERS = 10


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


def sections(rows: Sequence[Row]) -> list[Section]:
    """All plots that there is data for."""
    measured = [(row.label, row.measurement) for row in rows if row.measurement is not None]
    with_operators = [(label, m) for label, m in measured if m.operators]
    found = [
        Section("Quality against size", _quality(rows)),
        Section("Latency", _latencies(measured)),
        Section("Where the time goes", _operators(with_operators)),
        Section("Memory over time", _memories(measured)),
    ]
    return [section for section in found if section.figures]


def _quality(rows: Sequence[Row]) -> list[Figure]:
    points = [(row.label, row.stored_bytes / 1e6, row.evaluation) for row in rows if row.evaluation is not None]
    if not points:
        return []
    largest = max((size for _, size, _ in points), default=0.0)
    data = [
        {
            "type": "scatter",
            "mode": "markers+text",
            "name": _safe(label),
            "x": [size],
            "y": [found.perplexity],
            "text": [_safe(label)],
            "textposition": "top left" if size > 0.6 * largest else "top right",
            "cliponaxis": False,
            "marker": {"size": 14, "color": _color(i)},
            "hovertemplate": "%{text}<br>%{x:.1f} MB<br>perplexity %{y:.2f}<extra></extra>",
        }
        for i, (label, size, found) in enumerate(points)
    ]
    originals = sorted({e.perplexity_original for _, _, e in points if e.perplexity_original})
    layout = _layout("size on disk, MB", "perplexity, lower is better", height=380)
    log = _perplexity_axis(layout["yaxis"], [found.perplexity for _, _, found in points] + originals)
    layout["xaxis"]["range"] = [0, 1.15 * largest]
    layout["shapes"] = [_dashed(value) for value in originals]
    layout["annotations"] = [_line_label(value, log=log) for value in originals]
    said = "; ".join(f"{label}: {size:.0f} MB, perplexity {perplexity(e.perplexity)}" for label, size, e in points)
    caption = "Down and to the left is better. The dashed line is the original model." if originals else ""
    return [Figure("quality", "Perplexity by size on disk", said, caption, data, layout)]


def _perplexity_axis(axis: dict[str, Any], values: Sequence[float]) -> bool:
    """Room around the values; logarithmic (True) where a broken model would press the others flat."""
    low, high = min(values), max(values)
    if high > 20 * low:
        axis["type"] = "log"
        return True
    margin = max(0.2 * (high - low), 0.02 * high)
    axis["range"] = [low - margin, high + margin]
    return False


def _dashed(value: float) -> dict[str, Any]:
    line = {"dash": "dash", "width": 1.5, "color": "#8a8f98"}
    return {"type": "line", "xref": "paper", "x0": 0, "x1": 1, "y0": value, "y1": value, "line": line}


def _line_label(value: float, *, log: bool) -> dict[str, Any]:
    place = {"xref": "paper", "x": 0, "xanchor": "left", "yanchor": "top", "showarrow": False}
    return {**place, "y": float(np.log10(value)) if log else value, "text": f"original {perplexity(value)}"}


def _step(measurements: Sequence[Measurement]) -> str:
    return f"milliseconds per {'decode step' if all(map(decodes, measurements)) else 'call'}"


def _latencies(measured: Sequence[tuple[str, Measurement]]) -> list[Figure]:
    generating = [(label, m) for label, m in measured if decodes(m)]
    calls = [(label, m) for label, m in measured if not decodes(m)]
    found = [_decode_latency(generating), _first_token(generating)] if generating else []
    return [*found, _first_token(calls)] if calls else found


def _decode_latency(measured: Sequence[tuple[str, Measurement]]) -> Figure:
    data, said, hidden, limit = [], [], 0, 0.0
    samples = [[ns / 1e6 for r in m.repetitions for ns in r.decode_ns] for _, m in measured]
    limit = max(1.25 * float(np.percentile(times, 99)) for times in samples)
    for i, ((label, _), times) in enumerate(zip(measured, samples, strict=True)):
        found = summarize(times)
        said.append(f"{label}: median {number(found.median)} ms, p90 {number(found.p90)} ms")
        hidden += sum(time > limit for time in times)
        data.append(_violin(label, [round(time, 4) for time in times], i))
    data.reverse()  # plotly stacks from the bottom
    layout = _layout("milliseconds per token", "", height=130 + 90 * len(measured))
    low = min(min(times) for times in samples)
    layout["xaxis"]["range"] = [max(0.0, low - 0.15 * (limit - low)), limit]
    caption = f"Every decoded token of every repetition, {sum(map(len, samples)):,}; the box spans the quartiles."
    if hidden:
        caption += f" {hidden} slower ones, up to {number(max(map(max, samples)))} ms, lie beyond the axis."
    return Figure("decode", "Time per decoded token", "; ".join(said), caption, data, layout)


def _violin(label: str, times: list[float], position: int) -> dict[str, Any]:
    return {
        "type": "violin",
        "orientation": "h",
        "side": "positive",
        "name": _safe(label),
        "x": times,
        "y0": _safe(label),
        "width": 1.5,
        "points": False,
        "box": {"visible": True, "width": 0.12},
        "line": {"color": _color(position), "width": 1.5},
        "spanmode": "hard",
        "hoveron": "violins",
    }


def _first_token(measured: Sequence[tuple[str, Measurement]]) -> Figure:
    data, said = [], []
    for i, (label, measurement) in enumerate(measured):
        times = [repetition.prefill_ns / 1e6 for repetition in measurement.repetitions]
        said.append(f"{label}: median {number(summarize(times).median)} ms")
        data.append(
            {
                "type": "box",
                "orientation": "h",
                "name": _safe(label),
                "x": times,
                "boxpoints": "all",
                "jitter": 0.5,
                "pointpos": 0,
                "marker": {"color": _color(i), "size": 7, "opacity": 0.75},
                "line": {"width": 1.2},
                "fillcolor": "rgba(0,0,0,0)",
            }
        )
    prompts = sorted({m.protocol.prompt_tokens for _, m in measured})
    layout = _layout("milliseconds", "", height=120 + 60 * len(measured))
    data.reverse()
    times = [ms for trace in data for ms in trace["x"]]
    layout["xaxis"]["range"] = [0.95 * min(times), 1.05 * max(times)]  # no zoom into a per cent of noise
    caption = f"Prompts of {' and '.join(map(str, prompts))} tokens; each point is one repetition."
    if all(decodes(m) for _, m in measured):
        return Figure("first-token", "Time to first token", "; ".join(said), caption, data, layout)
    caption = f"Texts of {' and '.join(map(str, prompts))} tokens; each point is one call."
    caption = caption if any(prompts) else "Each point is one image."
    return Figure("calls", "Time per call", "; ".join(said), caption, data, layout)


def _operators(measured: Sequence[tuple[str, Measurement]]) -> list[Figure]:
    if not measured:
        return []
    layers = [_by_layer(i, label, m, alone=len(measured) == 1) for i, (label, m) in enumerate(measured)]
    return [_by_kind(measured), *layers]


def _by_kind(measured: Sequence[tuple[str, Measurement]]) -> Figure:
    """Stacked bars: the kinds that take the most over all rows, and the rest as one."""
    groups = [{share.name: share.step_ns / 1e6 for share in operators.by_kind(m.operators)} for _, m in measured]
    totals = {name: sum(group.get(name, 0.0) for group in groups) for group in groups for name in group}
    shown = sorted(totals, key=lambda name: -totals[name])[:SHOWN_KINDS]
    labels = [_safe(label) for label, _ in measured]
    order = {"categoryorder": "array", "categoryarray": labels[::-1]}
    bars = [(name, [group.get(name, 0.0) for group in groups]) for name in shown]
    rest = [sum(group.values()) - sum(group.get(name, 0.0) for name in shown) for group in groups]
    if max(rest) > 0:
        bars.append(("everything else", rest))
    data = [
        {
            "type": "bar",
            "orientation": "h",
            "name": _safe(name),
            "x": [round(value, 5) for value in values],
            "y": labels,
            "marker": {"color": "#9aa0a8" if name == "everything else" else _color(i)},
            "hovertemplate": "%{fullData.name}: %{x:.3f} ms<extra></extra>",
        }
        for i, (name, values) in enumerate(bars)
    ]
    layout = _layout(
        _step([m for _, m in measured]),
        "",
        height=200 + 50 * len(measured),
        legend=True,
    )
    layout["barmode"] = "stack"
    layout["yaxis"].update(order)
    said = "; ".join(
        f"{label}: " + ", ".join(f"{s.name} {s.share:.0%}" for s in operators.by_kind(m.operators)[:4])
        for label, m in measured
    )
    caption = "Over all layers, from a separate run with the runtime's profiler on, which slows each a little."
    return Figure("operators", "Time per decode step by kind of layer", said, caption, data, layout)


def _by_layer(position: int, label: str, measurement: Measurement, *, alone: bool) -> Figure:
    slowest = operators.by_layer(measurement.operators)[:SHOWN_LAYERS][::-1]
    data = [
        {
            "type": "bar",
            "orientation": "h",
            "x": [round(share.step_ns / 1e6, 5) for share in slowest],
            "y": [_safe(share.name.removeprefix("model.")) for share in slowest],
            "text": [f"{share.share:.1%}" for share in slowest],
            "textposition": "outside",
            "cliponaxis": False,
            "marker": {"color": _color(position)},
            "hovertemplate": "%{y}: %{x:.3f} ms<extra></extra>",
        }
    ]
    layout = _layout(
        _step([measurement]),
        "",
        height=110 + 24 * len(slowest),
    )
    layout["xaxis"]["range"] = [0, 1.3 * max(share.step_ns for share in slowest) / 1e6]
    said = ", ".join(f"{share.name} {share.share:.1%}" for share in slowest[::-1])
    whole = len(operators.by_layer(measurement.operators))
    caption = f"The {len(slowest)} slowest of {whole} layers and operators, with their share of the step."
    return Figure(f"layers-{position}", f"Slowest layers: {label}", said, caption, data, layout, wide=alone)


def _memories(measured: Sequence[tuple[str, Measurement]]) -> list[Figure]:
    sampled = [(i, label, m) for i, (label, m) in enumerate(measured) if m.memory]
    top = 1.3 * max((m.peak_bytes for _, _, m in sampled), default=0) / 1e6  # one scale for all
    return [_memory(i, label, m, top, alone=len(sampled) == 1) for i, label, m in sampled]


def _memory(position: int, label: str, measurement: Measurement, top: float, *, alone: bool) -> Figure:
    times = [round(sample.time_ns / 1e9, 4) for sample in measurement.memory]
    sizes = [round(sample.resident_bytes / 1e6, 3) for sample in measurement.memory]
    data = [
        {
            "type": "scatter",
            "mode": "lines",
            "x": times,
            "y": sizes,
            "line": {"color": _color(position), "width": 2},
            "fill": "tozeroy",
            "fillcolor": _color(position) + "22",
            "hovertemplate": "%{x:.2f} s: %{y:.0f} MB<extra></extra>",
        }
    ]
    layout = _layout("seconds since the start", "resident memory, MB", height=300)
    layout["yaxis"]["range"] = [0, top]
    layout["shapes"], layout["annotations"] = _phases(measurement)
    layout["shapes"].append(_dashed(measurement.peak_bytes / 1e6))
    said = f"peak {megabytes(measurement.peak_bytes)} over {times[-1]:.1f} seconds"
    caption = "The dashed line is the peak as the kernel counts it, between samples too."
    return Figure(f"memory-{position}", label, said, caption, data, layout, wide=alone)


def _phases(measurement: Measurement) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    shapes, names = [], []
    for i, phase in enumerate(measurement.phases):
        start, end = phase.start_ns / 1e9, phase.end_ns / 1e9
        band = {"type": "rect", "yref": "paper", "y0": 0, "y1": 1, "layer": "below", "line": {"width": 0}}
        shapes.append({**band, "x0": start, "x1": end, "fillcolor": f"rgba(128,134,145,{0.16 if i % 2 else 0.07})"})
        place = {"yref": "paper", "y": 1, "yanchor": "top", "xanchor": "left", "showarrow": False, "textangle": 0}
        names.append({**place, "x": start, "text": _safe(phase.name), "yshift": -14 * (i % 2)})
    return shapes, names


def _layout(x_title: str, y_title: str, *, height: int, legend: bool = False) -> dict[str, Any]:
    return {
        "height": height,
        "margin": {"l": 60, "r": 24, "t": 96 if legend else 16, "b": 52},
        "showlegend": legend,
        "legend": {"orientation": "h", "x": 0, "y": 1.04, "yanchor": "bottom", "traceorder": "normal"},
        "xaxis": {"title": {"text": x_title}, "automargin": True, "zeroline": False},
        "yaxis": {"title": {"text": y_title}, "automargin": True, "zeroline": False},
    }


def _color(position: int) -> str:
    return PALETTE[position % len(PALETTE)]


def _safe(text: str) -> str:
    """Plotly reads a little HTML in its labels."""
    return html.escape(text, quote=False)
