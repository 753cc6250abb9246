"""What a long run comes to: speeds cold, warm and sustained, when the clock was lowered, and which cap did it.

A run is steady when the coefficient of variation of its last k speeds is at most `STEADY_CV`: the rule of Georges,
Buytaert and Eeckhout, "Statistically Rigorous Java Performance Evaluation" (OOPSLA 2007), with their k = 10 for the
default of 5 repetitions. Heat takes minutes where a just-in-time compiler takes seconds, so a run also lasts
`LEAST_SECONDS`, however steady it looks before.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

from edge.core.measurement import Measurement, Repetition, Track
from edge.profiles.statistics import rate, summarize

STEADY_CV = 0.02
LEAST_SECONDS = 180.0
GENERATED_TOKENS = 256
"""Tokens that each round makes by default: long enough that a device doesn't cool in the prompts between."""
WINDOW = 3  # rounds whose median is a speed, so that one that was disturbed is none
SLOWER = 0.05  # a fall of the speed that matters; it also has to be four standard deviations


@dataclass(frozen=True)
class Sustained:
    """Speeds in tokens per second: of the first round, of those after it until it was slowed, and of the last k.

    retention: sustained over warm. throttled_after_s: from the first round on, None where nothing was lowered and
    the speed held. cause: the cap that fell, with its values, or that none did; empty where nothing happened.
    temperature_c: the hottest at that time. steady: else it was cut off while it still changed.
    """

    cold: float
    warm: float
    sustained: float
    steady: bool
    throttled_after_s: float | None = None
    cause: str = ""
    temperature_c: float | None = None

    @property
    def retention(self) -> float:
        return self.sustained / self.warm


@dataclass(frozen=True)
class Fall:
    """A cap that was lowered: when, since the run's start, and from what to what."""

    at_ns: int
    name: str
    before: float
    after: float

    def __str__(self) -> str:
        return f"{self.name} fell from {self.before / 1e6:.2f} to {self.after / 1e6:.2f} GHz"


def is_steady(speeds: Sequence[float], k: int) -> bool:
    """Whether the last k speeds vary so little that more of them would be the same."""
    return len(speeds) >= k > 1 and summarize(speeds[-k:]).cv <= STEADY_CV


def sustained(measurement: Measurement, k: int = 10) -> Sustained:
    """What the rounds of a sustained run say together with the tracks beside them.

    Raises `EdgeError` for a measurement without rounds.
    """
    rounds = measurement.repetitions
    speeds = [rate(r) for r in rounds]
    slow = _first_slow(speeds)
    falls = _falls(measurement, rounds)
    warm = summarize(speeds[min(1, len(speeds) - 1) : slow] or speeds[:1]).median
    found = Sustained(
        cold=summarize(speeds[:1]).median,
        warm=warm,
        sustained=summarize(speeds[-k:]).median,
        steady=is_steady(speeds, k),
    )
    times = [rounds[slow].start_ns] if slow is not None else []
    times += [fall.at_ns for fall in falls[:1]] or [r.start_ns for r in rounds if r.throttled][:1]
    if not times:
        return found
    return replace(
        found,
        throttled_after_s=(min(times) - rounds[0].start_ns) / 1e9,
        cause=_cause(falls, None if slow is None else _end_ns(rounds[slow])),
        temperature_c=_hottest(measurement.tracks, min(times)),
    )


def _end_ns(repetition: Repetition) -> int:
    return repetition.start_ns + repetition.prefill_ns + sum(repetition.decode_ns)


def _first_slow(speeds: Sequence[float]) -> int | None:
    """The first round after the fastest stretch from which on a window of rounds is slower than noise explains."""
    stretches = [summarize(speeds[i : i + WINDOW]).median for i in range(max(1, len(speeds) - WINDOW + 1))]
    best = stretches.index(max(stretches))
    least = max(stretches) * (1 - max(SLOWER, 4 * _noise(speeds)))
    later = range(best + 1, len(speeds) - WINDOW + 1)
    return next((i for i in later if max(speeds[i : i + WINDOW]) < least), None)


def _noise(speeds: Sequence[float]) -> float:
    """Relative standard deviation of a round from its neighbours, which a single step or a drift hardly moves."""
    changes = [abs(b - a) / (a + b) for a, b in pairwise(speeds)]  # of their mean, halved
    return 2 * 1.4826 / math.sqrt(2) * summarize(changes).median if changes else 0.0


def _falls(measurement: Measurement, rounds: Sequence[Repetition]) -> list[Fall]:
    """The first fall of every cap during the rounds, in the order of time; of the cores that they were kept on."""
    begun, ended = rounds[0].start_ns, _end_ns(rounds[-1])
    cores = {f"cap/cpu{core}" for core in measurement.protocol.cores}
    found = []
    for track in measurement.tracks:
        elsewhere = cores and track.name.startswith("cap/cpu") and track.name not in cores
        if not track.name.startswith("cap/") or elsewhere:
            continue
        highest = 0.0
        for at_ns, value in zip(track.time_ns, track.values, strict=True):
            if value < highest and begun <= at_ns <= ended:
                found.append(Fall(at_ns, track.name.removeprefix("cap/"), highest, value))
                break
            highest = max(highest, value)
    return sorted(found, key=lambda fall: fall.at_ns)


def _cause(falls: Sequence[Fall], slow_ns: int | None) -> str:
    """The cap that fell furthest until the speed was seen to sink, by the share of it that was left."""
    until = [fall for fall in falls if slow_ns is None or fall.at_ns <= slow_ns]
    if until:
        return str(min(until, key=lambda fall: (fall.after / fall.before, fall.at_ns)))
    return "no cap of the clock fell before: heat may not be the reason"


def _hottest(tracks: Sequence[Track], at_ns: int) -> float | None:
    """Of the last readings up to a time."""
    last = []
    for track in tracks:
        if track.name.startswith("temperature/"):
            last += [v for t, v in zip(track.time_ns, track.values, strict=True) if t <= at_ns][-1:]
    return max(last, default=None)
