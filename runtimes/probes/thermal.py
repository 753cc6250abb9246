"""Temperatures: the kernel's thermal zones, and Android's thermal service."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

ROOT = Path("/")
ZONES = "sys/class/thermal"
NO_READING_C = -99.0  # zones that are off read -274, -256 or -99.9
FIELD = re.compile(r"(\w+)=([^,}]*)")
TEMPERATURE = re.compile(r"Temperature\{([^}]*)\}")


@dataclass(frozen=True)
class Temperature:
    """One sensor. kind and status are Android's numbers (status 0: not throttling); None where the kernel tells."""

    name: str
    celsius: float
    kind: int | None = None
    status: int | None = None


@dataclass(frozen=True)
class ThermalService:
    """`dumpsys thermalservice`. status: 0 none to 6 shutdown; None where the text doesn't say."""

    status: int | None
    ready: bool
    temperatures: list[Temperature]


def zones(root: Path = ROOT) -> list[Temperature]:
    """Every zone that has a reading, in the kernel's order."""
    found = []
    for zone in sorted(
        (root / ZONES).glob("thermal_zone[0-9]*"), key=lambda z: int(z.name.removeprefix("thermal_zone"))
    ):
        try:
            name, celsius = (zone / "type").read_text().strip(), int((zone / "temp").read_text()) / 1000
        except (OSError, ValueError):  # a zone may be there and refuse to be read
            continue
        if celsius > NO_READING_C:
            found.append(Temperature(name, celsius))
    return found


def parse_thermalservice(text: str) -> ThermalService:
    """The current temperatures of the HAL; cached ones, which can be minutes old, are passed over."""
    status = re.search(r"^\s*Thermal Status:\s*(\d+)", text, re.MULTILINE)
    current = re.sub(
        r"Cached temperatures:.*?(?=^\s*(?:HAL Ready|Current)|\Z)", "", text, flags=re.DOTALL | re.MULTILINE
    )
    temperatures = []
    for body in TEMPERATURE.findall(current):
        fields = {name: value.strip() for name, value in FIELD.findall(body)}
        try:
            celsius = float(fields["mValue"])
            one = Temperature(fields["mName"], celsius, int(fields["mType"]), int(fields["mStatus"]))
        except (KeyError, ValueError):
            continue
        if celsius > NO_READING_C:
            temperatures.append(one)
    return ThermalService(
        status=int(status.group(1)) if status else None,
        ready=bool(re.search(r"^\s*HAL Ready:\s*true", text, re.MULTILINE)),
        temperatures=temperatures,
    )
