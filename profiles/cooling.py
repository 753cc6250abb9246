"""Heat and lowered clocks: waiting for a device to be cool enough, and telling what ran throttled.

Nothing waits for a temperature unless the plan names one (llama-bench has no such gate, and a phone in a warm room may
never get there). What ran throttled is seen by the caps of the cores' clocks, and waited after in any case.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from itertools import zip_longest
from pathlib import Path

from edge.core.console import info
from edge.profiles.journal import Journal, Repeated, Span
from edge.profiles.plan import Plan
from edge.runtimes.probes.clock import caps_khz, throttle_count
from edge.runtimes.probes.thermal import zones

MARGIN_MC = 5000
"""A device has recovered when it is at most this much warmer than when the run began, and no cap is lowered."""
POLL_S = 0.5


class Cooling:
    """What a run knows of the device's heat. done: repetitions of an earlier process: caps may have been higher."""

    def __init__(self, plan: Plan, root: Path, done: Sequence[Sequence[Repeated]]) -> None:
        self._plan, self._root = plan, root
        earlier = [turn.caps_khz for turns in done for turn in turns]
        self._caps = [max(caps) for caps in zip_longest(caps_khz(root), *earlier, fillvalue=0)]
        known = [turns[0].temperature_mc for turns in done if turns[0].temperature_mc is not None]
        self._first_mc = known[0] if known else self.hottest_mc()

    def hottest_mc(self) -> int | None:
        """Of the zones that can be read, in 1/1000 °C."""
        found = [zone.celsius for zone in zones(self._root)]
        return round(1000 * max(found)) if found else None

    def watch(self) -> Callable[[], tuple[list[int], bool]]:
        """Call what this returns at the end of a stretch: the lowest cap of each core, and whether it was throttled."""
        before, count = caps_khz(self._root), throttle_count(self._root)

        def end() -> tuple[list[int], bool]:
            after = caps_khz(self._root)
            lowest = [min(pair) for pair in zip(before, after, strict=False)]
            return lowest, self._lowered(lowest) or throttle_count(self._root) > count

        return end

    def wait_to_start(self, log: Journal) -> None:
        """Until the hottest zone is below what the plan says, at most as long as it says."""
        limit = self._plan.start_below_c
        if limit is None:
            return
        if self.hottest_mc() is None:
            info("No temperature can be read here: starting at once")
            return
        self._wait(log, lambda: (self.hottest_mc() or 0) < 1000 * limit, f"below {limit:g} °C")

    def wait_to_recover(self, log: Journal) -> None:
        """After a throttled repetition: until the caps are back and it is about as cool as when the run began."""
        first = self._first_mc

        def recovered() -> bool:
            warm = first is not None and (self.hottest_mc() or 0) > first + MARGIN_MC
            return not warm and not self._lowered(caps_khz(self._root))

        self._wait(log, recovered, "no longer throttled")

    def _wait(self, log: Journal, ready: Callable[[], bool], until: str) -> None:
        if ready():
            return
        start, wait_s = time.monotonic_ns(), self._plan.wait_s
        hottest = self.hottest_mc()
        now = "" if hottest is None else f", now {hottest / 1000:.0f} °C"
        info(f"Waiting until it is {until}{now}, {wait_s:g} s at most")
        while not ready() and (left := wait_s - (time.monotonic_ns() - start) / 1e9) > 0:
            time.sleep(min(POLL_S, left))
        log.append(Span, name="wait", start_ns=start, end_ns=time.monotonic_ns())

    def _lowered(self, caps: Sequence[int]) -> bool:
        return any(cap < highest for cap, highest in zip(caps, self._caps, strict=False))
