"""A device's cores by kind, and which sets of them are worth a run each."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from edge.core.errors import UsageError

ROOT = Path("/")
CPUS = "sys/devices/system/cpu"
ALIKE = 0.05  # favoured cores of one kind differ by a few percent in clock


@dataclass(frozen=True)
class Cluster:
    """Cores of one kind. capacity: of one, in the kernel's scale (1024 for the best), 0 where it doesn't say."""

    cores: tuple[int, ...]
    capacity: int
    max_khz: int


def clusters(root: Path = ROOT) -> list[Cluster]:
    """Fastest first. Told by cpufreq's policies, by the kernel's capacities, and where there is neither all are one."""
    found: dict[tuple[int, ...], Cluster] = {}
    for core in cores_online(root):
        capacity = _number(root / CPUS / f"cpu{core}/cpu_capacity")
        max_khz = _number(root / CPUS / f"cpu{core}/cpufreq/cpuinfo_max_freq")
        known = next((c for c in found.values() if _alike(c, capacity, max_khz)), None)
        merged = Cluster((*known.cores, core), known.capacity, known.max_khz) if known else None
        if known is not None:
            del found[known.cores]
        cluster = merged or Cluster((core,), capacity, max_khz)
        found[cluster.cores] = cluster
    return sorted(found.values(), key=lambda c: (-c.capacity, -c.max_khz, c.cores))


def core_sets(root: Path = ROOT) -> list[list[int]]:
    """Each cluster alone, then the fastest ones together, more and more of them. One cluster: all cores, unpinned."""
    found = clusters(root)
    if len(found) < 2:
        return [[]]
    sets = [sorted(cluster.cores) for cluster in found]
    for count in range(2, len(found) + 1):
        sets.append(sorted(core for cluster in found[:count] for core in cluster.cores))
    return sets


def cores_online(root: Path = ROOT) -> list[int]:
    """The cores that take work, in order."""
    try:
        return parse_cores((root / CPUS / "online").read_text().strip())
    except (OSError, UsageError):
        folders = (root / CPUS).glob("cpu[0-9]*")
        return sorted(int(found.name.removeprefix("cpu")) for found in folders) or [0]


def parse_cores(text: str) -> list[int]:
    """`0-3,6` as the kernel writes it. Raises `UsageError` for anything else."""
    cores: list[int] = []
    for part in text.split(","):
        ends = re.fullmatch(r"(\d{1,4})(?:-(\d{1,4}))?", part.strip())
        if ends is None or (ends[2] and int(ends[2]) < int(ends[1])):
            raise UsageError("profile.cores", f"'{text}' names no cores", "use auto, or numbers such as 0-3,6")
        cores += range(int(ends[1]), int(ends[2] or ends[1]) + 1)
    return sorted(set(cores))


def cores_text(cores: Sequence[int]) -> str:
    """The other way round: `0-3,6`."""
    runs: list[list[int]] = []
    for core in sorted(cores):
        if runs and runs[-1][-1] == core - 1:
            runs[-1].append(core)
        else:
            runs.append([core])
    return ",".join(f"{run[0]}-{run[-1]}" if len(run) > 1 else f"{run[0]}" for run in runs)


def _alike(cluster: Cluster, capacity: int, max_khz: int) -> bool:
    pairs = ((cluster.capacity, capacity), (cluster.max_khz, max_khz))
    return all(abs(a - b) <= ALIKE * max(a, b) for a, b in pairs)


def _number(file: Path) -> int:
    try:
        return int(file.read_text())
    except (OSError, ValueError):
        return 0
