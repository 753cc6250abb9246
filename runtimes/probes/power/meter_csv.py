"""An external meter's CSV file: Monsoon's (pyMonsoon and PowerTool), and any with units in its header.

A header cell is a name and a unit: `Time (s)`, `time_us`, `Main Avg Current (mA)`, `Voltage [V]`, `power_mW`. Power is
taken as it is, else current times voltage; of several columns the one named after the main channel. pyMonsoon heads its
seconds with `Time(ms)`: at a spacing of less than 50 µs, which no such meter has, ms are taken for s.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edge.runtimes.probes.power.series import Accuracy, PowerUnavailableError, Series

UNITS = {  # to seconds, A, V, W
    "time": {"s": 1.0, "sec": 1.0, "seconds": 1.0, "ms": 1e-3, "us": 1e-6, "µs": 1e-6, "ns": 1e-9},
    "current": {"a": 1.0, "ma": 1e-3, "ua": 1e-6, "µa": 1e-6, "na": 1e-9},
    "voltage": {"v": 1.0, "mv": 1e-3, "uv": 1e-6},
    "power": {"w": 1.0, "mw": 1e-3, "uw": 1e-6, "µw": 1e-6},
}
HEADER = re.compile(r"^\s*(.*?)\s*[\[(_ ]\s*([a-zA-Zµ]+)\s*[\])]?\s*$")
NUMBER = re.compile(r"[-+]?\d+(?:\.\d*)?(?:[eE][-+]?\d+)?")
FASTEST_S = 50e-6
MONSOON = Accuracy(gain=0.01, offset_uw=200, note="Monsoon states ±1 %; 50 µA of offset is assumed")
GENERIC = Accuracy(gain=0.01, note="±1 % is assumed for a meter that states nothing here")


@dataclass(frozen=True)
class Alignment:
    """Meter time · rate + offset = this machine's time, and how far that may be off at any edge."""

    offset_ns: float
    rate: float
    doubt_ns: int
    edges: int


@dataclass(frozen=True)
class _Column:
    index: int
    quantity: str
    name: str
    factor: float


def read(path: Path, accuracy: Accuracy | None = None) -> Series:
    """Power in µW on the meter's own clock, which `align` ties to this machine's."""
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            rows = [row for row in csv.reader(file) if row]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise PowerUnavailableError(f"the meter's file can't be read: {error}") from error
    if not rows:
        raise PowerUnavailableError(f"{path.name} is empty")
    columns = [c for i, cell in enumerate(rows[0]) if (c := _column(i, cell))]
    time, current, voltage, power = (_choose(columns, what) for what in UNITS)
    if time is None or (power is None and (current is None or voltage is None)):
        heads = ", ".join(rows[0])
        raise PowerUnavailableError(
            f"{path.name} needs time and power, or time, current and voltage, with units: {heads}"
        )
    used = [c for c in (time, power) if c] if power else [c for c in (time, current, voltage) if c]
    table = _numbers(rows[1:], used)
    seconds = table[:, 0] * time.factor
    if time.factor == 1e-3 and len(seconds) > 2 and float(np.median(np.diff(seconds))) < FASTEST_S:
        seconds = seconds * 1000
    watts = table[:, 1] * used[1].factor * (table[:, 2] * used[2].factor if len(used) > 2 else 1)
    keep = np.concatenate([[True], np.diff(seconds) > 0])  # rounded times repeat
    known = accuracy or (MONSOON if "main" in used[1].name else GENERIC)
    time_ns = np.round(1e9 * seconds[keep]).astype(np.int64)
    return Series(path.stem, "power", "external_meter", time_ns, 1e6 * watts[keep], known)


def _column(index: int, cell: str) -> _Column | None:
    if not (found := HEADER.match(cell)):
        return None
    name, unit = found.group(1).lower(), found.group(2).lower()
    for quantity, units in UNITS.items():
        if unit in units and (quantity != "time" or "time" in name):
            return _Column(index, quantity, name, units[unit])
    return None


def _choose(columns: Sequence[_Column], quantity: str) -> _Column | None:
    found = [c for c in columns if c.quantity == quantity]
    return next((c for c in found if "main" in c.name), found[0] if found else None)


def _numbers(rows: Sequence[Sequence[str]], columns: Sequence[_Column]) -> NDArray[np.float64]:
    """Rows with a number in every column that is used; cells may read `np.float64(1.5)`."""
    table = []
    for row in rows:
        cells = [row[c.index] if c.index < len(row) else "" for c in columns]
        numbers = [NUMBER.search(cell.split("(", 1)[-1]) for cell in cells]
        if all(numbers):
            table.append([float(found.group()) for found in numbers if found])
    if len(table) < 3:
        raise PowerUnavailableError("the meter's file has fewer than three rows of numbers")
    return np.asarray(table)


