"""On-device power monitors of Android phones, from a Perfetto trace with the `android.power` data source.

Counts of µWs (µJ) since boot, by rail. There is no rail for the whole: the sum takes the outputs of buck converters and
of the supply itself, and leaves out the linear regulators (names like L15M_...), most of which a buck feeds. It is a
lower bound of what the phone draws. Needs the package `perfetto`, whose protobufs know the format.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from edge.runtimes.probes.power.series import Accuracy, PowerUnavailableError, Series

LINEAR_REGULATOR = re.compile(r"^\[?L\d+\w?_")
BOOTTIME, MONOTONIC = 6, 3  # clock ids of ClockSnapshot
TIMESTAMP_NS = 1_000_000  # readings are stamped in whole ms
ACCURACY = Accuracy(
    gain=0.05, resolution=1, jitter_ns=TIMESTAMP_NS, note="±5 % is assumed: the phone's maker states none"
)


def read_trace(path: Path) -> list[Series]:
    """One series per rail, on the phone's monotonic clock."""
    try:
        from perfetto.protos.perfetto.trace.perfetto_trace_pb2 import Trace
    except ImportError as error:
        raise PowerUnavailableError("reading a Perfetto trace needs: pip install perfetto") from error
    trace = Trace()
    try:
        trace.ParseFromString(path.read_bytes())
    except Exception as error:  # protobuf's own error type differs between its implementations
        raise PowerUnavailableError(f"{path.name} is no Perfetto trace: {error}") from error
    return from_packets(trace.packet)


def from_packets(packets: Iterable[Any]) -> list[Series]:
    """Of decoded TracePackets. Descriptors may come after the first readings."""
    names: dict[int, str] = {}
    points: dict[int, dict[int, int]] = defaultdict(dict)
    to_monotonic = 0
    for packet in packets:
        if packet.HasField("clock_snapshot"):
            clocks = {clock.clock_id: clock.timestamp for clock in packet.clock_snapshot.clocks}
            if BOOTTIME in clocks and MONOTONIC in clocks:
                to_monotonic = clocks[MONOTONIC] - clocks[BOOTTIME]
        if packet.HasField("power_rails"):
            names.update({rail.index: rail.rail_name for rail in packet.power_rails.rail_descriptor})
            for reading in packet.power_rails.energy_data:
                points[reading.index][reading.timestamp_ms] = reading.energy
    if not points:
        raise PowerUnavailableError("the trace has no power rails: the phone has no monitor, or android.power was off")
    return [_series(names.get(i, f"rail {i}"), found, to_monotonic) for i, found in sorted(points.items())]


def total_rails(names: Iterable[str]) -> tuple[str, ...]:
    """All but the linear regulators; all of them where there is nothing else."""
    found = tuple(names)
    return tuple(name for name in found if not LINEAR_REGULATOR.match(name)) or found


def whole(series: Iterable[Series]) -> Series:
    """The sum of the rails that feed no other, at the times of the one that was read most rarely."""
    rails = {one.name: one for one in series}
    parts = [rails[name] for name in total_rails(rails)]
    start, end = max(p.time_ns[0] for p in parts), min(p.time_ns[-1] for p in parts)
    rarest = min(parts, key=lambda p: len(p.time_ns)).time_ns
    at = rarest[(rarest >= start) & (rarest <= end)]
    value = np.sum([np.interp(at, p.time_ns, p.value) for p in parts], axis=0)
    return Series("ODPM rails", "energy", "hardware_counter", at, value, ACCURACY)


def _series(name: str, found: dict[int, int], to_monotonic: int) -> Series:
    times = sorted(found)
    time_ns = np.asarray([at * 1_000_000 + to_monotonic for at in times], np.int64)
    value = np.asarray([found[at] for at in times], np.float64)
    return Series(name, "energy", "hardware_counter", time_ns, value, ACCURACY)
