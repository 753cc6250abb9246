"""Probes on this machine, and on simulated /sys and /proc trees."""

import os
import time

import numpy as np
import pytest

from edge.core.measurement import Phase
from edge.profiles.energy_meter import EnergyMeter
from edge.runtimes.probes import clock, memory
from edge.runtimes.probes.power import rapl


def write(root, files):
    for name, value in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{value}\n")
    return root


def test_memory_sees_what_is_held_for_a_moment():
    timeline = memory.MemoryTimeline(interval_s=0.005)
    with timeline.running():
        with timeline.phase("quiet"):
            time.sleep(0.03)
        with timeline.phase("full"):
            block = np.ones(64 << 20, np.uint8)
            time.sleep(0.03)
            del block
    peak = timeline.peak_bytes
    later = np.ones(256 << 20, np.uint8)
    assert len(later) and timeline.peak_bytes == peak  # what comes after the run is not part of it
    first = timeline.samples[0].resident_bytes
    assert timeline.peak_bytes >= first + (60 << 20)
    assert [p.name for p in timeline.phases] == ["quiet", "full"]
    quiet, full = timeline.phases
    during = [s.resident_bytes for s in timeline.samples if full.start_ns <= s.time_ns <= full.end_ns]
    assert max(during) >= first + (60 << 20)
    assert quiet.end_ns <= full.start_ns
    assert len(timeline.samples) >= 5
    assert [s.time_ns for s in timeline.samples] == sorted(s.time_ns for s in timeline.samples)


def test_a_phase_that_fails_is_marked():
    timeline = memory.MemoryTimeline()
    with pytest.raises(ZeroDivisionError), timeline.running(), timeline.phase("bad"):
        raise ZeroDivisionError
    assert [type(p) for p in timeline.phases] == [Phase]


def test_the_peak_is_the_largest_sample_where_the_mark_cant_be_reset(tmp_path):
    """A simulated /proc/self without clear_refs, whose mark is from before the run."""
    write(tmp_path, {"status": "Name: x\nVmHWM:\t 99999999 kB"})
    timeline = memory.MemoryTimeline(proc_self=tmp_path)
    with timeline.running():
        pass
    assert timeline.peak_bytes == max(s.resident_bytes for s in timeline.samples)


def test_the_peak_is_the_kernels_mark_where_it_can_be_reset(tmp_path):
    """A simulated /proc/self that takes the reset."""
    write(tmp_path, {"status": "Name: x\nVmHWM:\t 99999999 kB", "clear_refs": ""})
    timeline = memory.MemoryTimeline(proc_self=tmp_path)
    with timeline.running():
        pass
    assert timeline.peak_bytes == 99999999 * 1024
    assert (tmp_path / "clear_refs").read_text() == "5"
    assert memory.high_water_mark(tmp_path / "absent") is None


def test_clock_prefers_cpufreq_in_the_order_of_cores(tmp_path):
    """A simulated twelve-core tree: cpu10 comes after cpu2."""
    cores = {f"sys/devices/system/cpu/cpu{i}/cpufreq/scaling_cur_freq": 1000 + i for i in range(12)}
    write(
        tmp_path,
        {**cores, "proc/cpuinfo": "cpu MHz : 1.0", "sys/devices/system/cpu/cpu0/cpufreq/scaling_governor": "powersave"},
    )
    assert clock.frequencies_khz(tmp_path) == [1000 + i for i in range(12)]
    assert clock.governor(tmp_path) == "powersave"


def test_clock_falls_back_and_may_know_nothing(tmp_path):
    """Simulated: cpuinfo only, then neither."""
    assert clock.frequencies_khz(tmp_path) == [] and clock.governor(tmp_path) is None
    write(tmp_path, {"proc/cpuinfo": "processor : 0\ncpu MHz\t\t: 2596.118\n\ncpu MHz\t\t: 800.000"})
    assert clock.frequencies_khz(tmp_path) == [2596118, 800000]


