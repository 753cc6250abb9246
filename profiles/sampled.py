"""What the native sampler wrote: time lines, power over time, and what watching cost. kernels/runner has the format."""

from __future__ import annotations

import math
from array import array
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from edge.core.errors import EdgeError
from edge.core.measurement import MemorySample, SamplerCost, Track
from edge.profiles.energy import Window
from edge.profiles.journal import Attempt
from edge.profiles.telemetry import Column, Power, rail
from edge.runtimes.probes.power import battery
from edge.runtimes.probes.power.series import Channel, PowerUnavailableError, Series, Source, refreshed, series_of

MOST_BYTES, MOST_CELLS = 1 << 30, 100_000_000
SCALES = {
    "mC": ("C", 1e-3),
    "dC": ("C", 0.1),
    "kHz": ("kHz", 1.0),
    "kB": ("B", 1024.0),
    "percent": ("percent", 1.0),
    "flag": ("count", 1.0),
}
Floats = NDArray[np.float64]


@dataclass
class Segment:
    """What one sampler process wrote. Times are its boot's monotonic clock.

    boot_offset_ns: how long the device had slept since its boot. end: what its last line says, empty where it was
    killed. suspended: when the device had slept, and for how long.
    """

    names: list[str]
    boot: str = ""
    interval_ns: int = 0
    boot_offset_ns: int = 0
    end: dict[str, int] = field(default_factory=dict)
    suspended: list[tuple[int, int]] = field(default_factory=list)
    _stamps: array[int] = field(default_factory=lambda: array("q"))
    _values: array[float] = field(default_factory=lambda: array("d"))

    def add(self, start_ns: int, sweep_ns: int, values: Sequence[float]) -> None:
        """A tick; one that isn't later than the last is passed over."""
        if not self._stamps or start_ns > self._stamps[-2]:
            self._stamps.extend((start_ns, sweep_ns))
            self._values.extend(values)

    @property
    def sweeps_ns(self) -> NDArray[np.int64]:
        return np.frombuffer(self._stamps, np.int64)[1::2]

    @property
    def time_ns(self) -> NDArray[np.int64]:
        """The middle of each sweep."""
        return np.frombuffer(self._stamps, np.int64)[::2] + self.sweeps_ns // 2

    def column(self, name: str) -> Floats:
        """One value per tick, NaN where it wasn't read; all NaN where there is no such column."""
        ticks = len(self._stamps) // 2
        if name not in self.names:
            return np.full(ticks, np.nan)
        return np.frombuffer(self._values, np.float64).reshape(ticks, len(self.names))[:, self.names.index(name)]


def parse(data: bytes) -> list[Segment]:
    """The segments of a sampler's output; a line that a kill cut off at the end is left out.

    Raises `EdgeError` (samples.damaged) for what the sampler doesn't write.
    """
    if len(data) > MOST_BYTES:
        raise _damaged(f"{len(data)} bytes")
    lines = data.decode("ascii", "replace").split("\n")[:-1]  # what follows the last line end is cut off
    found: list[Segment] = []
    cells = 0
    for number, line in enumerate(lines, 1):
        head, *rest = line.split("\t")
        cells += len(rest) + 1
        if cells > MOST_CELLS:
            raise _damaged("too many values")
        if head == "time_ns":
            found.append(Segment(rest[1:]))
        elif not found or not _take(found[-1], head, rest):
            raise _damaged(f"line {number} reads {line[:40]!r}")
    return found


def _take(segment: Segment, head: str, rest: list[str]) -> bool:
    """Add a line to its segment; whether it is one that belongs there."""
    if head == "begin" and len(rest) == 5 and _numbers(rest[:4]):
        segment.interval_ns, segment.boot = int(rest[3]), rest[4]
        segment.boot_offset_ns = int(rest[1]) - int(rest[0])
    elif head == "suspended" and len(rest) == 2 and _numbers(rest):
        segment.suspended.append((int(rest[0]), int(rest[1])))
    elif head == "end" and len(rest) % 2 == 0 and _numbers(rest[1::2]):
        segment.end = {name: int(value) for name, value in zip(rest[::2], rest[1::2], strict=True)}
    elif len(rest) == len(segment.names) + 1 and _numbers([head, rest[0]]) and _numbers(rest[1:], or_none=True):
        segment.add(int(head), int(rest[0]), [float(c) if c != "-" else math.nan for c in rest[1:]])
    else:
        return False
    return True


def _numbers(cells: Sequence[str], *, or_none: bool = False) -> bool:
    return all((or_none and c == "-") or (len(c) <= 20 and c.removeprefix("-").isdecimal()) for c in cells)


def tracks(segments: Sequence[Segment], watched: Sequence[Column], attempts: Sequence[Attempt]) -> list[Track]:
    """Every column that says something by itself, over the time since the run's start."""
    found = []
    for column in watched:
        if column.unit in SCALES:
            unit, factor = SCALES[column.unit]
            times, values = _line(segments, lambda s, n=column.name: s.column(n), attempts)
            if times:
                found.append(Track(column.name, unit, times, [round(value * factor, 6) for value in values]))
    return found


