"""Where the time of a decode step goes."""

from __future__ import annotations

from collections.abc import Sequence

from edge.core.measurement import Measurement
from edge.profiles import operators
from edge.report.plots.base import PALETTE, Figure, color, in_lines, layout, row_height, safe
from edge.report.plots.latency import step

SHOWN_KINDS = len(PALETTE)
SHOWN_LAYERS = 10
SHOWN_MODELS = 6


def figures(measured: Sequence[tuple[str, Measurement]]) -> list[Figure]:
    if not measured:
        return []
    bundles: dict[tuple[str, ...], tuple[str, Measurement]] = {}  # a sweep has one bundle many times
    for label, m in measured:
        bundles.setdefault((m.bundle, m.bundle_sha256, str(m.device)), (label, m))
    first = list(bundles.values())[:SHOWN_MODELS]
    return [_by_kind(first), *(_by_layer(i, label, m, alone=len(first) == 1) for i, (label, m) in enumerate(first))]


def _by_kind(measured: Sequence[tuple[str, Measurement]]) -> Figure:
    """Stacked bars: the kinds that take the most over all rows, and the rest as one."""
    groups = [{share.name: share.step_ns / 1e6 for share in operators.by_kind(m.operators)} for _, m in measured]
    totals = {name: sum(group.get(name, 0.0) for group in groups) for group in groups for name in group}
    largest = sorted(totals, key=lambda name: -totals[name])[:SHOWN_KINDS]
    labels = [in_lines(label) for label, _ in measured]
    order = {"categoryorder": "array", "categoryarray": labels[::-1]}
    bars = [(name, [group.get(name, 0.0) for group in groups]) for name in largest]
    rest = [sum(group.values()) - sum(group.get(name, 0.0) for name in largest) for group in groups]
    if max(rest) > 0:
        bars.append(("everything else", rest))
    data = [
        {
            "type": "bar",
            "orientation": "h",
            "name": safe(name),
            "x": [round(value, 5) for value in values],
            "y": labels,
            "marker": {"color": "#9aa0a8" if name == "everything else" else color(i)},
            "hovertemplate": "%{fullData.name}: %{x:.3f} ms<extra></extra>",
        }
        for i, (name, values) in enumerate(bars)
    ]
    shown = layout(
        step([m for _, m in measured]),
        "",
        height=200 + row_height([label for label, _ in measured], 50) * len(measured),
        legend=len(bars),
    )
    shown["barmode"] = "stack"
    shown["yaxis"].update(order)
    said = "; ".join(
        f"{label}: " + ", ".join(f"{s.name} {s.share:.0%}" for s in operators.by_kind(m.operators)[:4])
        for label, m in measured
    )
    caption = "Over all layers, from a separate run with the runtime's profiler on, which slows each a little."
    return Figure("operators", "Time per decode step by kind of layer", said, caption, data, shown)


def _by_layer(position: int, label: str, measurement: Measurement, *, alone: bool) -> Figure:
    slowest = operators.by_layer(measurement.operators)[:SHOWN_LAYERS][::-1]
    data = [
        {
            "type": "bar",
            "orientation": "h",
            "x": [round(share.step_ns / 1e6, 5) for share in slowest],
            "y": [safe(share.name.removeprefix("model.")) for share in slowest],
            "text": [f"{share.share:.1%}" for share in slowest],
            "textposition": "outside",
            "cliponaxis": False,
            "marker": {"color": color(position)},
            "hovertemplate": "%{y}: %{x:.3f} ms<extra></extra>",
        }
    ]
    shown = layout(
        step([measurement]),
        "",
        height=110 + 24 * len(slowest),
    )
    shown["xaxis"]["range"] = [0, 1.3 * max(share.step_ns for share in slowest) / 1e6]
    said = ", ".join(f"{share.name} {share.share:.1%}" for share in slowest[::-1])
    whole = len(operators.by_layer(measurement.operators))
    caption = f"The {len(slowest)} slowest of {whole} layers and operators, with their share of the step."
    return Figure(f"layers-{position}", f"Slowest layers: {label}", said, caption, data, shown, wide=alone)
