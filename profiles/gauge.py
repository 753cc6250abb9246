"""How often a device's battery gauge has news: what a run's rests before and after have to be long enough for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

from edge.core.console import info
from edge.core.transport import Connection
from edge.profiles import sampled, telemetry
from edge.profiles.telemetry import Column
from edge.runtimes.probes.power import battery
from edge.runtimes.probes.power.series import PowerUnavailableError, Source

WATCH_S = 25
INTERVAL_MS = 100


def observed(
    connection: Connection, sampler: str, source: Source, columns: Sequence[Column], watch_s: float = WATCH_S
) -> Source:
    """The source with the refresh period that it shows while nothing runs; other sources as they are.

    sampler: its path on the device. A gauge that shows too little keeps the longest period that gauges have.
    """
    if source.name != battery.NAME:
        return source
    info(f"Watching the battery gauge of {connection.device.name} for {watch_s:.0f} s: its readings are rare")
    mine = [column for column in columns if column.name.startswith("rail/")]
    folder = f"{connection.folder}/gauge"
    with TemporaryDirectory() as local:
        (Path(local) / "columns").write_text(telemetry.text(mine))
        connection.run(["rm", "-rf", folder])
        connection.push(Path(local) / "columns", f"{folder}/columns")
        options = ["--interval-ms", str(INTERVAL_MS), "--columns", f"{folder}/columns", "--out", f"{folder}/samples"]
        connection.run([sampler, *options, "--", "sleep", str(watch_s)], timeout_s=watch_s + 60)
        connection.pull(f"{folder}/samples", Path(local) / "samples")
        segments = sampled.parse((Path(local) / "samples").read_bytes())
    connection.run(["rm", "-rf", folder])
    try:
        return replace(source, refresh_ns=sampled.series(segments, source).accuracy.delay_ns)
    except PowerUnavailableError:
        return source
