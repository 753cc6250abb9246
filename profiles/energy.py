"""Energy of stretches of a run, with an idle baseline and an uncertainty budget.

Every term of a budget is a standard uncertainty in µJ (JCGM 100:2008, GUM): limits of an error become a rectangular
distribution (half-width / √3). Terms are combined by root of the sum of squares, and the stated uncertainty is the
expanded one with k = 2, about 95 %. Over several stretches, what has one cause (gain, offset, resolution, clock, idle)
adds up linearly; what differs from stretch to stretch adds up in squares.

A stretch is expected to begin and end where the load changes, so readings on the two sides of an end are never joined
by a straight line across it. NumPy and the standard library only.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from edge.runtimes.probes.power.series import PowerUnavailableError, Series

COVERAGE_FACTOR = 2.0
SHARED_TERMS = ("gain", "offset", "resolution", "clock", "idle", "drift")
IDLE_BLOCKS = 8
LEAST_BLOCKS = 4
GAP = 3.0  # intervals that are longer than this many usual ones are gaps
NEIGHBOURS = 5  # readings beside an end that tell the power there
ROOT3, ROOT6, ROOT12 = math.sqrt(3), math.sqrt(6), math.sqrt(12)

Floats = NDArray[np.float64]
Status = Literal["ok", "below_resolution", "not_available"]


@dataclass(frozen=True)
class Window:
    """A stretch of the run, on the clock of the readings, and the tokens that it made (or read, for a prefill)."""

    name: str
    start_ns: int
    end_ns: int
    tokens: int = 0

    @property
    def seconds(self) -> float:
        return (self.end_ns - self.start_ns) / 1e9


@dataclass(frozen=True)
class Estimate:
    """An energy in µJ and the standard uncertainties that it has, by cause."""

    energy_uj: float
    budget_uj: dict[str, float]

    @property
    def expanded_uj(self) -> float:
        """k = 2."""
        return COVERAGE_FACTOR * math.sqrt(sum(u * u for u in self.budget_uj.values()))

    @property
    def status(self) -> Status:
        return "ok" if self.energy_uj > self.expanded_uj else "below_resolution"


@dataclass(frozen=True)
class Idle:
    """Power at rest before and after, µW. `error_uw` are the standard uncertainties of the two means.

    unrest: how much the energy of a second of rest scatters, µJ; of T seconds it is √T times that.
    """

    power_uw: tuple[float, float]
    error_uw: tuple[float, float]
    middle_ns: tuple[float, float]
    unrest_uj: float = 0.0

    def at(self, time_ns: float) -> float:
        """Drawn straight between the two."""
        share = (time_ns - self.middle_ns[0]) / (self.middle_ns[1] - self.middle_ns[0])
        return self.power_uw[0] + share * (self.power_uw[1] - self.power_uw[0])

    def error_at(self, time_ns: float) -> float:
        share = (time_ns - self.middle_ns[0]) / (self.middle_ns[1] - self.middle_ns[0])
        return math.hypot((1 - share) * self.error_uw[0], share * self.error_uw[1])

    @property
    def drift_uw(self) -> float:
        """The way between the two is not known: it may have gone at once at any time."""
        return abs(self.power_uw[1] - self.power_uw[0]) / ROOT12


@dataclass(frozen=True)
class WindowEnergy:
    """Gross as read, net of the idle baseline."""

    name: str
    tokens: int
    seconds: float
    gross: Estimate
    net: Estimate

    @property
    def joules_per_token(self) -> float:
        return self.net.energy_uj / self.tokens / 1e6

    @property
    def expanded_joules_per_token(self) -> float:
        return self.net.expanded_uj / self.tokens / 1e6

    @property
    def milliwatt_hours_per_token(self) -> float:
        return self.joules_per_token / 3.6


def idle_baseline(series: Series, before: Window, after: Window) -> Idle:
    """Mean power of two quiet stretches, each with the standard error of its blocks."""
    means, errors, unrests = zip(*(_idle_power(series, window) for window in (before, after)), strict=True)
    middles = tuple((window.start_ns + window.end_ns) / 2 for window in (before, after))
    return Idle(
        (means[0], means[1]), (errors[0], errors[1]), (middles[0], middles[1]), math.hypot(*unrests) / math.sqrt(2)
    )


def window_energy(series: Series, window: Window, idle: Idle) -> WindowEnergy:
    """Gross and net energy of a window. Raises `PowerUnavailableError` where the readings don't cover it."""
    gross = gross_energy(series, window.start_ns, window.end_ns)
    middle = (window.start_ns + window.end_ns) / 2
    net_uj = gross.energy_uj - idle.at(middle) * window.seconds
    budget = {name: u for name, u in gross.budget_uj.items() if name not in ("offset", "gain")}  # offset: on both
    budget["gain"] = _gain(series.accuracy.gain) * abs(net_uj) / ROOT3
    budget["resolution"] = gross.budget_uj["resolution"] * (1 if series.kind == "energy" else math.sqrt(2))
    budget["idle"] = idle.error_at(middle) * window.seconds
    budget["drift"] = idle.drift_uw * window.seconds
    budget["background"] = idle.unrest_uj * math.sqrt(window.seconds)  # what else runs goes on during the load
    return WindowEnergy(window.name, window.tokens, window.seconds, gross, Estimate(net_uj, budget))


