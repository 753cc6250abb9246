"""Probes on this machine, and on simulated /sys and /proc trees."""

import time

import numpy as np
import pytest

from edge.core.measurement import Phase
from edge.runtimes.probes import clock, memory


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
            block = np.ones(256 << 20, np.uint8)
            time.sleep(0.03)
            del block
    peak = timeline.peak_bytes
    later = np.ones(384 << 20, np.uint8)
    assert len(later) and timeline.peak_bytes == peak  # what comes after the run is not part of it
    first = timeline.samples[0].resident_bytes
    held = 128 << 20  # half of it: the system may take idle pages of a long test run away meanwhile
    assert timeline.peak_bytes >= first + held
    assert [p.name for p in timeline.phases] == ["quiet", "full"]
    quiet, full = timeline.phases
    during = [s.resident_bytes for s in timeline.samples if full.start_ns <= s.time_ns <= full.end_ns]
    assert max(during) >= first + held
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


def test_what_holds_a_clock_down(tmp_path):
    cpus = "sys/devices/system/cpu"
    assert clock.caps_khz(tmp_path) == [] and clock.throttle_count(tmp_path) == 0
    write(tmp_path, {f"{cpus}/cpu{core}/cpufreq/scaling_max_freq": f"{2000 + core}\n" for core in range(12)})
    write(tmp_path, {f"{cpus}/cpu{core}/thermal_throttle/core_throttle_count": f"{core}\n" for core in (0, 1, 2)})
    write(tmp_path, {f"{cpus}/cpu3/thermal_throttle/core_throttle_count": "?\n"})
    assert clock.caps_khz(tmp_path) == [2000 + core for core in range(12)] and clock.throttle_count(tmp_path) == 3


def test_clock_falls_back_and_may_know_nothing(tmp_path):
    """Simulated: cpuinfo only, then neither."""
    assert clock.frequencies_khz(tmp_path) == [] and clock.governor(tmp_path) is None
    write(tmp_path, {"proc/cpuinfo": "processor : 0\ncpu MHz\t\t: 2596.118\n\ncpu MHz\t\t: 800.000"})
    assert clock.frequencies_khz(tmp_path) == [2596118, 800000]


def test_clock_of_this_machine_is_plausible():
    assert all(100_000 < khz < 10_000_000 for khz in clock.frequencies_khz())
