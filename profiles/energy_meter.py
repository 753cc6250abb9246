"""Energy of a profile on this machine: idle, the measured conversations with prefill and decode apart, idle again."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path

from edge.core.measurement import Energy
from edge.profiles.accounting import account, not_available, of_meter
from edge.profiles.boards import this_board
from edge.profiles.energy import Window
from edge.runtimes.probes.power import battery, ina3221, nvml, rapl
from edge.runtimes.probes.power.series import (
    NEWS_FOR_A_BASELINE,
    PowerUnavailableError,
    Recorder,
    Series,
    Source,
    refreshed,
)

ROOT = Path("/")
INTERVAL_S = 0.05
IDLE_S = 2.0
POLL_S = 0.2


def sources(root: Path = ROOT) -> Iterator[tuple[str, Source | str]]:
    """What tells energy here, best first, each with its source or why there is none."""
    board = this_board(root)
    sum_of = [*board.power.total, *board.power.without_total] if board else []
    opens: dict[str, Callable[[], Source]] = {
        "RAPL": partial(rapl.open_source, root),
        "INA3221": partial(ina3221.open_source, root, sum_of),
        "battery": partial(battery.open_source, root),
    }
    if root == ROOT:
        opens["NVML"] = nvml.open_source
    for name, open_one in opens.items():
        try:
            yield name, open_one()
        except PowerUnavailableError as error:
            yield name, str(error)


def find_source(root: Path = ROOT) -> tuple[Source | None, str]:
    """The first that answers, and the reasons where none does."""
    reasons = []
    for _, found in sources(root):
        if isinstance(found, Source):
            return found, ""
        reasons.append(found)
    return None, "; ".join(reasons)


class EnergyMeter:
    """Between `start` and `stop`, with stretches marked by `begin`. Without a source every call is free.

    meter_csv: the file that an external meter writes, read in `energy`, instead of this machine's own sources.
    """

    def __init__(
        self,
        root: Path = ROOT,
        idle_s: float = IDLE_S,
        sleep: Callable[[float], None] = time.sleep,
        interval_s: float = INTERVAL_S,
        source: Source | None = None,
        meter_csv: Path | None = None,
    ) -> None:
        self.source, self.reason = (source, "") if source or meter_csv else find_source(root)
        self._file = meter_csv
        self.idle_s = idle_s
        self._sleep = sleep
        self._windows: list[Window] = []
        self._open: tuple[str, int, int] | None = None
        self._running = ExitStack()
        self._recorder = Recorder([self.source.channels] if self.source else [], interval_s)

    @property
    def measures(self) -> bool:
        return self.source is not None or self._file is not None

    def start(self) -> None:
        if self.measures:
            self._running.enter_context(self._recorder.running())
            self._idle("idle before")

    def begin(self, name: str, tokens: int = 0) -> None:
        """What follows is `name`, until the next call; "" is nothing in particular."""
        if not self.measures:
            return
        self._recorder.sweep()
        now = time.monotonic_ns()
        if self._open is not None:
            was, since, made = self._open
            self._windows.append(Window(was, since, now, made))
        self._open = (name, now, tokens) if name else None

    def stop(self) -> None:
        if self.measures:
            self.begin("")
            self._idle("idle after")
        self._running.close()

    def _idle(self, name: str) -> None:
        """Rest for idle_s, and longer where the source renews its reading rarely: until it has told enough."""
        self.begin(name)
        start = time.monotonic_ns()
        self._sleep(self.idle_s)
        while self.source and 1e9 * self.source.idle_s > time.monotonic_ns() - start:
            if self._recorder.news(self.source.total, start) >= NEWS_FOR_A_BASELINE:
                break
            self._sleep(POLL_S)
        self.begin("")

    def energy(self) -> Energy:
        """What the stretches between the two idle ones used, prefill and decode apart, net of idle."""
        if not self.measures:
            return not_available(self.reason)
        before, *windows, after = self._windows
        try:
            series, described = self._series(windows)
        except PowerUnavailableError as error:
            return not_available(str(error))
        return account(series, described, before, windows, after)

    def _series(self, windows: Sequence[Window]) -> tuple[Series, str]:
        """What was read, and what to call it. An external meter's clock is tied to the load's begin and end."""
        if self.source is not None:
            return refreshed(self.source.whole(self._recorder.series(only=self.source.total))), self.source.describe()
        if self._file is None:
            raise PowerUnavailableError(self.reason)
        return of_meter(self._file, windows)