def total(parts: Sequence[WindowEnergy], name: str) -> WindowEnergy:
    """Several windows as one: all prefills, all decodes."""
    gross, net = (_sum([getattr(part, which) for part in parts]) for which in ("gross", "net"))
    return WindowEnergy(name, sum(p.tokens for p in parts), sum(p.seconds for p in parts), gross, net)


def _sum(parts: Sequence[Estimate]) -> Estimate:
    names = {name for part in parts for name in part.budget_uj}
    budget = {}
    for name in sorted(names):
        terms = [part.budget_uj.get(name, 0.0) for part in parts]
        budget[name] = sum(terms) if name in SHARED_TERMS else math.sqrt(sum(u * u for u in terms))
    return Estimate(sum(part.energy_uj for part in parts), budget)


def gross_energy(series: Series, start_ns: float, end_ns: float) -> Estimate:
    """What was used between two times, in µJ."""
    if end_ns <= start_ns:
        raise PowerUnavailableError(f"{series.name}: an empty stretch has no energy")
    # readings are up to `delay` old: set them back by half of it, and doubt the other half
    time = (series.time_ns - series.accuracy.delay_ns / 2).astype(np.float64)
    reach = series.accuracy.delay_ns  # a reading tells of the time until the next one is due
    if len(time) < 3 or time[0] > start_ns + reach or time[-1] < end_ns - reach:
        raise PowerUnavailableError(f"{series.name}: its readings don't cover the stretch")
    if series.kind == "energy":
        energy_uj, budget, contrast_uw = _difference(time, series, start_ns, end_ns)
    else:
        energy_uj, budget, contrast_uw = _integral(time, series, start_ns, end_ns)
    accuracy, seconds = series.accuracy, (end_ns - start_ns) / 1e9
    clock_s = (accuracy.clock_ns + accuracy.delay_ns / 2) / 1e9
    budget["gain"] = _gain(accuracy.gain) * abs(energy_uj) / ROOT3
    budget["offset"] = accuracy.offset_uw * seconds / ROOT3
    budget["clock"] = clock_s * contrast_uw / ROOT3
    return Estimate(energy_uj, budget)


def _gain(limit: float) -> float:
    """A reading that is too low by `limit` has to grow by more than that."""
    return limit / (1 - limit)


def _difference(time: Floats, series: Series, start: float, end: float) -> tuple[float, dict[str, float], float]:
    """Of a counter: between two levels, each told from both of its sides. Also the contrast of power at the ends."""
    rate = np.diff(series.value) / np.diff(time)  # µJ/ns
    levels, doubts, sides = zip(*(_level(time, series.value, rate, at) for at in (start, end)), strict=True)
    jitter = series.accuracy.jitter_ns
    budget = {
        "edges": math.hypot(*doubts),
        "jitter": jitter * math.hypot(max(sides[0]), max(sides[1])) / ROOT3,
        "resolution": series.accuracy.resolution / ROOT6,
    }
    (out0, in0), (in1, out1) = sides
    return levels[1] - levels[0], budget, 1e9 * max(abs(out1 - in0), abs(out0 - in1))


def _level(time: Floats, value: Floats, rate: Floats, at: float) -> tuple[float, float, tuple[float, float]]:
    """The counter at a time between two readings: its value, standard uncertainty, and the rate on both sides.

    The rate before the interval goes on until `at`, the one after it is there from `at` on; where the two disagree, the
    truth is anywhere that the rates seen around here could have led to.
    """
    i = min(max(int(np.searchsorted(time, at, "right")) - 1, 0), len(rate) - 1)
    before = float(rate[max(i - NEIGHBOURS, 0) : i].mean()) if i else float(rate[i])
    after = float(rate[i + 1 : i + 1 + NEIGHBOURS].mean()) if i + 1 < len(rate) else float(rate[i])
    ahead, behind = at - time[i], time[i + 1] - at
    low, high = min(before, after, rate[i]), max(before, after, rate[i])
    floor = max(value[i] + low * ahead, value[i + 1] - high * behind)
    ceiling = min(value[i] + high * ahead, value[i + 1] - low * behind)
    told = np.array([value[i] + before * ahead, value[i + 1] - after * behind])
    if time[i] <= at <= time[i + 1]:
        told = told.clip(value[i], value[i + 1])
    return float(told.mean()), max(ceiling - floor, float(np.ptp(told))) / ROOT12, (before, after)