def power_tracks(segments: Sequence[Segment], source: Source, attempts: Sequence[Attempt]) -> list[Track]:
    """`power/RAIL` in µW, `energy/RAIL` in µJ, of every rail, those behind others too."""
    found = []
    for channel in source.channels:
        kind, unit = ("energy", "uJ") if channel.kind == "energy" else ("power", "uW")
        times, values = _line(segments, lambda s, c=channel: _values(s, c), attempts)
        if times:
            found.append(Track(f"{kind}/{channel.name}", unit, times, values))
    return found


def memory(segments: Sequence[Segment], attempts: Sequence[Attempt]) -> list[MemorySample]:
    times, values = _line(segments, lambda s: s.column("memory/resident"), attempts)
    return [MemorySample(at, round(1024 * kb)) for at, kb in zip(times, values, strict=True)]


def cost(segments: Sequence[Segment]) -> SamplerCost | None:
    """What watching cost; None where every sampler was killed before it could say."""
    ends = [s.end for s in segments if s.end.get("wall_ns")]
    if not ends:
        return None
    cpu, wall, ticks = (sum(end.get(name, 0) for end in ends) for name in ("cpu_ns", "wall_ns", "ticks"))
    return SamplerCost(rate_hz=round(1e9 * ticks / wall, 3), cpu_share=cpu / wall)


def from_samples(segments: Sequence[Segment], source: Source, boot: str = "") -> Power:
    """The power of a run from what the sampler read of the source's files. boot: which one counts; empty: the last."""

    def power(windows: Sequence[Window]) -> tuple[Series, str]:
        wanted = boot or (segments[-1].boot if segments else "")
        mine = [s for s in segments if s.boot == wanted]
        slept_s = sum(ns for s in mine for _, ns in s.suspended) / 1e9
        note = f"; the device slept for {slept_s:.0f} s meanwhile" if slept_s else ""
        return series(mine, source), source.describe() + note

    return power


def series(segments: Sequence[Segment], source: Source) -> Series:
    """The whole of a source over time, of segments of one boot. Raises `PowerUnavailableError` where it can't be told.

    A battery's gauge is calibrated by these readings; while a charger feeds the device it tells nothing.
    """
    for segment in segments:
        for name in segment.names:
            if source.name == battery.NAME and name.startswith("charger/") and np.nansum(segment.column(name)) > 0:
                reason = f"the battery's gauge tells nothing while {name.removeprefix('charger/')} feeds the device"
                raise PowerUnavailableError(f"{reason}: unplug it, and use adb over Wi-Fi")
    channels = [channel for channel in source.channels if channel.name in source.total]
    if source.name == battery.NAME:
        current, voltage = (rail(channels[0].name, part) for part in (0, 1))
        times, (amount, volts), _ = _common(segments, [lambda s: s.column(current), lambda s: s.column(voltage)])
        return battery.series_of_readings(times.tolist(), amount.tolist(), volts.tolist())
    times, values, jitter = _common(segments, [lambda s, c=channel: _values(s, c) for channel in channels])
    parts = [series_of(c, times.tolist(), v.tolist(), jitter) for c, v in zip(channels, values, strict=True)]
    return refreshed(source.whole(parts))


def _common(
    segments: Sequence[Segment], readers: Sequence[Callable[[Segment], Floats]]
) -> tuple[NDArray[np.int64], list[Floats], int]:
    """Times at which all that is read was there, the values, and the stamps' jitter."""
    rows = [(s.time_ns, [read(s) for read in readers]) for s in segments if len(s.time_ns)]
    if not rows:
        raise PowerUnavailableError("the sampler read nothing")
    times = np.concatenate([time for time, _ in rows])
    values = [np.concatenate([read[i] for _, read in rows]) for i in range(len(readers))]
    there = ~np.isnan(np.sum(values, axis=0)) & np.concatenate([[True], np.diff(times) > 0])
    if there.sum() < 3:
        raise PowerUnavailableError("the sampler could not read the power files")
    jitter = int(np.percentile(np.concatenate([s.sweeps_ns for s in segments if len(s.time_ns)]) / 2, 95))
    return times[there], [value[there] for value in values], jitter


def _values(segment: Segment, channel: Channel) -> Floats:
    parts = [segment.column(rail(channel.name, i)) for i in range(len(channel.files))]
    if not parts:
        return np.full(len(segment.time_ns), np.nan)
    with np.errstate(invalid="ignore"):
        return np.asarray(channel.value(parts), np.float64)


def _line(
    segments: Sequence[Segment], reader: Callable[[Segment], Floats], attempts: Sequence[Attempt]
) -> tuple[list[int], list[float]]:
    times: list[int] = []
    values: list[float] = []
    for segment, offset in _placed(segments, attempts):
        at, read = segment.time_ns + offset, reader(segment)
        there = ~np.isnan(read) & (at >= 0)
        times += at[there].tolist()
        values += read[there].tolist()
    return times, values


def _placed(segments: Sequence[Segment], attempts: Sequence[Attempt]) -> list[tuple[Segment, int]]:
    """Segments of boots that the journal knows, with what ties their clock to the run's start."""
    offsets = {attempt.begin.boot: attempt.offset_ns for attempt in attempts}
    only = next(iter(offsets.values())) if len(offsets) == 1 and "" in offsets else None
    found = [(s, offsets.get(s.boot, only)) for s in segments]
    return [(s, offset) for s, offset in found if offset is not None]


def _damaged(reason: str) -> EdgeError:
    return EdgeError("samples.damaged", f"what the sampler wrote is damaged: {reason}", "start anew with --fresh")
