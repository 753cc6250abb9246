"""Which of two is faster, and whether that can be known: results side by side, with what noise alone would do.

A side is the runs of one bundle, each a `Measurement`. Runs in turns (`turns.py`) are compared neighbour by neighbour;
results from files run by run, or, where a side has one run, stretch by stretch within it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any, Literal

import msgspec
import numpy as np

from edge.core.errors import UsageError
from edge.core.files import SCHEMA, read_json
from edge.core.measurement import Measurement
from edge.profiles import resampling
from edge.profiles.plan import CV_GATE
from edge.profiles.resampling import ONE_RUN_FLOOR, Ratio
from edge.profiles.statistics import conversations, decodes

Verdict = Literal["better", "worse", "no difference", "can't tell"]
# What of a fingerprint says which machine it is; the rest is its software and its state.
HARDWARE = ("cpu", "soc", "model", "serial", "architecture", "cores", "threads", "isa", "caches", "gpu")
CONVERSATION = ("prompt_tokens", "generated_tokens", "threads", "mode", "cores", "turns")


class Change(msgspec.Struct, frozen=True):
    """One metric of both sides. a, b: medians over all runs, None where it isn't known.

    words: what B is, such as faster, where there is no difference that goes beyond the floor: `no difference`.
    ratio: of B to A; low and high: the ends of its 95 % interval; floor: the share by which noise alone moves it, 0.02
    for 2 %. All None where `why` says what is missing.
    """

    metric: str
    unit: str
    verdict: Verdict
    words: str
    a: float | None = None
    b: float | None = None
    ratio: float | None = None
    low: float | None = None
    high: float | None = None
    floor: float | None = None
    why: str = ""


class Comparison(msgspec.Struct, frozen=True, kw_only=True):
    """floor: where it comes from. regressions: metrics of which B is worse by more than was allowed.

    runs: the measurements themselves, where they were made for this comparison: neighbours in time, A's before B's.
    """

    schema: int = SCHEMA
    a: str
    b: str
    runs_a: int
    runs_b: int
    floor: Literal["interleaved runs", "runs", "within one run"]
    max_regression_percent: float
    changes: list[Change]
    regressions: list[str]
    notes: list[str]
    runs: list[Measurement] = []


@dataclass(frozen=True)
class Metric:
    """values: of one run, one for each repetition, or the one that a run has; empty where the run has none.

    better, worse: what is said of B where it has more, or less, of what one wants.
    """

    name: str
    unit: str
    more_is_better: bool
    better: str
    worse: str
    values: Callable[[Measurement], list[float]]


def load(path: Path) -> list[Measurement]:
    """The runs of one side: a result of `edge profile` or `edge import`, or a folder of several of one bundle."""
    paths = sorted(path.glob("*.json")) if path.is_dir() else [path]
    if not paths:
        raise UsageError("compare.empty", f"{path} has no results", "give a bundle, or what `edge profile -o` wrote")
    runs = [read_json(file, Measurement) for file in paths]
    for file, run in zip(paths, runs, strict=True):
        if run.problem or not run.repetitions:
            raise UsageError("compare.failed", f"{file}: {run.problem or 'nothing was measured'}", "profile it again")
    if len({(run.bundle_sha256, run.name) for run in runs}) > 1:
        raise UsageError("compare.mixed", f"{path} has results of several bundles", "one folder for each bundle")
    return runs


def compare(
    a: Sequence[Measurement],
    b: Sequence[Measurement],
    *,
    interleaved: bool = False,
    anyway: bool = False,
    max_regression_percent: float = 0.0,
    labels: tuple[str, str] = ("A", "B"),
) -> Comparison:
    """Every metric that both sides have. interleaved: the runs were taken in ABBA order, as `resampling.paired` says.

    Raises `UsageError` for sides that can't be compared: real with emulated, other conversations; other devices unless
    `anyway`.
    """
    notes = check(a, b, anyway=anyway)
    single = not interleaved and min(len(a), len(b)) < 2
    if single:
        notes.append(
            "One run a side shows how it drifted, not how runs differ: the floor is a lower bound. "
            "Compare the bundles themselves for runs in turns."
        )
    changes = [_change(metric, a, b, interleaved=interleaved) for metric in METRICS]
    changes = [change for change in changes if change is not None]
    return Comparison(
        a=labels[0],
        b=labels[1],
        runs_a=len(a),
        runs_b=len(b),
        floor="interleaved runs" if interleaved else "within one run" if single else "runs",
        max_regression_percent=max_regression_percent,
        changes=changes,
        regressions=[c.metric for c in changes if _regressed(c, max_regression_percent)],
        notes=notes,
        runs=list(chain.from_iterable(zip(a, b, strict=True))) if interleaved else [],
    )


def check(a: Sequence[Measurement], b: Sequence[Measurement], *, anyway: bool = False) -> list[str]:
    """What to say of the sides' differences. Raises `UsageError` where they forbid a comparison."""
    if len({run.emulated for run in (*a, *b)}) > 1:
        hint = "no time of an emulated device means anything: profile both on a real one"
        raise UsageError("compare.emulated", "one is emulated, the other is real", hint)
    one, *others = (*a, *b)
    if different := _first(_differing(one.protocol, other.protocol) for other in others):
        hint = "profile both with the same --prompt-tokens, --generated-tokens, --threads"
        raise UsageError("compare.protocol", f"they were measured in different ways: {different}", hint)
    notes = ["Both are emulated: their times mean nothing."] if one.emulated else []
    if (foreign := _first(_foreign(one.device, other.device) for other in others)) and not anyway:
        raise UsageError("compare.device", foreign, "pass --anyway if the devices are what you compare")
    if foreign:
        notes.append(f"{foreign[0].upper()}{foreign[1:]}.")
    return notes + _other_differences(a[0], b[0])