def _integral(time: Floats, series: Series, start: float, end: float) -> tuple[float, dict[str, float], float]:
    """Of power samples: the trapezoidal rule inside, the nearest inner sample held to the ends."""
    inside = np.flatnonzero((time >= start) & (time <= end))
    if len(inside) < 2:
        raise PowerUnavailableError(
            f"{series.name}: {len(inside)} readings in a stretch of {(end - start) / 1e9:.2f} s"
        )
    first, last = int(inside[0]), int(inside[-1])
    t, p = time[first : last + 1] / 1e9, series.value[first : last + 1]
    lead, tail = t[0] - start / 1e9, end / 1e9 - t[-1]
    step, width = np.diff(p), np.diff(t)
    energy = float(((p[1:] + p[:-1]) / 2 * width).sum() + p[0] * lead + p[-1] * tail)
    weights = np.zeros(len(p))
    weights[:-1] += width / 2
    weights[1:] += width / 2
    weights[0] += lead
    weights[-1] += tail
    gaps = width > GAP * float(np.median(np.diff(time))) / 1e9
    # of one sample: what is sampled more slowly than it changes shows up in either, depending on the beat
    noise = math.sqrt(max(float((step[~gaps] ** 2).mean()) / 2 if (~gaps).any() else 0.0, float(p.var(ddof=1))))
    noise *= _student(len(p) - 1) / COVERAGE_FACTOR  # told by few samples, it is itself uncertain
    span = float(np.ptp(series.value[max(first - 1, 0) : last + 2]))  # in a gap the power may have been anywhere
    out0, out1 = _beside(series.value, first, -1), _beside(series.value, last, 1)
    in0, in1 = float(p[:NEIGHBOURS].mean()), float(p[-NEIGHBOURS:].mean())
    edges = math.hypot(
        abs(p[0] - _next(series.value, first - 1)) * lead, abs(p[-1] - _next(series.value, last + 1)) * tail
    )
    budget = {
        "noise": noise * math.sqrt(float((weights**2).sum())),
        "gaps": span * math.sqrt(float((width[gaps] ** 2).sum())) / ROOT12,
        "edges": edges / ROOT12,
        "jitter": series.accuracy.jitter_ns / 1e9 * math.sqrt(float((step**2).sum())) / ROOT3,
        "resolution": series.accuracy.resolution * (end - start) / 1e9 / ROOT12,
    }
    return energy, budget, max(abs(out1 - in0), abs(out0 - in1))


def _next(value: Floats, index: int) -> float:
    return float(value[min(max(index, 0), len(value) - 1)])


def _beside(value: Floats, index: int, direction: int) -> float:
    """Mean of the readings just outside an end; of the end itself where there are none."""
    low, high = (index - NEIGHBOURS, index) if direction < 0 else (index + 1, index + 1 + NEIGHBOURS)
    outside = value[max(low, 0) : high]
    return float(outside.mean()) if len(outside) else float(value[index])


def _idle_power(series: Series, window: Window) -> tuple[float, float, float]:
    """Mean µW of a quiet stretch, its standard uncertainty from the scatter of up to 8 blocks, and its unrest."""
    whole = gross_energy(series, window.start_ns, window.end_ns)
    time = series.time_ns - series.accuracy.delay_ns / 2
    readings = int(((time >= window.start_ns) & (time <= window.end_ns)).sum())
    blocks = min(IDLE_BLOCKS, readings // 3)
    if blocks < LEAST_BLOCKS:
        raise PowerUnavailableError(f"{series.name}: {readings} readings while idle are too few for a baseline")
    ends = np.linspace(window.start_ns, window.end_ns, blocks + 1)
    found = [_block_power(series, a, b) for a, b in pairwise(ends)]
    powers = [power for power in found if power is not None]
    if len(powers) < LEAST_BLOCKS:
        raise PowerUnavailableError(f"{series.name}: too many gaps while idle for a baseline")
    blocks = len(powers)
    spread = float(np.std(powers, ddof=1)) * _student(blocks - 1) / COVERAGE_FACTOR
    known = [whole.budget_uj[name] for name in ("noise", "edges", "jitter", "clock") if name in whole.budget_uj]
    if series.kind == "energy":
        known.append(whole.budget_uj["resolution"])
    error = max(spread / math.sqrt(blocks), math.hypot(*known) / window.seconds)
    return whole.energy_uj / window.seconds, error, spread * math.sqrt(window.seconds / blocks)


def _block_power(series: Series, start: float, end: float) -> float | None:
    """None where a gap left too few readings."""
    try:
        return gross_energy(series, start, end).energy_uj * 1e9 / (end - start)
    except PowerUnavailableError:
        return None


def _student(freedom: int) -> float:
    """Student's t for 95 %, both sides: within 7 % of the table."""
    return 1.96 + 2.37 / freedom + 2.82 / freedom**2 + 5.6 / freedom**5
