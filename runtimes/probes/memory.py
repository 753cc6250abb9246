"""Resident memory of this process over time, and its peak.

The kernel's own high-water mark (`VmHWM`) misses nothing; it counts from the start of the process unless it may be
reset through `clear_refs`. Elsewhere the peak is the largest sample, which can miss what lasts less than an interval.
"""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil

from edge.core.measurement import MemorySample, Phase

PROC_SELF = Path("/proc/self")
RESET_PEAK = "5"  # proc(5): writing 5 to clear_refs resets VmHWM to the present resident size


class MemoryTimeline:
    """Samples in a thread between `start` and `stop`. Times are nanoseconds since `start`.

    `stop` sets peak_bytes: the kernel's high-water mark if it could be reset at the start, else the largest sample.
    """

    def __init__(self, interval_s: float = 0.02, proc_self: Path = PROC_SELF) -> None:
        self.interval_s = interval_s
        self.samples: list[MemorySample] = []
        self.phases: list[Phase] = []
        self._proc_self = proc_self
        self._process = psutil.Process()
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="edge-memory", daemon=True)

    def start(self) -> None:
        self.peak_was_reset = reset_peak(self._proc_self)
        self._start_ns = time.perf_counter_ns()
        self._sample()
        self._thread.start()

    def stop(self) -> None:
        """End sampling, and take the peak now: what the process does later is not part of it."""
        self._stopped.set()
        self._thread.join()
        self._sample()
        mark = high_water_mark(self._proc_self) if self.peak_was_reset else None
        self.peak_bytes = max(mark or 0, *(sample.resident_bytes for sample in self.samples))

    @contextmanager
    def running(self) -> Iterator[MemoryTimeline]:
        self.start()
        try:
            yield self
        finally:
            self.stop()

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Mark a stretch of the run; a phase that raises is marked as far as it came."""
        start = self._now()
        try:
            yield
        finally:
            self.phases.append(Phase(name, start, self._now()))

    def _now(self) -> int:
        return time.perf_counter_ns() - self._start_ns

    def _sample(self) -> None:
        self.samples.append(MemorySample(self._now(), self._process.memory_info().rss))

    def _run(self) -> None:
        while not self._stopped.wait(self.interval_s):
            self._sample()


def reset_peak(proc_self: Path = PROC_SELF) -> bool:
    """Make the kernel's high-water mark count from now. False where that can't be done."""
    control = proc_self / "clear_refs"
    if not control.exists():
        return False
    try:
        control.write_text(RESET_PEAK)
    except OSError:
        return False
    return True


def high_water_mark(proc_self: Path = PROC_SELF) -> int | None:
    """VmHWM in bytes, None where the kernel doesn't say."""
    try:
        status = (proc_self / "status").read_text()
    except OSError:
        return None
    found = re.search(r"^VmHWM:\s+(\d+) kB", status, re.MULTILINE)
    return 1024 * int(found.group(1)) if found else None