def _foreign(one: dict[str, Any], other: dict[str, Any]) -> str:
    """Why they may be two devices, empty where they are one as far as their fingerprints tell."""
    known = [name for name in HARDWARE if one.get(name) and other.get(name)]
    differing = [f"{name} {one[name]} and {other[name]}" for name in known if one[name] != other[name]]
    if differing:
        return f"the devices differ: {'; '.join(differing)}"
    return "" if known else "it isn't known that it was one device"


def _first(found: Iterable[str]) -> str:
    """The first that isn't empty."""
    return next(filter(None, found), "")


def _other_differences(one: Measurement, other: Measurement) -> list[str]:
    """What may be the very thing compared, but should be known."""
    notes = []
    if one.name != other.name:
        notes.append(f"The models are different: {one.name} and {other.name}.")
    if one.engine != other.engine:
        notes.append(f"They were timed by different programs: {one.engine} and {other.engine}.")
    software = [
        f"{name} {one.device.get(name)} and {other.device.get(name)}"
        for name in ("os", "kernel", "python", "governor", "libraries")
        if one.device.get(name) != other.device.get(name)
    ]
    return notes + ([f"Their software differs: {'; '.join(software)}."] if software else [])


def _differing(one: Any, other: Any) -> str:
    pairs = [(name, getattr(one, name), getattr(other, name)) for name in CONVERSATION]
    return ", ".join(f"{name} {mine} and {theirs}" for name, mine, theirs in pairs if mine != theirs)


def _change(metric: Metric, a: Sequence[Measurement], b: Sequence[Measurement], *, interleaved: bool) -> Change | None:
    sides = [[metric.values(run) for run in side] for side in (a, b)]
    centers = [_median(side) for side in sides]
    if centers == [None, None]:
        return _missing_energy(metric, a, b)
    why = _incomparable(metric, a, b, sides)
    ratio = None if why else _ratio(*sides, interleaved=interleaved)
    if ratio is None:
        why = why or "one run a side has too few of them to tell noise from difference"
        return Change(metric.name, metric.unit, "can't tell", "can't tell", *centers, why=why)
    verdict, words, why = _verdict(metric, ratio)
    numbers = (ratio.value, ratio.low, ratio.high, ratio.floor)
    return Change(metric.name, metric.unit, verdict, words, *centers, *numbers, why=why)


def _ratio(a: list[list[float]], b: list[list[float]], *, interleaved: bool) -> Ratio | None:
    if interleaved:
        return resampling.paired(a, b)
    if min(len(a), len(b)) > 1:
        return resampling.unpaired(a, b)
    stretches = [[block for run in side for block in resampling.blocks(run)] for side in (a, b)]
    return resampling.unpaired(*stretches, least_floor=ONE_RUN_FLOOR) if all(stretches) else None


