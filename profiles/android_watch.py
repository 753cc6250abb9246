"""What only Android's services tell: thermal status, skin temperatures, the battery where its files are closed to us.

Asked for over the connection every ten seconds while a run goes on: two `dumpsys`, some 10 ms of the phone's CPU each.
Where nothing answers (a board) nothing is asked again.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Literal

from edge.core.errors import EdgeError
from edge.core.measurement import Track
from edge.core.transport import Connection
from edge.profiles.journal import Attempt
from edge.profiles.sampled import Segment
from edge.runtimes.probes.power.battery import parse_dumpsys
from edge.runtimes.probes.thermal import parse_thermalservice

EVERY_S = 10.0
SCRIPT = """
command -v dumpsys >/dev/null || exit 3
cat /proc/sys/kernel/random/boot_id /proc/uptime || exit
echo battery:
dumpsys battery
echo thermal:
dumpsys thermalservice
exit 0
"""
ANSWER = re.compile(r"\s*([\w-]+)\s+(\d+\.\d+) [\d.]+\s+battery:\n(.*?)thermal:\n(.*)", re.DOTALL)


@dataclass
class Watch:
    """Points by name: (boot, nanoseconds since it with sleep, value)."""

    points: dict[str, list[tuple[str, int, float]]] = field(default_factory=dict)
    silent: bool = False

    def take(self, answer: str) -> None:
        """Add what one answer says; one that can't be understood says nothing."""
        if not (found := ANSWER.fullmatch(answer)):
            return
        boot, uptime, battery, thermal = found.groups()
        service, power = parse_thermalservice(thermal), parse_dumpsys(battery)
        values: dict[str, float | None] = {"thermal/status": service.status}
        values |= {f"temperature/{one.name}": one.celsius for one in service.temperatures}
        if not power.faked:
            values |= {"battery/level": power.level_percent, "temperature/battery": power.temperature_c}
        for name, value in values.items():
            if value is not None:
                self.points.setdefault(name, []).append((boot, round(1e9 * float(uptime)), float(value)))

    def tracks(
        self, segments: Sequence[Segment], attempts: Sequence[Attempt], known: Sequence[Track] = ()
    ) -> list[Track]:
        """Over the time since the run's start. known: those that the sampler brought; of one name they count."""
        asleep = {s.boot: s.boot_offset_ns for s in segments}
        offsets = {a.begin.boot: a.offset_ns for a in attempts}
        names = {track.name for track in known}
        found = []
        for name, points in self.points.items():
            placed = [(at - asleep[b] + offsets[b], v) for b, at, v in points if b in asleep and b in offsets]
            rows = [(at, value) for at, value in placed if at >= 0]
            if rows and name not in names:
                found.append(Track(name, _unit(name), [at for at, _ in rows], [value for _, value in rows]))
        return found


@contextmanager
def watching(connection: Connection, every_s: float = EVERY_S) -> Iterator[Watch]:
    """Ask again and again until the block is left; a lost connection leaves a gap."""
    watch, over = Watch(), threading.Event()

    def ask() -> None:
        while not watch.silent and not over.is_set():
            try:
                done = connection.run(["sh", "-c", SCRIPT], timeout_s=30)
                watch.silent = done.code != 0
                watch.take(done.stdout.decode(errors="replace"))
            except EdgeError:
                pass
            over.wait(every_s)

    thread = threading.Thread(target=ask, name="edge-android", daemon=True)
    thread.start()
    try:
        yield watch
    finally:
        over.set()
        thread.join(timeout=30)


def _unit(name: str) -> Literal["C", "percent", "count"]:
    return "C" if name.startswith("temperature/") else "percent" if name == "battery/level" else "count"
