"""What the stand-ins' sysfs shows: a phone's and a Jetson's, on as many cores as this machine has."""

from __future__ import annotations

import os
from pathlib import Path
from typing import NamedTuple

CORES = os.cpu_count() or 1
LITTLE = max(1, CORES // 2)
"""The first ones are the small cluster; with one core there is no other."""
CPU = "devices/system/cpu"
SUPPLY = "class/power_supply"
INA3221 = "bus/i2c/devices/1-0040"


class Tree(NamedTuple):
    """files: path below /sys and content. moving: path, then (middle, swing, period in seconds) of its number."""

    files: dict[str, str]
    moving: dict[str, tuple[float, float, float]]


def write(tree: Tree, sys: Path) -> None:
    """Files that anybody may write to, as root may on a device and as a test does."""
    for name, text in tree.files.items():
        (sys / name).parent.mkdir(parents=True, exist_ok=True)
        (sys / name).write_text(f"{text}\n")


def clusters() -> list[range]:
    return [cores for cores in (range(LITTLE), range(LITTLE, CORES)) if cores]


def _cpus(maxima_khz: tuple[int, int]) -> Tree:
    span = f"0-{CORES - 1}" if CORES > 1 else "0"
    files = {f"{CPU}/{name}": span for name in ("possible", "present", "online")}
    moving = {}
    for number, (cores, maximum) in enumerate(zip(clusters(), maxima_khz, strict=False)):
        for core in cores:
            policy = f"{CPU}/cpu{core}/cpufreq"
            files |= {
                f"{policy}/related_cpus": " ".join(map(str, cores)),
                f"{policy}/affected_cpus": " ".join(map(str, cores)),
                f"{policy}/scaling_governor": "schedutil",
                f"{policy}/scaling_available_governors": "schedutil performance powersave",
                f"{policy}/scaling_cur_freq": str(maximum),
                f"{policy}/scaling_min_freq": "300000",
                f"{policy}/scaling_max_freq": str(maximum),
                f"{policy}/cpuinfo_min_freq": "300000",
                f"{policy}/cpuinfo_max_freq": str(maximum),
                f"{CPU}/cpu{core}/online": "1",
                f"{CPU}/cpu{core}/cpu_capacity": str((512, 1024)[number]),
                f"{CPU}/cpu{core}/topology/cluster_id": str(number),
            }
            moving[f"{policy}/scaling_cur_freq"] = (maximum * 0.9, maximum * 0.1, 3.0 + core)
    return Tree(files, moving)


def _zones(names: tuple[str, ...]) -> Tree:
    files, moving = {}, {}
    for number, name in enumerate(names):
        zone = f"class/thermal/thermal_zone{number}"
        files |= {f"{zone}/type": name, f"{zone}/temp": "40000"}
        moving[f"{zone}/temp"] = (40_000 + 1000 * number, 2000, 11.0 + number)
    return Tree(files, moving)


def _together(*trees: Tree) -> Tree:
    files, moving = {}, {}
    for tree in trees:
        files |= tree.files
        moving |= tree.moving
    return Tree(files, moving)


def phone() -> Tree:
    """Two clusters, two zones, and a battery that is drained (negative current) while nothing charges it."""
    battery = {
        "type": "Battery",
        "present": "1",
        "status": "Discharging",
        "capacity": "76",
        "voltage_now": "3872000",
        "current_now": "-350000",
        "charge_counter": "3100000",
        "temp": "280",
    }
    files = {f"{SUPPLY}/battery/{name}": text for name, text in battery.items()}
    files |= {f"{SUPPLY}/usb/{name}": text for name, text in {"type": "USB", "online": "0"}.items()}
    moving = {
        f"{SUPPLY}/battery/current_now": (-350_000, 60_000, 4.0),
        f"{SUPPLY}/battery/voltage_now": (3_872_000, 9000, 17.0),
    }
    return _together(_cpus((1_803_000, 2_802_000)), _zones(("soc-thermal", "battery")), Tree(files, moving))


def jetson() -> Tree:
    """An Orin Nano's input rail and its parts; the third one's sum of shunts is not a rail."""
    chip = f"{INA3221}/hwmon/hwmon3"
    files = {
        f"{chip}/name": "ina3221",
        f"{chip}/update_interval": "10",
        f"{chip}/in7_label": "sum of shunt voltages",
    }
    moving = {}
    for n, (rail, milliamps) in enumerate((("VDD_IN", 1100), ("VDD_CPU_GPU_CV", 400), ("VDD_SOC", 300)), start=1):
        files |= {
            f"{chip}/in{n}_label": rail,
            f"{chip}/in{n}_input": "5000",
            f"{chip}/curr{n}_input": str(milliamps),
            f"{chip}/shunt{n}_resistor": "5000",
        }
        moving[f"{chip}/curr{n}_input"] = (milliamps, milliamps / 10, 2.0 + n)
    return _together(_cpus((1_510_400, 1_510_400)), _zones(("cpu-thermal", "tj-thermal")), Tree(files, moving))
