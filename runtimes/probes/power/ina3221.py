"""Texas Instruments INA3221 power monitors of Jetson boards: hwmon (JetPack 5 and newer) and iio (JetPack 4).

Errors from the data sheet: bus voltage in steps of 8 mV, shunt voltage in steps of 40 µV with ±80 µV of offset; gains
0.25 % each, and an assumed 1 % for the shunt resistor. A part of the offset that stays is cancelled by the idle
baseline. Thor's input rail VIN has an INA238 of its own in the same place, without a label: in1 is its bus voltage (in0
its shunt's) and power1 its power in µW; 5 µV of offset and steps of 5 µV at the shunt.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from edge.runtimes.probes.power.rails import NOT_CONNECTED, total_rails
from edge.runtimes.probes.power.series import Accuracy, Channel, PowerUnavailableError, Source, of_files

ROOT = Path("/")
DEVICES = "sys/bus/i2c/devices"
CHANNELS = (1, 2, 3)
GAIN = 0.015
VOLTAGE_STEP_MV = 8.0
SHUNT_STEP_UV, SHUNT_OFFSET_UV = 40.0, 80.0
INA238_STEP_UV = 5.0
USUAL_SHUNT_UOHM = 5000
CONVERSION_MS = 10
NOTE = "INA3221 data sheet, and ±1 % assumed for the shunt resistors"


def open_source(root: Path = ROOT, sum_of: Iterable[str] = ()) -> Source:
    """All connected rails. `sum_of`: the rails that make up the whole on a board without an input rail."""
    chips = sorted((root / DEVICES).glob("*/hwmon/hwmon*"))
    legacy = sorted((root / DEVICES).glob("*/iio:device*")) + sorted((root / "sys/bus/iio/devices").glob("iio:device*"))
    try:
        found = {c.name: c for chip in chips for c in (*_hwmon(chip), *_ina238(chip))}
        if not found:
            found = {c.name: c for chip in legacy for c in _iio(chip)}
    except PermissionError as error:
        raise PowerUnavailableError(f"power monitors under /{DEVICES} are not readable: needs root") from error
    except (OSError, ValueError) as error:
        raise PowerUnavailableError(f"power monitors under /{DEVICES} can't be read: {error}") from error
    if not found:
        raise PowerUnavailableError(f"no INA3221 power monitor under /{DEVICES}")
    return Source("INA3221", tuple(found.values()), total_rails(found, sum_of))


def _hwmon(chip: Path) -> Iterable[Channel]:
    for n in CHANNELS:
        label, volts, current = chip / f"in{n}_label", chip / f"in{n}_input", chip / f"curr{n}_input"
        if (name := _rail(label)) and volts.exists() and current.exists():
            shunt = _number(chip / f"shunt{n}_resistor", USUAL_SHUNT_UOHM)
            delay = _number(chip / "update_interval", CONVERSION_MS) or CONVERSION_MS
            yield _channel(name, [volts, current], float(volts.read_text()), shunt, delay)


def _ina238(chip: Path) -> Iterable[Channel]:
    volts, power = chip / "in1_input", chip / "power1_input"
    if (name := chip / "name").exists() and name.read_text().strip() == "ina238" and power.exists():
        yield _channel(
            "VIN", [power], float(volts.read_text()), USUAL_SHUNT_UOHM, CONVERSION_MS, step_uv=INA238_STEP_UV
        )


def _iio(chip: Path) -> Iterable[Channel]:
    for n in (0, 1, 2):
        if name := _rail(chip / f"rail_name_{n}"):
            volts, current, power = (chip / f"in_{what}{n}_input" for what in ("voltage", "current", "power"))
            files, value = ([volts, current], math.prod) if current.exists() else ([power], _of_milliwatts)
            yield _channel(name, files, float(volts.read_text()), USUAL_SHUNT_UOHM, CONVERSION_MS, value)


def _rail(label: Path) -> str:
    """The rail's name; empty for what is not there, not connected, or the sum of the shunt voltages."""
    name = label.read_text().strip() if label.exists() else ""
    return "" if name == NOT_CONNECTED or name.startswith("sum of") else name


def _channel(
    name: str,
    files: Sequence[Path],
    bus_mv: float,
    shunt_uohm: float,
    delay_ms: float,
    value: Callable[[Sequence[Any]], Any] = math.prod,  # mV · mA = µW
    step_uv: float = SHUNT_STEP_UV,
) -> Channel:
    step_ma = 1000 * step_uv / shunt_uohm
    offset_uv = SHUNT_OFFSET_UV if step_uv == SHUNT_STEP_UV else step_uv
    accuracy = Accuracy(
        gain=GAIN,
        offset_uw=bus_mv * 1000 * offset_uv / shunt_uohm,
        resolution=bus_mv * step_ma,
        delay_ns=round(1e6 * delay_ms),
        note=NOTE,
    )
    channel = of_files(name, "power", "hardware_counter", files, accuracy, value=value)
    channel.read()
    return channel


def _of_milliwatts(numbers: Sequence[Any]) -> Any:
    return 1000 * numbers[0]


def _number(file: Path, otherwise: float) -> float:
    return float(file.read_text()) if file.exists() else otherwise
