"""Lines of macOS's powermetrics (`sudo powermetrics --samplers cpu_power -i 100`).

Apple calls the numbers estimates and warns against comparing machines by them: the class is `model`. Each line is the
mean over the interval before it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

import numpy as np

from edge.runtimes.probes.power.series import Accuracy, PowerUnavailableError, Series

LINE = re.compile(r"^\s*(CPU|GPU|ANE|Combined) Power(?: \([^)]*\))?: (\d+(?:\.\d+)?) (mW|W)\s*$")
ASSUMED_GAIN = 0.2


def parse(line: str) -> tuple[str, float] | None:
    """Name and mW: ("Combined", 1172.0). None for any other line."""
    if not (found := LINE.match(line)):
        return None
    name, value, unit = found.groups()
    return name, float(value) * (1000 if unit == "W" else 1)


def series(lines: Iterable[tuple[int, str]], interval_ns: int) -> Series:
    """The combined power of (monotonic ns at arrival, line)."""
    rows = [(at, value) for at, line in lines if (value := _combined(line)) is not None]
    if not rows:
        raise PowerUnavailableError("no combined power in the lines of powermetrics: needs root and Apple silicon")
    accuracy = Accuracy(gain=ASSUMED_GAIN, resolution=1000, delay_ns=interval_ns, note="±20 % is assumed for a model")
    time_ns = np.asarray([at for at, _ in rows], np.int64)
    return Series("powermetrics", "power", "model", time_ns, np.asarray([1000 * mw for _, mw in rows]), accuracy)


def _combined(line: str) -> float | None:
    found = parse(line)
    return found[1] if found and found[0] == "Combined" else None
