"""Energy from the processor's own counters (Intel and AMD RAPL through Linux powercap).

Only package domains are read: the core, uncore and DRAM domains under a package, and `psys` above it, would count the
same joules again. A counter wraps at `max_energy_range_uj`, minutes apart at full load: read it more often than that.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

ROOT = Path("/")
POWERCAP = "sys/class/powercap"


@dataclass(frozen=True)
class Domain:
    """One package: its counter, in µJ, and where that wraps to 0."""

    counter: Path
    range_uj: int

    def read(self) -> int:
        return int(self.counter.read_text())


def find_domains(root: Path = ROOT) -> tuple[list[Domain], str]:
    """The package domains, and the reason where there is none or one can't be read."""
    folders = sorted((root / POWERCAP).glob("intel-rapl:[0-9]*"))
    try:
        packages = [f for f in folders if (f / "name").read_text().strip().startswith("package")]
        if not packages:
            return [], f"no RAPL counter under /{POWERCAP}"
        domains = [Domain(f / "energy_uj", int((f / "max_energy_range_uj").read_text())) for f in packages]
        for domain in domains:
            domain.read()
    except PermissionError:
        return [], f"RAPL counters under /{POWERCAP} are not readable: needs root"
    except (OSError, ValueError) as error:
        return [], f"RAPL counters under /{POWERCAP} can't be read: {error}"
    return domains, ""


def why_not_available(root: Path = ROOT) -> str:
    """Why this machine tells no energy; empty where it does."""
    return find_domains(root)[1]


def used(domain: Domain, before: int, after: int) -> int:
    """µJ from one reading to the next, over at most one wrap."""
    return after - before if after >= before else after - before + domain.range_uj + 1
