"""Runs that ask something particular: sweeps over threads and cores, sustained runs, conversations."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from edge.core.measurement import Measurement
from edge.profiles.clusters import cores_text
from edge.profiles.statistics import Summary, decode_rate, decode_tokens_per_s, prefill_tokens_per_s, rate, summarize
from edge.report.modes import Sweep, by_turn, summed_up, sweeps
from edge.report.plots.base import GREY, Figure, color, layout, safe
from edge.report.results import Row
from edge.report.table import has_decoded, has_prefilled, number

THROTTLED = "#d0342c"


def sweep_figures(rows: Sequence[Row]) -> list[Figure]:
    """Two small plots for each sweep: how fast tokens are read and made."""
    found = []
    for i, swept in enumerate(sweeps(rows)):
        timed = [row.timed for _, group in swept.series for row in group if row.timed]
        speeds: list[tuple[str, Callable[[Measurement], Summary]]] = []
        speeds += [("Decode", decode_tokens_per_s)] if all(map(has_decoded, timed)) else []
        speeds += [("Prefill", prefill_tokens_per_s)] if all(map(has_prefilled, timed)) else []
        found += [_swept(f"sweep-{i}-{name}", name, swept, speed) for name, speed in speeds]
    return found


def _swept(name: str, what: str, swept: Sweep, speed: Callable[[Measurement], Summary]) -> Figure:
    """Lines over numbers; bars over sets of cores."""
    data, said = [], []
    bars = swept.axis == "cores"
    for i, (label, group) in enumerate(swept.series):
        points = [(_at(swept.axis, m), speed(m)) for row in group if (m := row.timed)]
        points = points if bars else sorted(points, key=lambda point: point[0])
        trace = _points(label, [at for at, _ in points], [s for _, s in points], i)
        data.append(trace | ({"type": "bar", "marker": {"color": color(i)}} if bars else {"mode": "lines+markers"}))
        said.append(f"{label}: " + ", ".join(f"{at}: {number(s.median)}" for at, s in points))
    shown = layout("" if bars else swept.axis, "tokens/s", height=300, legend=len(swept.series))
    shown["yaxis"]["rangemode"] = "tozero"
    if bars:
        shown["xaxis"]["type"] = "category"
        shown["barmode"] = "group"
    else:
        values = sorted({at for trace in data for at in trace["x"]})
        shown["xaxis"] |= {"tickvals": values, "ticktext": [str(at) if at else "default" for at in values]}
    of = f"{swept.series[0][0]} on {swept.device}" if len(swept.series) == 1 else swept.device
    title = f"{what} by {swept.axis}: {of}"
    return Figure(name, title, f"tokens per second: {'; '.join(said)}", SPREAD, data, shown, wide=False)


SPREAD = "Medians; the whiskers go from the 10th to the 90th percentile."


def _at(axis: str, m: Measurement) -> Any:
    """Where a run stands on the axis; of cores `cpu4-7`, with its threads where they aren't one for each core."""
    plan = m.protocol
    if axis != "cores":
        return {"threads": plan.threads, "prompt tokens": plan.prompt_tokens}.get(axis, plan.generated_tokens)
    name = f"cpu{cores_text(plan.cores)}" if plan.cores else "all cores"
    threads = f"{plan.threads} thread{'s' if plan.threads > 1 else ''}"
    return name if plan.threads in (0, len(plan.cores)) else f"{name}, {threads}"


def _points(name: str, x: Sequence[Any], speeds: Sequence[Summary], position: int) -> dict[str, Any]:
    return {
        "type": "scatter",
        "name": safe(name),
        "x": list(x),
        "y": [round(s.median, 3) for s in speeds],
        "error_y": {
            "type": "data",
            "array": [round(s.p90 - s.median, 3) for s in speeds],
            "arrayminus": [round(s.median - s.p10, 3) for s in speeds],
            "thickness": 1.2,
            "width": 3,
            "color": GREY,
        },
        "marker": {"color": color(position), "size": 8},
        "line": {"color": color(position), "width": 2},
        "hovertemplate": "%{x}: %{y:.1f} tokens/s<extra></extra>",
    }


