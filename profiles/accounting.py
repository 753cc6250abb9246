"""From power over time and the stretches of a run to what they used: one way for every source, here and elsewhere."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from edge.core.measurement import Energy, EnergyWindow
from edge.profiles.energy import Idle, Window, idle_baseline, total, window_energy
from edge.runtimes.probes.power import meter_csv
from edge.runtimes.probes.power.series import PowerUnavailableError, Series


def account(series: Series, described: str, before: Window, windows: Sequence[Window], after: Window) -> Energy:
    """What `windows` used, prefill and decode apart, net of the idle stretches before and after; or why not.

    described: of the source, in words. A decode's tokens are those after the first, which its prefill made.
    """
    try:
        idle = idle_baseline(series, before, after)
        whole = total([window_energy(series, span, idle) for span in merged(windows)], "all")
    except PowerUnavailableError as error:
        return not_available(str(error))
    names = dict.fromkeys(window.name for window in windows)
    phases = [phase_energy(series, [w for w in windows if w.name == name], idle) for name in names]
    return Energy(
        source=series.source,
        reason="; ".join(filter(None, [described, series.accuracy.note])),
        energy_uj=round(whole.gross.energy_uj),
        idle_uw=round(idle.at(sum(idle.middle_ns) / 2)),
        idle_spread_uw=round(abs(idle.power_uw[1] - idle.power_uw[0])),
        duration_ns=round(1e9 * whole.seconds),
        tokens=sum(w.tokens + (w.name == "decode") for w in windows if w.name != "prefill"),
        uncertainty_uj=round(whole.gross.expanded_uj),
        net_uj=round(whole.net.energy_uj),
        net_uncertainty_uj=round(whole.net.expanded_uj),
        windows=phases,
    )


def not_available(reason: str) -> Energy:
    return Energy(source="not_available", reason=reason)


def of_meter(file: Path, windows: Sequence[Window]) -> tuple[Series, str]:
    """An external meter's readings and what to call them. Its clock is tied to the load's begin and end."""
    read = meter_csv.read(file)
    alignment = meter_csv.align(read, [windows[0].start_ns, windows[-1].end_ns])
    return meter_csv.aligned(read, alignment), f"{file.name}, clock aligned within {alignment.doubt_ns / 1e6:.1f} ms"


def merged(windows: Sequence[Window]) -> list[Window]:
    """Stretches that follow each other without a break as one."""
    spans: list[Window] = []
    for window in windows:
        if spans and spans[-1].end_ns == window.start_ns:
            spans[-1] = Window("all", spans[-1].start_ns, window.end_ns)
        else:
            spans.append(window)
    return spans


def phase_energy(series: Series, windows: Sequence[Window], idle: Idle) -> EnergyWindow:
    """All stretches of one name; not available where one is too short for the source."""
    name, tokens = windows[0].name, sum(w.tokens for w in windows)
    duration_ns = sum(w.end_ns - w.start_ns for w in windows)
    try:
        energy = total([window_energy(series, window, idle) for window in windows], name)
    except PowerUnavailableError as error:
        return EnergyWindow(name, "not_available", tokens, duration_ns, reason=str(error))
    return EnergyWindow(
        name=name,
        status=energy.net.status,
        tokens=tokens,
        duration_ns=duration_ns,
        gross_uj=round(energy.gross.energy_uj),
        gross_uncertainty_uj=round(energy.gross.expanded_uj),
        net_uj=round(energy.net.energy_uj),
        net_uncertainty_uj=round(energy.net.expanded_uj),
        net_budget_uj={cause: round(u, 1) for cause, u in energy.net.budget_uj.items()},
    )
