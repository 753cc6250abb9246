"""How long tokens and calls take."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from edge.core.measurement import Measurement
from edge.profiles.statistics import counted, decodes, summarize
from edge.report.plots.base import Figure, color, in_lines, layout, row_height
from edge.report.table import has_decoded, has_first, number


def step(measurements: Sequence[Measurement]) -> str:
    return f"milliseconds per {'decode step' if all(map(decodes, measurements)) else 'call'}"


def figures(measured: Sequence[tuple[str, Measurement]]) -> list[Figure]:
    """Other tools tell means of many steps and not each: those are in no distribution of steps."""
    own = [(label, m) for label, m in measured if m.engine != "imported" and has_decoded(m)]
    first = [(label, m) for label, m in measured if decodes(m) and has_first(m)]
    calls = [(label, m) for label, m in measured if not decodes(m) and has_first(m)]
    return [
        *([_decode_latency(own)] if own else []),
        *([_first_token(first)] if first else []),
        *([_first_token(calls)] if calls else []),
    ]


def _decode_latency(measured: Sequence[tuple[str, Measurement]]) -> Figure:
    data, said, hidden, limit = [], [], 0, 0.0
    samples = [[ns / 1e6 for r in counted(m) for ns in r.decode_ns] for _, m in measured]
    limit = max(1.25 * float(np.percentile(times, 99)) for times in samples)
    for i, ((label, _), times) in enumerate(zip(measured, samples, strict=True)):
        found = summarize(times)
        said.append(f"{label}: median {number(found.median)} ms, p90 {number(found.p90)} ms")
        hidden += sum(time > limit for time in times)
        data.append(_violin(label, [round(time, 4) for time in times], i))
    data.reverse()  # plotly stacks from the bottom
    labels = [label for label, _ in measured]
    shown = layout(
        "milliseconds per token", "", height=130 + row_height(labels, 90 if len(measured) <= 8 else 50) * len(measured)
    )
    low = min(min(times) for times in samples)
    shown["xaxis"]["range"] = [max(0.0, low - 0.15 * (limit - low)), limit]
    caption = f"Every decoded token of every repetition, {sum(map(len, samples)):,}; the box spans the quartiles."
    if hidden:
        caption += f" {hidden} slower ones, up to {number(max(map(max, samples)))} ms, lie beyond the axis."
    return Figure("decode", "Time per decoded token", "; ".join(said), caption, data, shown)


def _violin(label: str, times: list[float], position: int) -> dict[str, Any]:
    return {
        "type": "violin",
        "orientation": "h",
        "side": "positive",
        "name": in_lines(label),
        "x": times,
        "y0": in_lines(label),
        "width": 1.5,
        "points": False,
        "box": {"visible": True, "width": 0.12},
        "line": {"color": color(position), "width": 1.5},
        "spanmode": "hard",
        "hoveron": "violins",
    }


def _first_token(measured: Sequence[tuple[str, Measurement]]) -> Figure:
    data, said = [], []
    for i, (label, measurement) in enumerate(measured):
        times = [repetition.prefill_ns / 1e6 for repetition in counted(measurement)]
        said.append(f"{label}: median {number(summarize(times).median)} ms")
        data.append(
            {
                "type": "box",
                "orientation": "h",
                "name": in_lines(label),
                "x": times,
                "boxpoints": "all",
                "jitter": 0.5,
                "pointpos": 0,
                "marker": {"color": color(i), "size": 7, "opacity": 0.75},
                "line": {"width": 1.2},
                "fillcolor": "rgba(0,0,0,0)",
            }
        )
    prompts = sorted({m.protocol.prompt_tokens for _, m in measured})
    labels = [label for label, _ in measured]
    shown = layout(
        "milliseconds", "", height=120 + row_height(labels, 60 if len(measured) <= 8 else 36) * len(measured)
    )
    data.reverse()
    times = [ms for trace in data for ms in trace["x"]]
    shown["xaxis"]["range"] = [0.95 * min(times), 1.05 * max(times)]  # no zoom into a per cent of noise
    caption = f"Prompts of {', '.join(map(str, prompts))} tokens; each point is one repetition."
    if all(decodes(m) for _, m in measured):
        return Figure("first-token", "Time to first token", "; ".join(said), caption, data, shown)
    caption = f"Texts of {', '.join(map(str, prompts))} tokens; each point is one call."
    caption = caption if any(prompts) else "Each point is one call."
    return Figure("calls", "Time per call", "; ".join(said), caption, data, shown)