def sustained_figures(rows: Sequence[Row]) -> list[Figure]:
    """Every round's speed over the time since the first; rounds under a lowered cap as rings."""
    runs = [row for row in rows if row.timed and row.timed.protocol.mode == "sustained"]
    if not runs:
        return []
    data, shapes, names, said, highest = [], [], [], [], 0.0
    for i, row in enumerate(runs):
        m = row.timed
        if m is None:
            continue
        begun = m.repetitions[0].start_ns
        y = [round(rate(r), 3) for r in m.repetitions]
        highest = max(highest, *y)
        tints = [THROTTLED if r.throttled else color(i) for r in m.repetitions]
        data.append(
            {
                "type": "scatter",
                "mode": "lines+markers",
                "name": safe(row.label),
                "x": [round((r.start_ns - begun) / 1e9, 2) for r in m.repetitions],
                "y": y,
                "line": {"color": color(i), "width": 2},
                "marker": {"color": tints, "size": 6},
                "hovertemplate": "%{x:.0f} s: %{y:.1f} tokens/s<extra></extra>",
            }
        )
        found = summed_up(m)
        said.append(f"{row.label}: cold {number(found.cold)}, sustained {number(found.sustained)} tokens per second")
        if found.throttled_after_s is not None:
            at = round(found.throttled_after_s, 2)
            line = {"dash": "dash", "width": 1.5, "color": color(i)}
            shapes.append({"type": "line", "yref": "paper", "y0": 0, "y1": 1, "x0": at, "x1": at, "line": line})
            place = {"yref": "paper", "y": 1 - 0.08 * i, "yanchor": "top", "xanchor": "left", "showarrow": False}
            names.append(
                {**place, "x": at, "xshift": 4, "text": f"{at:.0f} s", "font": {"size": 12, "color": color(i)}}
            )
    shown = layout("seconds since the first round", "tokens/s", height=380, legend=len(runs))
    shown["yaxis"]["range"] = [0, 1.2 * highest]  # the names of the lines stand above the data
    shown["xaxis"]["rangemode"] = "tozero"
    shown["shapes"], shown["annotations"] = shapes, names
    caption = "Each point is a round. A dashed line is when it was slowed; red points are rounds with a lowered cap."
    return [Figure("sustained", "Speed over a long run", "; ".join(said), caption, data, shown)]


def conversation_figures(rows: Sequence[Row]) -> list[Figure]:
    """Time to the first token and decode speed of every turn."""
    talks = [row for row in rows if row.timed and row.timed.protocol.mode == "conversation"]
    if not talks:
        return []
    metrics = (
        ("turns-first", "Time to first token by turn", "milliseconds", lambda r: r.prefill_ns / 1e6),
        ("turns-decode", "Decode speed by turn", "tokens/s", decode_rate),
    )
    found = []
    for name, title, unit, value in metrics:
        data, said = [], []
        for i, row in enumerate(talks):
            turns = by_turn(row.timed) if row.timed else []
            speeds = [summarize([value(r) for r in turn]) for turn in turns]
            x = list(range(1, len(turns) + 1))
            trace = _points(row.label, x, speeds, i) | {"mode": "lines+markers"}
            data.append(trace | {"hovertemplate": f"turn %{{x}}: %{{y:.1f}} {unit}<extra></extra>"})
            told = ", ".join(number(s.median) for s in speeds)
            said.append(f"{row.label}: {told} {unit}")
        shown = layout("turn", unit, height=300, legend=len(talks))
        shown["xaxis"] |= {"dtick": 1}
        shown["yaxis"]["rangemode"] = "tozero"
        found.append(Figure(name, title, "; ".join(said), SPREAD, data, shown, wide=False))
    return found