def test_clock_of_this_machine_is_plausible():
    assert all(100_000 < khz < 10_000_000 for khz in clock.frequencies_khz())


RAPL = "sys/class/powercap/intel-rapl"
TWO_PACKAGES = {
    f"{RAPL}:0/name": "package-0",
    f"{RAPL}:0/energy_uj": 1000,
    f"{RAPL}:0/max_energy_range_uj": 9999,
    f"{RAPL}:0:0/name": "core",
    f"{RAPL}:0:0/energy_uj": 500,
    f"{RAPL}:0:0/max_energy_range_uj": 9999,
    f"{RAPL}:1/name": "package-1",
    f"{RAPL}:1/energy_uj": 9000,
    f"{RAPL}:1/max_energy_range_uj": 9999,
    f"{RAPL}:2/name": "psys",
    f"{RAPL}:2/energy_uj": 12000,
    f"{RAPL}:2/max_energy_range_uj": 99999,
    f"{RAPL}-mmio:0/name": "package-0",
    f"{RAPL}-mmio:0/energy_uj": 1000,
    f"{RAPL}-mmio:0/max_energy_range_uj": 9999,
}


def add(root, package, uj):
    counter = root / f"{RAPL}:{package}/energy_uj"
    counter.write_text(f"{(int(counter.read_text()) + uj) % 10000}\n")


def test_energy_of_packages_alone_with_a_wrap_and_the_idle_power(tmp_path):
    """A simulated tree: two packages count; core, psys and the second interface to package 0 would count again."""
    write(tmp_path, TWO_PACKAGES)
    idle_uj = iter([100, 300])

    def sleep(seconds):
        time.sleep(seconds)
        add(tmp_path, 0, next(idle_uj))

    meter = EnergyMeter(tmp_path, idle_s=0.05, sleep=sleep)
    meter.start()
    add(tmp_path, 0, 2500)
    add(tmp_path, 1, 800)
    meter.tick()
    add(tmp_path, 1, 900)  # wraps
    meter.stop()
    energy = meter.energy(tokens=64)
    assert energy.source == "hardware_counter" and energy.energy_uj == 2500 + 800 + 900
    assert "2 package domains" in energy.reason and energy.tokens == 64
    before, after = 100 / 0.05, 300 / 0.05
    assert energy.idle_uw == pytest.approx((before + after) / 2, rel=0.2)
    assert energy.idle_spread_uw == pytest.approx(after - before, rel=0.2)
    assert 0 < energy.duration_ns < 1e9


@pytest.mark.parametrize(
    ("files", "reason"),
    [
        ({}, "no RAPL counter"),
        ({f"{RAPL}:0/name": "psys"}, "no RAPL counter"),
        ({f"{RAPL}:0/name": "package-0"}, "can't be read"),
        ({**TWO_PACKAGES, f"{RAPL}:1/energy_uj": "?"}, "can't be read"),
    ],
)
def test_energy_that_is_not_there_says_why(tmp_path, files, reason):
    """Simulated trees without counters, and with broken ones."""
    write(tmp_path, files)
    meter = EnergyMeter(tmp_path, sleep=lambda seconds: pytest.fail("waits for a counter that isn't there"))
    meter.start()
    meter.tick()
    meter.stop()
    energy = meter.energy(tokens=1)
    assert (energy.source, energy.energy_uj, energy.idle_uw) == ("not_available", None, None)
    assert reason in energy.reason and reason in rapl.why_not_available(tmp_path)


def test_counters_for_root_only(tmp_path, monkeypatch):
    """A simulated tree that refuses to be read, as the kernel's does to ordinary users."""
    write(tmp_path, TWO_PACKAGES)
    read = type(tmp_path).read_text

    def denied(path, *args):
        if path.name == "energy_uj":
            raise PermissionError(13, os.strerror(13))
        return read(path, *args)

    monkeypatch.setattr(type(tmp_path), "read_text", denied)
    assert "needs root" in rapl.why_not_available(tmp_path)
