"""The battery's own gauge (power_supply): what flows out of it, while it is not charged.

Vendors differ in the unit of `current_now` (µA as the kernel says, or mA), in its sign, and in how often it is renewed
(up to 10 s). So they are found by calibration: the sign from readings while discharging, the unit from what a battery
can deliver, the refresh period from how far apart changes are.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from edge.runtimes.probes.power.series import (
    Accuracy,
    Channel,
    PowerUnavailableError,
    Series,
    Source,
    of_files,
    series_of,
)

ROOT = Path("/")
NAME = "battery gauge"
SUPPLY = "sys/class/power_supply"
LARGEST_MA = 30_000  # a phone, tablet or laptop: a larger number was in µA
LARGEST_MV = 100_000
SLOWEST_REFRESH_NS = 10_000_000_000
ASSUMED_GAIN = 0.03
NOTE = "gain ±3 % is assumed: gauges state none"


@dataclass(frozen=True)
class Calibration:
    """What a gauge's numbers mean: µA per unit, +1 where discharging reads positive, and how old a reading can be."""

    microamps_per_unit: int
    discharge_sign: int
    refresh_ns: int


@dataclass(frozen=True)
class DumpsysBattery:
    """`dumpsys battery`: temperature in °C, voltage in mV, the charge counter in µAh. `faked`: set by a test tool."""

    voltage_mv: int | None
    temperature_c: float | None
    level_percent: int | None
    charge_uah: int | None
    powered: bool
    faked: bool


def open_source(root: Path = ROOT) -> Source:
    """Raises `PowerUnavailableError` without a battery, without a gauge, or while it is charged."""
    folder = _battery(root)
    if folder is None:
        raise PowerUnavailableError(f"no battery under /{SUPPLY}")
    current, voltage = folder / "current_now", folder / "voltage_now"
    try:
        if (status := (folder / "status").read_text().strip()) != "Discharging":
            raise PowerUnavailableError(f"the battery's gauge tells nothing while it is {status.lower()}: unplug it")
        read_voltage = _number(voltage)
        _number(current)
    except PermissionError as error:
        raise PowerUnavailableError(f"the battery's gauge is not readable: needs root ({error.filename})") from error
    except (OSError, ValueError) as error:
        raise PowerUnavailableError(f"the battery's gauge can't be read: {error}") from error
    accuracy = Accuracy(gain=ASSUMED_GAIN, resolution=1000 * float(_millivolts(read_voltage)), note=NOTE)
    channel = of_files(folder.name, "power", "gauge", [current, voltage], accuracy, value=_power_uw)
    return Source(NAME, (channel,), (folder.name,), SLOWEST_REFRESH_NS)


def _power_uw(numbers: Sequence[Any]) -> Any:
    """With the unit by size alone, and without regard to the sign: the battery is discharging."""
    amount = np.abs(numbers[0])
    return amount * np.where(amount > LARGEST_MA, 1, 1000) * _millivolts(numbers[1]) / 1000


def _millivolts(reading: Any) -> Any:
    return reading / np.where(np.asarray(reading) > LARGEST_MV, 1000, 1)


def calibrate(time_ns: Sequence[int], current: Sequence[float], *, discharging: bool = True) -> Calibration:
    """From raw readings of `current_now` taken much more often than it is renewed, with some load on the device.

    Raises `PowerUnavailableError` where they change their sign or never change.
    """
    values = np.asarray(current, np.float64)
    if not values.any():
        raise PowerUnavailableError("the battery's gauge always reads 0")
    signs = np.sign(values[values != 0])
    if (signs != signs[0]).any():
        raise PowerUnavailableError("the battery's gauge changes its sign: it was charged in between")
    changes = np.flatnonzero(np.diff(values) != 0) + 1
    if len(changes) < 3:
        raise PowerUnavailableError("the battery's gauge did not change: watch it for longer, with some load")
    gaps = np.diff(np.asarray(time_ns)[changes])
    unit = 1 if np.abs(values).max() > LARGEST_MA else 1000
    refresh = int(np.percentile(gaps, 25))  # where a value happens to stay, a gap is several periods long
    return Calibration(unit, int(signs[0]) * (1 if discharging else -1), refresh)


def series_of_readings(time_ns: Sequence[int], current: Sequence[float], voltage: Sequence[float]) -> Series:
    """µW of raw readings taken while the battery fed the device; unit, sign and refresh period by `calibrate`."""
    found = calibrate(time_ns, current)
    return power_series(time_ns, current, _millivolts(np.asarray(voltage, np.float64)), found)


def power_series(
    time_ns: Sequence[int], current: Sequence[float], voltage_mv: Sequence[float], calibration: Calibration
) -> Series:
    """µW out of the battery of polled readings; only those that carry news are kept.

    A reading may be the present value or the mean since the one before: up to two periods of doubt in time.
    """
    values = np.asarray(current, np.float64)
    kept = _renewed(np.asarray(time_ns, np.int64), values, calibration.refresh_ns)
    microamps = values[kept] * calibration.microamps_per_unit * calibration.discharge_sign
    millivolts = np.asarray(voltage_mv, np.float64)[kept]
    poll = int(np.median(np.diff(time_ns)))
    accuracy = Accuracy(
        gain=ASSUMED_GAIN,
        resolution=calibration.microamps_per_unit * float(millivolts.mean()) / 1000,
        delay_ns=calibration.refresh_ns,
        jitter_ns=poll,
        note=NOTE,
    )
    channel = Channel("battery", "power", "gauge", lambda: 0.0, accuracy)
    return series_of(channel, np.asarray(time_ns)[kept].tolist(), (microamps * millivolts / 1000).tolist())


def _renewed(time_ns: np.ndarray, values: np.ndarray, refresh_ns: int) -> list[int]:
    """Readings that carry news, one per period and a half where nothing changes, and the last, up to which it holds."""
    kept = [0]
    for i in range(1, len(values)):
        old = time_ns[i] - time_ns[kept[-1]] >= 1.5 * refresh_ns
        if values[i] != values[i - 1] or old or i == len(values) - 1:
            kept.append(i)
    return kept


def parse_dumpsys(text: str) -> DumpsysBattery:
    """Absent fields are None. `UPDATES STOPPED` means that someone set the values by hand."""

    def number(name: str) -> int | None:
        found = re.search(rf"^\s*{name}:\s*(-?\d+)", text, re.MULTILINE | re.IGNORECASE)
        return int(found.group(1)) if found else None

    tenths = number("temperature")
    return DumpsysBattery(
        voltage_mv=number("voltage"),
        temperature_c=None if tenths is None else tenths / 10,
        level_percent=number("level"),
        charge_uah=number("charge counter"),
        powered=bool(re.search(r"^\s*\w+ powered:\s*true", text, re.MULTILINE)),
        faked="UPDATES STOPPED" in text,
    )


def _battery(root: Path) -> Path | None:
    for folder in sorted((root / SUPPLY).glob("*")):
        kind = folder / "type"
        if kind.exists() and kind.read_text().strip() == "Battery" and (folder / "current_now").exists():
            return folder
    return None


def _number(file: Path) -> float:
    return float(file.read_text())
