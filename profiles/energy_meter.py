"""Energy of a profile on this machine."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

from edge.core.measurement import Energy
from edge.runtimes.probes.power.rapl import ROOT, find_domains
from edge.runtimes.probes.power.rapl import used as _used


class EnergyMeter:
    """Gross energy between `start` and `stop`, with the idle power before and after.

    Without a counter every call is free, and `energy` says why there is none.
    """

    def __init__(self, root: Path = ROOT, idle_s: float = 2.0, sleep: Callable[[float], None] = time.sleep) -> None:
        self.domains, self.reason = find_domains(root)
        self.idle_s = idle_s
        self._sleep = sleep
        self._idle_uw: list[int] = []
        self._energy_uj = 0
        self._duration_ns = 0

    def start(self) -> None:
        self.idle()
        self._last = [domain.read() for domain in self.domains]
        self._start_ns = time.perf_counter_ns()

    def tick(self) -> None:
        """Add what was used since the last call: often enough, and no wrap is missed."""
        now = [domain.read() for domain in self.domains]
        self._energy_uj += sum(map(_used, self.domains, self._last, now))
        self._last = now

    def stop(self) -> None:
        self.tick()
        self._duration_ns = time.perf_counter_ns() - self._start_ns
        self.idle()

    def idle(self) -> None:
        """Measure the power of this machine while this process does nothing."""
        if not self.domains:
            return
        before, start = [domain.read() for domain in self.domains], time.perf_counter()
        self._sleep(self.idle_s)
        after, seconds = [domain.read() for domain in self.domains], time.perf_counter() - start
        self._idle_uw.append(round(sum(map(_used, self.domains, before, after)) / seconds))

    def energy(self, tokens: int) -> Energy:
        """What the run used, for `tokens` generated tokens."""
        if not self.domains:
            return Energy(source="not_available", reason=self.reason)
        return Energy(
            source="hardware_counter",
            reason=f"RAPL, {len(self.domains)} package domain{'s' if len(self.domains) > 1 else ''}",
            energy_uj=self._energy_uj,
            idle_uw=round(sum(self._idle_uw) / len(self._idle_uw)),
            idle_spread_uw=max(self._idle_uw) - min(self._idle_uw),
            duration_ns=self._duration_ns,
            tokens=tokens,
        )
