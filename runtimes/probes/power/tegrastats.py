"""Lines of NVIDIA's tegrastats, of every JetPack from 4 to 7.

A rail reads `NAME now/average`, with or without mW; JetPack 7 adds a peak. Only the first is taken: an average since
tegrastats was started would smear one stretch over the next. A name may stand for a temperature (`GPU@28C`) as well.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from edge.runtimes.probes.power.ina3221 import GAIN, NOTE, SHUNT_OFFSET_UV, SHUNT_STEP_UV
from edge.runtimes.probes.power.rails import NOT_CONNECTED, total_rails
from edge.runtimes.probes.power.series import Accuracy, PowerUnavailableError, Series, combine

NO_SENSOR_C = -256.0
LEAST_STEP_UW = 40_000.0  # 5 V and the usual 5 mΩ
RAIL = re.compile(r"(?<!\S)([A-Za-z]\w*) (-?\d+)(?:mW)?/-?\d+(?:mW)?(?:/-?\d+(?:mW)?)?(?!\S)")
TEMPERATURE = re.compile(r"(?<!\S)(\w+)@(-?\d+(?:\.\d+)?)C(?!\S)")
ENGINE = re.compile(r"(?<!\S)(\w+) (?:(\d+)%)?@(?:\[([\d,]+)\]|(\d+))(?!\S)")
OFF = re.compile(r"(?<!\S)(\w+) off(?!\S)")


@dataclass(frozen=True)
class Engine:
    """load_percent None: the line doesn't say. No clock: it is off."""

    load_percent: int | None
    clock_mhz: tuple[int, ...]


@dataclass(frozen=True)
class Line:
    """What one line says: mW now by rail, °C by sensor, engines by name."""

    power_mw: dict[str, int]
    temperature_c: dict[str, float]
    engines: dict[str, Engine]


def parse(line: str) -> Line:
    """Unknown fields are passed over."""
    power = {name: int(now) for name, now in RAIL.findall(line) if name != NOT_CONNECTED}
    temperatures = {name: float(c) for name, c in TEMPERATURE.findall(line) if float(c) != NO_SENSOR_C}
    engines = {}
    for name, load, several, one in ENGINE.findall(line):
        engines[name] = Engine(int(load) if load else None, tuple(int(mhz) for mhz in (several or one).split(",")))
    engines.update({name: Engine(None, ()) for name in OFF.findall(line)})
    return Line(power, temperatures, engines)


def series(lines: Iterable[tuple[int, str]], sum_of: Iterable[str] = (), interval_ns: int = 0) -> list[Series]:
    """Power of each rail of (monotonic ns at arrival, line), the whole first.

    interval_ns: what tegrastats was started with, the age that a reading can have at most.
    """
    rows = [(at, found) for at, line in lines if (found := parse(line).power_mw)]
    if not rows:
        raise PowerUnavailableError("no power in the lines of tegrastats")
    names = [name for name in rows[0][1] if all(name in found for _, found in rows)]
    times = [at for at, _ in rows]
    by_name = {n: _one(n, times, [1000.0 * found[n] for _, found in rows], interval_ns) for n in names}
    whole = combine([by_name[name] for name in total_rails(names, sum_of)], "tegrastats")
    return [whole, *by_name.values()]


def _one(name: str, times: list[int], values: list[float], delay_ns: int) -> Series:
    """Lines tell neither shunt nor voltage (20 V and 2 mΩ on AGX Orin): the step is what the values show, at least."""
    seen = np.diff(np.unique(values))
    step = max(float(seen.min()) if len(seen) else 0.0, LEAST_STEP_UW)
    offset = step * SHUNT_OFFSET_UV / SHUNT_STEP_UV
    accuracy = Accuracy(gain=GAIN, offset_uw=offset, resolution=step, delay_ns=delay_ns, note=NOTE)
    return Series(name, "power", "hardware_counter", np.asarray(times, np.int64), np.asarray(values), accuracy)
