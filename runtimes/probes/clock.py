"""Clock frequency of every core and its cap, as the operating system tells them."""

from __future__ import annotations

import re
from pathlib import Path

import psutil

ROOT = Path("/")


def frequencies_khz(root: Path = ROOT) -> list[int]:
    """Current kHz per core: from cpufreq, else /proc/cpuinfo, else psutil. Empty where nobody knows.

    A virtual machine mostly shows its host's nominal frequency.
    """
    return _from_cpufreq(root, "scaling_cur_freq") or _from_cpuinfo(root) or (_from_psutil() if root == ROOT else [])


def caps_khz(root: Path = ROOT) -> list[int]:
    """The highest kHz that each core may use now: what a throttled one has lowered. Empty without cpufreq."""
    return _from_cpufreq(root, "scaling_max_freq")


def throttle_count(root: Path = ROOT) -> int:
    """How often the processor's own protection lowered a core's clock since boot, where x86 counts that; else 0."""
    count = 0
    for file in (root / "sys/devices/system/cpu").glob("cpu[0-9]*/thermal_throttle/core_throttle_count"):
        try:
            count += int(file.read_text())
        except (OSError, ValueError):
            continue
    return count


def governor(root: Path = ROOT) -> str | None:
    """The scaling governor of the first core, None without cpufreq."""
    try:
        return (root / "sys/devices/system/cpu/cpu0/cpufreq/scaling_governor").read_text().strip()
    except OSError:
        return None


def _from_cpufreq(root: Path, name: str) -> list[int]:
    files = (root / "sys/devices/system/cpu").glob(f"cpu[0-9]*/cpufreq/{name}")
    try:
        return [int(file.read_text()) for file in sorted(files, key=_core)]
    except (OSError, ValueError):  # a core that goes offline, or a driver without a reading
        return []


def _core(file: Path) -> int:
    return int(file.parts[-3].removeprefix("cpu"))


def _from_cpuinfo(root: Path) -> list[int]:
    try:
        text = (root / "proc/cpuinfo").read_text()
    except OSError:
        return []
    return [round(1000 * float(mhz)) for mhz in re.findall(r"^cpu MHz\s*:\s*([\d.]+)", text, re.MULTILINE)]


def _from_psutil() -> list[int]:
    try:
        found = psutil.cpu_freq(percpu=True) or []
    except (AttributeError, NotImplementedError, OSError):  # absent on some platforms, failing on others
        return []
    return [round(1000 * core.current) for core in found if core.current]
