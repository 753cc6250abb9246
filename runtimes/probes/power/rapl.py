"""The processor's own energy counters: Intel's and AMD's RAPL through Linux powercap.

The whole is the packages and the DRAM domains, which are not part of a package's count. Core and uncore are parts of
their package, and psys holds everything again. A counter wraps at `max_energy_range_uj`, minutes apart at full load.
The vendors state no accuracy. ±5 % is assumed, wide for what studies found against meters on chips that measure
(Haswell and newer); chips that estimate by a model can be further off.
"""

from __future__ import annotations

from pathlib import Path

from edge.runtimes.probes.power.series import Accuracy, Channel, PowerUnavailableError, Source, of_files

ROOT = Path("/")
POWERCAP = "sys/class/powercap"
UPDATE_NS = 1_000_000
ENERGY_UNIT_UJ = 61.0  # the usual 2^-14 J; sysfs does not tell it
ACCURACY = Accuracy(
    gain=0.05, resolution=ENERGY_UNIT_UJ, delay_ns=UPDATE_NS, note="gain ±5 % is assumed: the vendors state none"
)


def open_source(root: Path = ROOT) -> Source:
    """Every readable domain. Raises `PowerUnavailableError` where there is no package or the counters can't be read."""
    folders = sorted((root / POWERCAP).glob("intel-rapl:*"))
    try:
        named = {_name(folder, root): folder for folder in folders}
        packages = [name for name in named if name.startswith("package") and "/" not in name]
        if not packages:
            raise PowerUnavailableError(f"no RAPL counter under /{POWERCAP}")
        channels = tuple(_channel(name, folder) for name, folder in named.items())
        for channel in channels:
            channel.read()
    except PermissionError as error:
        raise PowerUnavailableError(f"RAPL counters under /{POWERCAP} are not readable: needs root") from error
    except (OSError, ValueError) as error:
        raise PowerUnavailableError(f"RAPL counters under /{POWERCAP} can't be read: {error}") from error
    memories = [name for name in named if name.endswith("/dram")]
    return Source("RAPL", channels, (*packages, *memories))


def _name(folder: Path, root: Path) -> str:
    """package-0, package-0/core, package-0/dram, psys."""
    own = (folder / "name").read_text().strip()
    parent = folder.name.rsplit(":", 1)[0]
    if parent.count(":") == 0:
        return own
    return f"{(root / POWERCAP / parent / 'name').read_text().strip()}/{own}"


def _channel(name: str, folder: Path) -> Channel:
    wraps_at = int((folder / "max_energy_range_uj").read_text()) + 1
    return of_files(name, "energy", "hardware_counter", [folder / "energy_uj"], ACCURACY, wraps_at)