def align(meter: Series, edges_ns: Sequence[int]) -> Alignment:
    """Find the meter's clock from the load's own pattern: the times when it went on, off, on ... (first on).

    Cross-correlation of power with the pattern gives the offset; then every edge is looked for in the power, and a line
    through them gives offset and rate. The doubt is the largest distance of an edge from that line, and at least one
    sample. Needs at least one on and one off.
    """
    if len(edges_ns) < 2:
        raise PowerUnavailableError("to align a meter's clock the load must go on and off at least once")
    step = float(np.median(np.diff(meter.time_ns)))
    edges = np.asarray(edges_ns, np.float64)
    coarse = _correlate(meter, edges, step)
    low, high = _levels(meter, edges - coarse)
    if high - low < 3 * _noise(meter):
        raise PowerUnavailableError("the load's pattern is not to be seen in the meter's power")
    gaps = np.diff(edges)
    reach = np.minimum(np.append(gaps, np.inf), np.insert(gaps, 0, np.inf)) / 2
    half = (low + high) / 2
    found = [_crossing(meter, at - coarse, reach[i], half, rises=i % 2 == 0) for i, at in enumerate(edges)]
    seen = [(there, here) for there, here in zip(found, edges, strict=True) if there is not None]
    if not seen:
        raise PowerUnavailableError("no edge of the load is to be seen in the meter's power")
    there, here = (np.asarray(side) for side in zip(*seen, strict=True))
    middle = there.mean()
    rate = float(np.polyfit(there - middle, here, 1)[0]) if len(seen) >= 4 else 1.0
    offset = float((here - rate * there).mean())
    off = float(np.abs(here - rate * there - offset).max())
    return Alignment(offset, rate, round(max(off, step)), len(seen))


def aligned(meter: Series, alignment: Alignment) -> Series:
    """The series on this machine's clock; the doubt of the alignment is its clock error."""
    time_ns = np.round(meter.time_ns * alignment.rate + alignment.offset_ns).astype(np.int64)
    accuracy = replace(meter.accuracy, clock_ns=max(meter.accuracy.clock_ns, alignment.doubt_ns))
    return replace(meter, time_ns=time_ns, accuracy=accuracy)


def _correlate(meter: Series, edges: NDArray[np.float64], step: float) -> float:
    """Offset (this clock less the meter's) at which power and pattern agree best, on a grid of up to 2^16 points."""
    span = float(meter.time_ns[-1] - meter.time_ns[0])
    grid = max(step, span / 65536)
    power = np.interp(np.arange(meter.time_ns[0], meter.time_ns[-1], grid), meter.time_ns, meter.value)
    lead = (edges[-1] - edges[0]) / 4
    at = np.arange(edges[0] - lead, edges[-1] + lead, grid)
    pattern = (np.searchsorted(edges, at, "right") % 2).astype(np.float64)
    size = 1 << int(np.ceil(np.log2(len(power) + len(pattern))))
    spectrum = np.fft.rfft(power - power.mean(), size) * np.conj(np.fft.rfft(pattern - pattern.mean(), size))
    lag = int(np.argmax(np.fft.irfft(spectrum, size)))
    lag = lag - size if lag > size // 2 else lag
    return float(at[0] - (meter.time_ns[0] + lag * grid))


def _levels(meter: Series, edges: NDArray[np.float64]) -> tuple[float, float]:
    """Median power while off and while on."""
    on = np.searchsorted(edges, meter.time_ns, "right") % 2 == 1
    if on.all() or not on.any():
        raise PowerUnavailableError("the meter's file does not cover the load")
    return float(np.median(meter.value[~on])), float(np.median(meter.value[on]))


def _noise(meter: Series) -> float:
    return float(np.median(np.abs(np.diff(meter.value)))) / 0.6745 / 1.4142


def _crossing(meter: Series, at: float, reach: float, threshold: float, *, rises: bool) -> float | None:
    """When the power passed half way up (or down), as near as possible to where the edge is expected."""
    near = np.flatnonzero(np.abs(meter.time_ns - at) <= reach)
    if len(near) < 4:
        return None
    high = meter.value[near] > threshold
    steps = np.flatnonzero(high[1:] & ~high[:-1] if rises else ~high[1:] & high[:-1])
    if not len(steps):
        return None
    middles = (meter.time_ns[near[steps]] + meter.time_ns[near[steps + 1]]) / 2
    return float(middles[np.argmin(np.abs(middles - at))])