def _verdict(metric: Metric, ratio: Ratio) -> tuple[Verdict, str, str]:
    if abs(math.log(ratio.value)) <= math.log1p(ratio.floor):
        if ratio.floor > CV_GATE:
            return "can't tell", "can't tell", f"noise of ±{ratio.floor:.0%} hides anything smaller; more runs lower it"
        return "no difference", "no difference", ""
    if ratio.low <= 1 <= ratio.high:
        return "can't tell", "can't tell", "the interval reaches to no difference; more runs narrow it"
    if (ratio.value > 1) == metric.more_is_better:
        return "better", metric.better, ""
    return "worse", metric.worse, ""


def _regressed(change: Change, max_percent: float) -> bool:
    """Whether B is worse, and all of the interval beyond what was allowed."""
    if change.verdict != "worse" or change.ratio is None or change.low is None or change.high is None:
        return False
    allowed = max_percent / 100
    return change.high < 1 - allowed if change.ratio < 1 else change.low > 1 + allowed


def _median(side: list[list[float]]) -> float | None:
    medians = [float(np.median(run)) for run in side if run]
    return float(np.median(medians)) if medians else None


def _incomparable(
    metric: Metric, a: Sequence[Measurement], b: Sequence[Measurement], sides: list[list[list[float]]]
) -> str:
    """Why values that are there can't be compared, empty where they can."""
    if metric.name == ENERGY:
        classes = {run.energy.source for run in (*a, *b)}
        if len(classes) > 1:
            return f"from different kinds of source: {' and '.join(sorted(classes))}"
    for name, side in zip("AB", sides, strict=True):
        if missing := sum(not run for run in side):
            told = "below resolution or not available" if metric.name == ENERGY else "not told"
            return f"{told} in {missing} of {len(side)} runs of {name}"
    if any(value <= 0 for side in sides for run in side for value in run):
        return "not above zero"
    return ""


def _missing_energy(metric: Metric, a: Sequence[Measurement], b: Sequence[Measurement]) -> Change | None:
    """Energy that no side has is said; anything else that both lack is left out."""
    if metric.name != ENERGY:
        return None
    why = "; ".join(sorted({run.energy.reason or "below resolution" for run in (*a, *b)}))
    return Change(metric.name, metric.unit, "can't tell", "can't tell", why=why)


def _decode(run: Measurement) -> list[float]:
    steps = [[ns for r in turns for ns in r.decode_ns] for turns in conversations(run)]
    return [len(ns) / (sum(ns) / 1e9) for ns in steps if sum(ns)]


def _prefill(run: Measurement) -> list[float]:
    timed = [(sum(r.prompt_tokens for r in t), sum(r.prefill_ns for r in t)) for t in conversations(run)]
    return [tokens / (ns / 1e9) for tokens, ns in timed if tokens and ns]


def _first_ms(run: Measurement) -> list[float]:
    """Milliseconds until the first token of the first turn, or that a call took."""
    return [turns[0].prefill_ns / 1e6 for turns in conversations(run) if turns[0].prefill_ns]


def _net_energy(run: Measurement) -> list[float]:
    """Millijoules net of idle per decoded token, or per call."""
    window = next((w for w in run.energy.windows if w.name in ("decode", "call")), None)
    if window is None or window.status != "ok" or not window.tokens:
        return []
    return [window.net_uj / window.tokens / 1000]


ENERGY = "net energy per token"
METRICS = (
    Metric("decode", "tokens/s", True, "faster", "slower", _decode),
    Metric("prefill", "tokens/s", True, "faster", "slower", _prefill),
    Metric("time to first token", "ms", False, "faster", "slower", lambda run: _first_ms(run) if decodes(run) else []),
    Metric("time per call", "ms", False, "faster", "slower", lambda run: [] if decodes(run) else _first_ms(run)),
    Metric("load", "ms", False, "faster", "slower", lambda run: [run.load_ns / 1e6] if run.load_ns else []),
    Metric("peak memory", "MB", False, "less", "more", lambda run: [run.peak_bytes / 1e6] if run.peak_bytes else []),
    Metric(ENERGY, "mJ", False, "less", "more", _net_energy),
)
