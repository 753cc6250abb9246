"""What a power source gives: readings of one quantity over time, and what is known of their errors."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

SourceClass = Literal["external_meter", "hardware_counter", "gauge", "model"]
Kind = Literal["energy", "power"]
NEWS_FOR_A_BASELINE = 18  # twelve readings, where one in a period and a half is news


class PowerUnavailableError(Exception):
    """Why a source gives nothing, in words for a user: "needs root"."""


@dataclass(frozen=True)
class Accuracy:
    """Limits of a source's errors. Half-widths except resolution, which is the whole step, and delay.

    gain is relative. offset_uw is a constant error of the power. resolution is in the unit of the values. A reading
    is between 0 and delay_ns older than its stamp (its refresh period, its averaging). clock_ns is the offset between
    the sensor's clock and this machine's, one for the whole run; jitter_ns is each stamp's own error.
    """

    gain: float = 0.0
    offset_uw: float = 0.0
    resolution: float = 0.0
    delay_ns: int = 0
    clock_ns: int = 0
    jitter_ns: int = 0
    note: str = ""


@dataclass(frozen=True)
class Series:
    """Readings of one rail or of a sum of rails.

    kind "energy": value is a cumulative count in µJ that never falls (wraps are undone). kind "power": µW at time_ns.
    time_ns rises strictly; it is the monotonic clock of the machine that the load runs on.
    """

    name: str
    kind: Kind
    source: SourceClass
    time_ns: NDArray[np.int64]
    value: NDArray[np.float64]
    accuracy: Accuracy

    def __post_init__(self) -> None:
        if len(self.time_ns) != len(self.value):
            raise ValueError(f"{self.name}: {len(self.time_ns)} times and {len(self.value)} values")
        if (np.diff(self.time_ns) <= 0).any():
            raise ValueError(f"{self.name}: times don't rise")
        if self.kind == "energy" and (np.diff(self.value) < 0).any():
            raise PowerUnavailableError(f"{self.name}: the counter went backwards")


@dataclass(frozen=True)
class Channel:
    """One quantity that can be read again and again. A counter starts over at `wraps_at`; None: it never does.

    files and value: where what is read comes from, for those who read the files elsewhere: `value` makes the quantity
    of their numbers, in this order; also of arrays of them. Empty where it comes from no file.
    """

    name: str
    kind: Kind
    source: SourceClass
    read: Callable[[], float]
    accuracy: Accuracy
    wraps_at: float | None = None
    files: tuple[Path, ...] = ()
    value: Callable[[Sequence[Any]], Any] = math.prod


def of_files(
    name: str,
    kind: Kind,
    source: SourceClass,
    files: Sequence[Path],
    accuracy: Accuracy,
    wraps_at: float | None = None,
    value: Callable[[Sequence[Any]], Any] = math.prod,
) -> Channel:
    """A channel of files with one number each, read anew every time; their product, unless `value` says else."""

    def read() -> float:
        return float(value([float(file.read_text()) for file in files]))

    return Channel(name, kind, source, read, accuracy, wraps_at, tuple(files), value)


@dataclass(frozen=True)
class Source:
    """Channels that are read in one sweep, and the names of those whose sum is the whole: nothing is in it twice.

    refresh_ns: how far apart its news can be; 0 where there is some in every reading.
    """

    name: str
    channels: tuple[Channel, ...]
    total: tuple[str, ...]
    refresh_ns: int = 0

    @property
    def idle_s(self) -> float:
        """How long a rest has to be at least to tell a baseline."""
        return NEWS_FOR_A_BASELINE * self.refresh_ns / 1e9

    def whole(self, series: Sequence[Series]) -> Series:
        """The total of what was recorded of this source."""
        return combine([one for one in series if one.name in self.total], self.name)

    def describe(self) -> str:
        return f"{self.name}: {' + '.join(self.total)}"


def series_of(channel: Channel, time_ns: Sequence[int], values: Sequence[float], jitter_ns: int = 0) -> Series:
    """Readings of a channel as a series, wraps undone."""
    value = np.asarray(values, np.float64)
    if channel.kind == "energy":
        value = unwrap(value, np.asarray(time_ns), channel.wraps_at, channel.name)
    accuracy = replace(channel.accuracy, jitter_ns=max(channel.accuracy.jitter_ns, jitter_ns))
    return Series(channel.name, channel.kind, channel.source, np.asarray(time_ns, np.int64), value, accuracy)


def unwrap(
    value: NDArray[np.float64], time_ns: NDArray[np.int64], wraps_at: float | None, name: str
) -> NDArray[np.float64]:
    """Undo wraps. Raises where the readings are so far apart that the counter may have wrapped twice.

    How fast the counter may run is judged by the same record: four times its median rate.
    """
    step = np.diff(value)
    if wraps_at is None:
        if (step < 0).any():
            raise PowerUnavailableError(f"{name}: the counter went backwards, which it should not")
        return value
    step = np.where(step < 0, step + wraps_at, step)
    seconds = np.diff(time_ns) / 1e9
    block = max(len(step) // 20, 1)  # single steps are uneven: two readings can be a moment apart
    starts = np.arange(0, len(step), block)
    rates = np.add.reduceat(step, starts) / np.add.reduceat(seconds, starts) if len(step) else np.zeros(1)
    fastest = 4 * float(np.median(rates))
    if (lost := fastest * seconds > wraps_at).any():
        gap = seconds[lost].max()
        raise PowerUnavailableError(f"{name}: not read for {gap:.0f} s, in which it may have wrapped more than once")
    levels: NDArray[np.float64] = value[0] + np.concatenate([[0.0], np.cumsum(step)])
    return levels


def combine(parts: Sequence[Series], name: str = "") -> Series:
    """The sum of rails that were read in the same sweeps. Their errors are taken to be alike, so they add up."""
    first = parts[0]
    if any(p.kind != first.kind or not np.array_equal(p.time_ns, first.time_ns) for p in parts):
        raise ValueError("only series of one kind with the same times can be summed")
    accuracy = replace(
        first.accuracy,
        gain=max(p.accuracy.gain for p in parts),
        offset_uw=sum(p.accuracy.offset_uw for p in parts),
        resolution=sum(p.accuracy.resolution for p in parts),
    )
    value = np.sum([p.value for p in parts], axis=0)
    return replace(first, name=name or " + ".join(p.name for p in parts), value=value, accuracy=accuracy)


def refreshed(series: Series) -> Series:
    """Of a register that is polled faster than it changes, the readings that carry news.

    The first reading of each new value is kept, and one per refresh period where the value stays. The median distance
    of changes is the period; a reading may be that old, so it becomes the delay unless a longer one was stated.

    A source that states a period shorter than the polls' has news in each of them, also where its steps hide that.
    """
    if len(series.time_ns) > 1 and 0 < series.accuracy.delay_ns < float(np.median(np.diff(series.time_ns))):
        return series
    changed = np.flatnonzero(np.diff(series.value) != 0) + 1
    if len(changed) < 4:
        return series
    times = series.time_ns
    period = int(np.median(np.diff(times[changed])))
    poll = int(np.median(np.diff(times)))
    if period < 1.5 * poll:
        return series
    kept = [0]
    news = set(changed.tolist())
    for i in range(1, len(times)):
        if i in news or times[i] - times[kept[-1]] >= 1.5 * period or i == len(times) - 1:
            kept.append(i)
    accuracy = replace(
        series.accuracy, delay_ns=max(series.accuracy.delay_ns, period), jitter_ns=max(series.accuracy.jitter_ns, poll)
    )
    return replace(series, time_ns=times[kept], value=series.value[kept], accuracy=accuracy)


class Recorder:
    """Reads groups of channels in a thread, every `interval_s`. The channels of a group share a stamp.

    A stamp is the middle of the sweep over its group; the longest half sweep of 95 in 100 is the stamps' jitter.
    """

    def __init__(self, groups: Sequence[Sequence[Channel]], interval_s: float = 0.02) -> None:
        self.groups = [list(group) for group in groups]
        self.interval_s = interval_s
        self.errors: list[str] = []
        self._rows: list[list[tuple[int, int, list[float]]]] = [[] for _ in self.groups]
        self._lock = threading.Lock()
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="edge-power", daemon=True)

    @contextmanager
    def running(self) -> Iterator[Recorder]:
        self.sweep()
        self._thread.start()
        try:
            yield self
        finally:
            self._stopped.set()
            self._thread.join()
            self.sweep()

    def series(self, group: int = 0, only: Sequence[str] | None = None) -> list[Series]:
        """One series per channel of the group, in its order. `only`: the names of those that are wanted."""
        rows = self._rows[group]
        times = [at for at, _, _ in rows]
        jitter = int(np.percentile([half for _, half, _ in rows], 95)) if rows else 0
        return [
            series_of(channel, times, [values[i] for _, _, values in rows], jitter)
            for i, channel in enumerate(self.groups[group])
            if only is None or channel.name in only
        ]

    def news(self, names: Sequence[str], since_ns: int, group: int = 0) -> int:
        """How often the sum of these channels has changed since then."""
        wanted = [i for i, channel in enumerate(self.groups[group]) if channel.name in names]
        with self._lock:
            sums = [sum(values[i] for i in wanted) for at, _, values in self._rows[group] if at >= since_ns]
        return sum(a != b for a, b in pairwise(sums))

    def _run(self) -> None:
        while not self._stopped.wait(self.interval_s):
            self.sweep()

    def sweep(self) -> None:
        """Read everything now. A reading that fails leaves a gap, which widens the uncertainty, and is listed."""
        with self._lock:
            self._sweep()

    def _sweep(self) -> None:
        for channels, rows in zip(self.groups, self._rows, strict=True):
            start = time.monotonic_ns()
            try:
                values = [channel.read() for channel in channels]
            except (OSError, ValueError, PowerUnavailableError) as error:
                self.errors.append(str(error))
                continue
            half = (time.monotonic_ns() - start) // 2
            if not rows or start + half > rows[-1][0]:
                rows.append((start + half, half, values))
