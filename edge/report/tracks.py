"""What was watched over a run, made ready to be looked at: cores as clusters, counters as power, steps as speed.

Times are nanoseconds since the start of the run.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np

from edge.core.measurement import Measurement, Repetition, Track
from edge.profiles.boards import boards
from edge.runtimes.probes.power.odpm import total_rails

STEPS = ("prefill", "decode", "call", "encode")  # phases that repetitions tell of already
WHOLE = ("total", "VIN", "POM_5V_IN", "VDD_IN", "battery", "psys")  # rails that carry all others, the first there is
CORE = re.compile(r"cpu(\d+)$")


@dataclass(frozen=True)
class Cluster:
    """Cores that share a clock, with the mean of their clocks and the lowest of their caps. cap_khz may be empty."""

    name: str
    time_ns: list[int]
    frequency_khz: list[float]
    cap_khz: list[float]


@dataclass(frozen=True)
class Rail:
    """total: all the others are parts of it."""

    name: str
    time_ns: list[int]
    power_uw: list[float]
    total: bool = False

    @property
    def mean_uw(self) -> float:
        return float(np.mean(self.power_uw))


def of(measurement: Measurement, kind: str) -> list[Track]:
    """Tracks whose name begins with `kind/` and that have values."""
    return [track for track in measurement.tracks if track.name.startswith(f"{kind}/") and track.values]


def short(track: Track) -> str:
    """The name without its kind."""
    return track.name.partition("/")[2] or track.name


def placed(measurement: Measurement) -> list[Repetition]:
    """The repetitions, where it is known when they began; else none.

    Of a result that was put together from several runs those of the last, whose timeline it has.
    """
    found = measurement.repetitions
    if not any(r.start_ns for r in found):
        return []
    first = max((i for i in range(1, len(found)) if found[i].start_ns < end_ns(found[i - 1])), default=0)
    return found[first:]


def end_ns(repetition: Repetition) -> int:
    return repetition.start_ns + repetition.prefill_ns + sum(repetition.decode_ns)


def windows(repetition: Repetition, steps: int) -> list[tuple[int, float]]:
    """The middle of each window of decode steps and its tokens per second; a short last one joins the one before."""
    ends = repetition.start_ns + repetition.prefill_ns + np.cumsum([0, *repetition.decode_ns])
    edges = list(range(0, len(ends) - steps, steps)) or [0]
    edges.append(len(ends) - 1)
    return [
        (int(ends[a] + ends[b]) // 2, (b - a) / ((ends[b] - ends[a]) / 1e9))
        for a, b in pairwise(edges)
        if ends[b] > ends[a]
    ]


def clusters(measurement: Measurement) -> list[Cluster]:
    """Neighbouring cores whose clocks reach as high as each other's are taken for a cluster."""
    speeds, caps = (
        {int(found.group(1)): track for track in of(measurement, kind) if (found := CORE.search(track.name))}
        for kind in ("frequency", "cap")
    )
    groups: list[list[int]] = []
    reach = {core: max(caps[core].values if core in caps else track.values) for core, track in speeds.items()}
    for core in sorted(speeds):
        if groups and groups[-1][-1] == core - 1 and abs(reach[core] / reach[core - 1] - 1) < 0.02:
            groups[-1].append(core)
        else:
            groups.append([core])
    return [_cluster(group, speeds, caps) for group in groups]


def _cluster(cores: Sequence[int], speeds: dict[int, Track], caps: dict[int, Track]) -> Cluster:
    name = f"cpu{cores[0]}" if len(cores) == 1 else f"cpu{cores[0]}–{cores[-1]}"
    times, clocks = _together([speeds[core] for core in cores])
    held = [caps[core] for core in cores if core in caps]
    lowest = np.min([np.interp(times, t.time_ns, t.values) for t in held], axis=0).tolist() if held else []
    return Cluster(name, times, np.mean(clocks, axis=0).tolist(), lowest)


def _together(found: Sequence[Track]) -> tuple[list[int], np.ndarray]:
    """Values [tracks, times] at the first one's times."""
    times = found[0].time_ns
    return list(times), np.stack([np.interp(times, track.time_ns, track.values) for track in found])


def envelope(found: Sequence[Track]) -> tuple[list[int], list[float], list[float]]:
    """The lowest and the highest of several tracks over time."""
    times, values = _together(found)
    return times, values.min(axis=0).tolist(), values.max(axis=0).tolist()


def power(measurement: Measurement) -> list[Rail]:
    """Every rail's power, of a counter what it rose by. The total carries all the others, or is the sum of those."""
    watched = [*of(measurement, "power"), *of(measurement, "energy")]
    rails = [rail for track in watched if (rail := _rail(track))]
    names = [rail.name for rail in rails]
    whole = _whole(measurement, names)
    if len(whole) == 1:
        return [replace(rail, total=rail.name == whole[0]) for rail in rails]
    if whole:
        parts = [rail for rail in rails if rail.name in whole]
        times = min((rail.time_ns for rail in parts), key=len)
        total = np.sum([np.interp(times, rail.time_ns, rail.power_uw) for rail in parts], axis=0)
        rails.append(Rail(f"sum of {len(parts)} rails", times, total.tolist(), total=True))
    return rails


def _rail(track: Track) -> Rail | None:
    if track.unit == "uW":
        return Rail(short(track), track.time_ns, track.values)
    times, energy = np.asarray(track.time_ns, np.float64), np.asarray(track.values, np.float64)
    news = np.flatnonzero(np.diff(energy, prepend=energy[0] - 1) != 0)  # a counter is read more often than it moves
    times, energy = times[news], energy[news]
    rates = 1e9 * np.diff(energy) / np.maximum(np.diff(times), 1)  # µJ per second
    kept = rates >= 0  # a counter that wrapped
    if not kept.any():
        return None
    return Rail(short(track), times[1:][kept].astype(int).tolist(), rates[kept].tolist())


def _whole(measurement: Measurement, names: Sequence[str]) -> tuple[str, ...]:
    """Rails that make up everything; empty where that isn't known."""
    model = str(measurement.device.get("model") or "")
    for board in boards().values():
        if any(word in model for word in board.match) and (found := board.total_of(names)):
            return found
    if found := next((name for name in WHOLE if name in names), None):
        return (found,)
    phone = "android" in str(measurement.device.get("platform") or "")
    return total_rails(names) if phone and len(names) > 1 else ()


def memory(measurement: Measurement) -> list[tuple[str, list[int], list[int]]]:
    """Name, times and bytes of what was watched of the memory, the resident set first."""
    lines = [(short(track), track.time_ns, [int(v) for v in track.values]) for track in of(measurement, "memory")
             if track.unit == "B"]  # fmt: skip
    lines.sort(key=lambda line: line[0] != "resident")
    if measurement.memory and not any(name == "resident" for name, _, _ in lines):
        samples = measurement.memory
        lines.insert(0, ("resident", [s.time_ns for s in samples], [s.resident_bytes for s in samples]))
    return lines


def natural(name: str) -> tuple[tuple[int, str], ...]:
    """A key that sorts cpu10 behind cpu9."""
    return tuple((int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", name))


def end_s(measurement: Measurement) -> float:
    """When the last thing happened that is known of, in seconds of the run."""
    ends = [phase.end_ns for phase in measurement.phases] + [s.time_ns for s in measurement.memory[-1:]]
    ends += [track.time_ns[-1] for track in measurement.tracks if track.time_ns]
    ends += [end_ns(r) for r in measurement.repetitions]
    return max(ends, default=0) / 1e9
