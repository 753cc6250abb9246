"""One run over time: panels of speed, clock, temperature, power and memory over one axis."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from edge.core.measurement import Measurement, Phase
from edge.profiles.statistics import decode_rate
from edge.report import tracks
from edge.report.plots.base import GREY, Figure, axis, color, layout, safe, thinned
from edge.report.table import megabytes, number

SHOWN = 6
PANEL, GAP, STRIP, BELOW = 118, 46, 53, 56  # pixels: of a panel, the room for a legend above each, the phases' names
NARROW, LETTER, ROW = 240, 7, 15  # pixels: of a plot on a phone, of a letter, of a line of text
SPEED = "tokens/s"
MOVED_C = 2.0
LONGEST = 16  # letters of a name
LINES = 4  # of a panel: what there is more of goes into one band, or is left to the trace
GAP_INTERVALS = 10
THROTTLED = "#d0342c"
WINDOWS = 300


@dataclass(frozen=True)
class Panel:
    """Traces that share an axis of values. `said` is for those who can't see it."""

    title: str
    traces: list[dict[str, Any]]
    said: str
    note: str = ""
    span: tuple[float, float] | None = None


def figures(measured: Sequence[tuple[str, Measurement]]) -> list[Figure]:
    """A figure per run that was watched; the first `SHOWN` of them."""
    found = [(label, m, panels(m)) for label, m in measured]
    watched = [(label, m, shown) for label, m, shown in found if shown][:SHOWN]
    return [_figure(i, label, m, shown) for i, (label, m, shown) in enumerate(watched)]


def panels(measurement: Measurement) -> list[Panel]:
    """From what one sees first to what may be its cause. None where nothing but the speed is known."""
    watched = [panel for build in (_frequency, _temperature, _power, _memory) if (panel := build(measurement))]
    speed = _speed(measurement) if watched else None
    return [speed, *watched] if speed else watched


def _figure(position: int, label: str, measurement: Measurement, shown: Sequence[Panel]) -> Figure:
    height = STRIP + len(shown) * (PANEL + GAP) + BELOW
    plot = layout("seconds since the start of the run", "", height=height)
    plot["margin"] = {"l": 64, "r": 16, "t": STRIP, "b": BELOW}
    inner = height - STRIP - BELOW
    data = []
    for i, panel in enumerate(shown):
        number_ = "" if i == 0 else str(i + 1)
        top = 1 - (i * (PANEL + GAP) + GAP) / inner
        bottom = top - PANEL / inner
        # a fixed margin: one time lies on one vertical line in all panels
        own = axis(panel.title) | {"domain": [max(bottom, 0.0), top], "automargin": False, "rangemode": "tozero"}
        plot[f"yaxis{number_}"] = own | ({"range": list(panel.span)} if panel.span else {})
        legend = {"orientation": "h", "x": 0, "y": top, "yanchor": "bottom", "traceorder": "normal"}
        plot[f"legend{number_}"] = legend
        data += [
            {**trace, "xaxis": "x", "yaxis": f"y{number_}", "legend": f"legend{number_}"} for trace in panel.traces
        ]
    plot |= {"showlegend": True, "meta": {"timeline": True}}
    end = tracks.end_s(measurement)
    plot["xaxis"] |= {"anchor": f"y{len(shown)}" if len(shown) > 1 else "y", "range": [0, end]}
    plot["shapes"], plot["annotations"] = _phases(measurement, end)
    plot["shapes"] += _repetitions(measurement) if shown[0].title == SPEED else []
    said = "; ".join(panel.said for panel in shown)
    return Figure(f"timeline-{position}", label, said, _caption(measurement, shown), data, plot)


def _caption(measurement: Measurement, shown: Sequence[Panel]) -> str:
    parts = ["Grey bands are the phases of the run."] if measurement.phases else []
    if any(r.throttled for r in measurement.repetitions):
        parts.append("Red bands are throttled repetitions.")
    return " ".join([*parts, *(panel.note for panel in shown if panel.note)])


def _phases(measurement: Measurement, end: float) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Bands through all panels, and in three rows above them the names of those that aren't inside another."""
    shapes, names = [], []
    coarse = [phase for phase in measurement.phases if phase.name not in tracks.STEPS]
    outer = [p for p in coarse if not any(_inside(p, other) for other in coarse)]
    letter_s = LETTER / NARROW * end
    free = [0.0, 0.0, 0.0]  # where each row of names ends so far
    for i, phase in enumerate(outer):
        start, stop = phase.start_ns / 1e9, phase.end_ns / 1e9
        shapes.append(_shade(start, stop, f"rgba(128,134,145,{0.16 if i % 2 else 0.07})"))
        row = next((row for row, until in enumerate(free) if start >= until), None)
        if row is None or start + letter_s * len(phase.name) > end + 3 * letter_s:
            continue
        free[row] = start + letter_s * (len(phase.name) + 1)
        place = {"yref": "paper", "y": 1, "yanchor": "bottom", "xanchor": "left", "showarrow": False}
        text = {"text": safe(phase.name), "font": {"size": 12}, "yshift": ROW * row}
        names.append({**place, **text, "x": start})
    inner = [phase for phase in coarse if phase not in outer]
    shapes += [_shade(p.start_ns / 1e9, p.end_ns / 1e9, "rgba(128,134,145,0.12)") for p in inner]
    return shapes, names


