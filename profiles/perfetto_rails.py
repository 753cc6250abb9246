"""The power rails of phones that measure them (ODPM, Pixel 6 and newer), by Perfetto's own tracer around a run.

`dumpsys powerstats` says whether there are rails: `ChannelId: 3, ChannelName: S2M_VDD_CPUCL2, ..`. Its readings come in
no text; the API of Android 15 (`SystemHealthManager.getPowerMonitorReadings`) is for apps, and no shell command gives
it. Perfetto's `android.power` reads the same counters ten times a second.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory

from edge.core.console import info
from edge.core.errors import EdgeError
from edge.core.transport import Connection
from edge.profiles.energy import Window
from edge.profiles.telemetry import Power
from edge.runtimes.probes.power import odpm
from edge.runtimes.probes.power.series import PowerUnavailableError, Series

FOLDER = "/data/misc/perfetto-traces"
"""The only one that the tracer may write to."""
CHANNEL = re.compile(r"ChannelId: \d+, ChannelName: \S+")
MOST_S = 6 * 3600
CONFIG = f"""
buffers {{ size_kb: 2048 fill_policy: RING_BUFFER }}
data_sources {{ config {{ name: "android.power" android_power_config {{
  battery_poll_ms: 100 collect_power_rails: true }} }} }}
write_into_file: true
file_write_period_ms: 5000
duration_ms: {1000 * MOST_S}
"""
START = 'perfetto --background --txt -c - -o "$1"'
END = """
kill -TERM "$1" 2>/dev/null
for i in 1 2 3 4 5 6 7 8 9 10; do kill -0 "$1" 2>/dev/null || exit 0; sleep 1; done
exit 1
"""


@dataclass
class Rails:
    """A trace that was taken; `series` is empty and `problem` says why where there is none."""

    series: list[Series] = field(default_factory=list)
    problem: str = ""


def has_rails(connection: Connection) -> bool:
    """Whether the device measures its rails and has the tracer that reads them."""
    found = connection.run(["sh", "-c", "command -v perfetto >/dev/null && dumpsys powerstats 2>/dev/null; exit 0"])
    return bool(CHANNEL.search(found.stdout.decode(errors="replace")))


@contextmanager
def traced(connection: Connection, name: str, folder: str = FOLDER) -> Iterator[Rails]:
    """Trace the rails until the block is left; then `series` has them. Never fails the run that it goes along with."""
    rails = Rails()
    remote = f"{folder}/edge-{name}.perfetto-trace"
    try:
        pid = _start(connection, remote) if has_rails(connection) else 0
    except EdgeError as error:
        pid, rails.problem = 0, error.message
    try:
        yield rails
    finally:
        if pid:
            try:
                _fetch(connection, pid, remote, rails)
            except (EdgeError, PowerUnavailableError) as error:
                rails.problem = str(error)
        if rails.problem:
            info(f"No power rails: {rails.problem}")


def from_trace(series: Sequence[Series]) -> Power:
    """The power of a run from the rails of a trace."""

    def power(windows: Sequence[Window]) -> tuple[Series, str]:
        whole = odpm.whole(series)
        return whole, f"ODPM: {' + '.join(odpm.total_rails([one.name for one in series]))}"

    return power


def _start(connection: Connection, remote: str) -> int:
    connection.run(["rm", "-f", remote])
    done = connection.run(["sh", "-c", START, "edge", remote], stdin=CONFIG.encode())
    said = done.stdout.decode(errors="replace").split()
    if done.code or not said or not said[-1].isdecimal():
        lines = done.stderr.decode(errors="replace").strip().splitlines()
        message = f"perfetto did not start: {lines[-1] if lines else f'exit code {done.code}'}"
        raise EdgeError("perfetto.start", message, "see `adb logcat -s perfetto`")
    return int(said[-1])


def _fetch(connection: Connection, pid: int, remote: str, rails: Rails) -> None:
    connection.run(["sh", "-c", END, "edge", str(pid)], timeout_s=30)
    with TemporaryDirectory() as folder:
        trace = Path(folder) / "trace"
        connection.pull(remote, trace)
        rails.series = odpm.read_trace(trace)
    connection.run(["rm", "-f", remote])