def _inside(phase: Phase, other: Phase) -> bool:
    within = other.start_ns <= phase.start_ns and phase.end_ns <= other.end_ns
    return within and (other.end_ns - other.start_ns > phase.end_ns - phase.start_ns)


def _repetitions(measurement: Measurement) -> list[dict[str, Any]]:
    """Throttled ones through all panels; in the first, that of speed, the prompts, which have another speed."""
    placed = tracks.placed(measurement)
    shapes = [_shade(r.start_ns / 1e9, tracks.end_ns(r) / 1e9, "rgba(208,52,44,0.16)") for r in placed if r.throttled]
    for r in placed:
        prompt = _shade(r.start_ns / 1e9, (r.start_ns + r.prefill_ns) / 1e9, "rgba(196,151,26,0.20)")
        shapes += [prompt | {"yref": "y domain"}] if r.decode_ns else []
    return shapes


def _shade(start_s: float, end_s: float, tint: str) -> dict[str, Any]:
    band = {"type": "rect", "yref": "paper", "y0": 0, "y1": 1, "layer": "below", "line": {"width": 0}}
    return {**band, "x0": round(start_s, 4), "x1": round(end_s, 4), "fillcolor": tint}


def _speed(measurement: Measurement) -> Panel | None:
    """Tokens/s over windows of decode steps, and of whole repetitions as points."""
    placed = tracks.placed(measurement)
    decoding = [r for r in placed if r.decode_ns]
    if not decoding:
        return None
    steps = max(4, sum(len(r.decode_ns) for r in decoding) // WINDOWS)
    times: list[float | None] = []
    rates: list[float | None] = []
    for repetition in decoding:
        found = tracks.windows(repetition, steps)
        times += [round(at / 1e9, 4) for at, _ in found] + [None]
        rates += [round(speed, 3) for _, speed in found] + [None]
    data = [_line(f"{steps} tokens", times, rates, color(0) + "aa", "%{y:.1f} tokens/s", width=1)]
    for name, throttled, tint in (("repetition", False, color(0)), ("throttled", True, THROTTLED)):
        x: list[float | None] = []
        y: list[float | None] = []
        for r in (r for r in decoding if r.throttled is throttled):
            x += [round((r.start_ns + r.prefill_ns) / 1e9, 4), round(tracks.end_ns(r) / 1e9, 4), None]
            y += [round(decode_rate(r), 3)] * 2 + [None]
        if x:
            data.append(_line(name, x, y, tint, f"{name}: %{{y:.1f}} tokens/s", width=3.5))
    speeds = [decode_rate(r) for r in decoding]
    said = f"{number(min(speeds))} to {number(max(speeds))} tokens per second"
    fastest = max([rate for rate in rates if rate is not None], default=1.0)
    return Panel(SPEED, data, said, "Yellow: the prompts, read faster.", span=(0, 1.1 * fastest))


def _frequency(measurement: Measurement) -> Panel | None:
    clusters = tracks.clusters(measurement)[-LINES + 1 :]  # the fastest: their numbers are the highest
    if not clusters:
        return None
    data = [
        _track(c.name, c.time_ns, [khz / 1e6 for khz in c.frequency_khz], color(i), "%{y:.2f} GHz")
        for i, c in enumerate(clusters)
    ]
    capped = [(i, c) for i, c in enumerate(clusters) if c.cap_khz]
    for n, (i, c) in enumerate(capped):
        line = _track("cap", c.time_ns, [khz / 1e6 for khz in c.cap_khz], color(i), "cap %{y:.2f} GHz")
        line["line"] |= {"dash": "dot", "shape": "hv", "width": 1.5}
        data.append({**line, "showlegend": n == 0, "legendgroup": "cap"})
    said = ", ".join(f"{c.name} {number(min(c.frequency_khz) / 1e6)} to {number(max(c.frequency_khz) / 1e6)} GHz"
                     for c in clusters)  # fmt: skip
    highest = max(max(c.frequency_khz + c.cap_khz) for c in clusters) / 1e6
    note = "Dotted lines are the caps of the clock." if capped else ""
    return Panel("clock, GHz", data, said, note, span=(0, 1.1 * highest))


def _temperature(measurement: Measurement) -> Panel | None:
    """The zones that moved the most as lines; between the lowest and the highest of the others a band."""
    zones = [track for track in tracks.of(measurement, "temperature") if track.values]
    if not zones:
        return None
    zones.sort(key=lambda zone: min(zone.values) - max(zone.values))
    moved = [zone for zone in zones if max(zone.values) - min(zone.values) >= MOVED_C] or zones[:1]
    moved = moved[: LINES if len(zones) <= LINES else LINES - 1]
    rest = [zone for zone in zones if zone not in moved]
    data = [_track(tracks.short(z), z.time_ns, z.values, color(i), "%{y:.1f} °C") for i, z in enumerate(moved)]
    if rest:
        data = [*_band(rest, f"{len(rest)} others"), *data]
    low, high = min(min(z.values) for z in zones), max(max(z.values) for z in zones)
    return Panel("°C", data, f"{low:.0f} to {high:.0f} degrees Celsius", span=(low - 2, high + 3))


def _band(zones: Sequence[tracks.Track], name: str) -> list[dict[str, Any]]:
    times, low, high = tracks.envelope(zones)
    if len(zones) == 1:
        return [_track(tracks.short(zones[0]), times, low, GREY, "%{y:.1f} °C")]
    lower = _track(name, times, low, GREY, "others from %{y:.1f} °C") | {"showlegend": False}
    upper = _track(name, times, high, GREY, "others to %{y:.1f} °C") | {"fill": "tonexty", "fillcolor": GREY + "33"}
    for line in (lower, upper):
        line["line"] = {"width": 0.8, "color": GREY}
    return [lower, upper]


def _power(measurement: Measurement) -> Panel | None:
    """The total thick, and the rails that take the most."""
    rails = tracks.power(measurement)
    if not rails:
        return None
    largest = sorted((rail for rail in rails if not rail.total), key=lambda rail: -rail.mean_uw)
    total = next((rail for rail in rails if rail.total), None)
    shown = largest[: LINES - bool(total)]
    data = [_track(r.name, r.time_ns, [uw / 1e6 for uw in r.power_uw], color(i + 1), "%{y:.2f} W")
            for i, r in enumerate(shown)]  # fmt: skip
    if total:
        line = _track(total.name, total.time_ns, [uw / 1e6 for uw in total.power_uw], color(0), "%{y:.2f} W")
        line["line"]["width"] = 2.4
        data.insert(0, line)
    left = len(largest) - len(shown)
    note = f"{left} smaller rail{'s' if left > 1 else ''} not drawn." if left else ""
    highest = max(rails, key=lambda rail: rail.mean_uw)
    return Panel("power, W", data, f"{highest.name} {number(highest.mean_uw / 1e6)} watts in the mean", note)


def _memory(measurement: Measurement) -> Panel | None:
    top = measurement.peak_bytes
    lines = [line for line in tracks.memory(measurement) if not (top and line[0] == "peak")]
    if not lines:
        return None
    data = [
        _track(name, times, [size / 1e6 for size in sizes], color(i), "%{y:.0f} MB")
        for i, (name, times, sizes) in enumerate(lines[:LINES])
    ]
    data[0] |= {"fill": "tozeroy", "fillcolor": color(0) + "22"}
    if top:
        ends = [0.0, round(tracks.end_s(measurement), 3)]
        peak = _line("peak", ends, [top / 1e6] * 2, GREY, "peak as the kernel counts it: %{y:.0f} MB", width=1.5)
        peak["line"]["dash"] = "dash"
        data.append(peak)
    highest = max(top, *(max(sizes) for _, _, sizes in lines))
    return Panel("memory, MB", data, f"peak {megabytes(highest)}", span=(0, 1.15 * highest / 1e6))


def _track(name: str, time_ns: Sequence[int], values: Sequence[float], tint: str, hover: str) -> dict[str, Any]:
    """A line with a hole where nobody watched, as between two processes of a run that went on."""
    times, kept = thinned([round(at / 1e9, 3) for at in time_ns], [float(f"{value:.5g}") for value in values])
    usual = sorted(b - a for a, b in pairwise(times))
    longest = GAP_INTERVALS * usual[len(usual) // 2] if usual else 0.0
    x: list[float | None] = []
    y: list[float | None] = []
    for at, value in zip(times, kept, strict=True):
        if x and longest and x[-1] is not None and at - x[-1] > longest:
            x.append(None)
            y.append(None)
        x.append(at)
        y.append(value)
    return _line(name, x, y, tint, hover)


def _line(
    name: str, x: Sequence[float | None], y: Sequence[float | None], tint: str, hover: str, *, width: float = 1.6
) -> dict[str, Any]:
    return {
        "type": "scatter",
        "mode": "lines",
        "name": safe(name if len(name) <= LONGEST else name[: LONGEST - 1] + "…"),
        "x": list(x),
        "y": list(y),
        "line": {"color": tint, "width": width},
        "hovertemplate": f"%{{x:.2f}} s: {hover}<extra></extra>",
    }
