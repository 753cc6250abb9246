"""The energy of a profile on simulated powercap trees. Nothing here is a measurement."""

import os
import threading
import time

import numpy as np
import pytest

from edge.profiles.accounting import merged, phase_energy
from edge.profiles.energy import Window, idle_baseline
from edge.profiles.energy_meter import EnergyMeter, find_source
from edge.runtimes.probes.power import rapl
from edge.runtimes.probes.power.series import Accuracy, Channel, Series, Source

RAPL = "sys/class/powercap/intel-rapl"
TREE = {
    f"{RAPL}:0/name": "package-0",
    f"{RAPL}:0/energy_uj": 1000,
    f"{RAPL}:0/max_energy_range_uj": 99_999_999,
    f"{RAPL}:0:0/name": "core",
    f"{RAPL}:0:0/energy_uj": 500,
    f"{RAPL}:0:0/max_energy_range_uj": 99_999_999,
    f"{RAPL}:0:1/name": "dram",
    f"{RAPL}:0:1/energy_uj": 7,
    f"{RAPL}:0:1/max_energy_range_uj": 99_999_999,
    f"{RAPL}:1/name": "psys",
    f"{RAPL}:1/energy_uj": 12000,
    f"{RAPL}:1/max_energy_range_uj": 99_999_999,
    f"{RAPL}-mmio:0/name": "package-0",
    f"{RAPL}-mmio:0/energy_uj": 1000,
    f"{RAPL}-mmio:0/max_energy_range_uj": 99_999_999,
}


def write(root, files):
    for name, value in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{value}\n")
    return root


def test_core_psys_and_the_second_interface_would_count_again(tmp_path):
    source, reason = find_source(write(tmp_path, TREE))
    assert isinstance(source, Source) and source.total == ("package-0", "package-0/dram") and not reason
    assert [channel.name for channel in source.channels] == ["package-0", "package-0/core", "package-0/dram", "psys"]


class Machine:
    """A simulated counter of a machine whose power is set by hand; it wraps at 100 J, soon after the start."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.watts, self.level_uj, self.last_s = 20, 95e6, time.monotonic()
        channel = Channel("package-0", "energy", "hardware_counter", self.read, rapl.ACCURACY, wraps_at=100e6)
        self.source = Source("RAPL", (channel,), ("package-0",))

    def read(self) -> float:
        with self.lock:
            now = time.monotonic()
            self.level_uj += 1e6 * self.watts * (now - self.last_s)
            self.last_s = now
            return int(self.level_uj) % 100_000_000

    def run(self, watts: int, seconds: float) -> None:
        self.read()
        self.watts = watts
        time.sleep(seconds)
        self.read()
        self.watts = 20


def test_idle_comes_off_and_prefill_and_decode_are_apart():
    machine = Machine()
    meter = EnergyMeter(idle_s=0.4, interval_s=0.01, source=machine.source)
    meter.start()
    for _ in range(3):
        meter.begin("prefill", 16)
        machine.run(60, 0.1)
        meter.begin("decode", 8)
        machine.run(40, 0.2)
        meter.begin("")
    meter.stop()
    energy = meter.energy()
    assert energy.source == "hardware_counter", energy.reason
    prefill, decode = energy.windows
    assert (prefill.name, prefill.tokens, decode.name, decode.tokens) == ("prefill", 48, "decode", 24)
    for window, net_w in ((prefill, 40), (decode, 20)):
        assert abs(window.net_uj - 1e6 * net_w * window.duration_ns / 1e9) < window.net_uncertainty_uj
        assert window.status == "ok" and window.net_uncertainty_uj < 0.5 * window.net_uj
    assert energy.tokens == 3 * 9 and energy.energy_uj == pytest.approx(prefill.gross_uj + decode.gross_uj, abs=2)
    assert energy.idle_uw == pytest.approx(20e6, rel=0.1)


@pytest.mark.parametrize(
    ("files", "reason"),
    [
        ({}, "no RAPL counter"),
        ({f"{RAPL}:0/name": "psys", f"{RAPL}:0/energy_uj": 1, f"{RAPL}:0/max_energy_range_uj": 9}, "no RAPL counter"),
        ({f"{RAPL}:0/name": "package-0"}, "can't be read"),
        ({**TREE, f"{RAPL}:0/energy_uj": "?"}, "can't be read"),
    ],
)
def test_energy_that_is_not_there_says_why(tmp_path, files, reason):
    """Simulated trees without counters, and with broken ones."""
    write(tmp_path, files)
    meter = EnergyMeter(tmp_path, sleep=lambda seconds: pytest.fail("waits for a counter that isn't there"))
    meter.start()
    meter.begin("decode", 1)
    meter.stop()
    energy = meter.energy()
    assert (energy.source, energy.energy_uj, energy.idle_uw, energy.windows) == ("not_available", None, None, [])
    assert reason in energy.reason and "no battery" in energy.reason


def test_counters_for_root_only(tmp_path, monkeypatch):
    """A simulated tree that refuses to be read, as the kernel's does to ordinary users."""
    write(tmp_path, TREE)
    read = type(tmp_path).read_text

    def denied(path, *args):
        if path.name == "energy_uj":
            raise PermissionError(13, os.strerror(13))
        return read(path, *args)

    monkeypatch.setattr(type(tmp_path), "read_text", denied)
    assert "needs root" in find_source(tmp_path)[1]


def test_a_source_that_was_hardly_read_says_so():
    channel = Channel("battery", "power", "gauge", lambda: 5e6, Accuracy())
    meter = EnergyMeter(idle_s=0.05, interval_s=60, source=Source("battery gauge", (channel,), ("battery",)))
    meter.start()
    meter.begin("call", 1)
    meter.stop()
    assert meter.energy().source == "not_available" and "1 readings in a stretch" in meter.energy().reason


def test_a_phase_that_is_too_short_for_its_source_is_not_available():
    """Simulated: a reading every 0.5 s knows nothing of 0.1 s, and yet of the whole."""
    times = np.arange(41) * 500_000_000
    series = Series("p", "power", "gauge", times, np.full(41, 2e6), Accuracy())
    ends = [7_000_000_000, 7_100_000_000, 12_000_000_000]
    prefill, decode = Window("prefill", ends[0], ends[1], 16), Window("decode", ends[1], ends[2], 8)
    idle = idle_baseline(series, Window("before", 0, 6 * 10**9), Window("after", 13 * 10**9, 20 * 10**9))
    short, long = phase_energy(series, [prefill], idle), phase_energy(series, [decode], idle)
    assert (short.status, short.tokens) == ("not_available", 16) and "1 readings" in short.reason
    assert long.gross_uj == pytest.approx(2e6 * 4.9)
    assert [(w.start_ns, w.end_ns) for w in merged([prefill, decode])] == [(ends[0], ends[2])]


def test_an_external_meters_file_is_tied_to_the_load(tmp_path):
    """A simulated meter on a clock 42 s off: 2 W at rest, 5 W under load."""
    meter = EnergyMeter(idle_s=0.4, meter_csv=tmp_path / "meter.csv")
    meter.start()
    start = time.monotonic()
    meter.begin("prefill", 4)
    time.sleep(0.2)
    meter.begin("decode", 8)
    time.sleep(0.4)
    meter.begin("")
    end = time.monotonic()
    meter.stop()
    assert "can't be read" in meter.energy().reason
    rows = [f"{at + 42},{5 if start <= at < end else 2}" for at in np.arange(start - 0.6, end + 0.6, 0.002)]
    (tmp_path / "meter.csv").write_text("\n".join(["time (s),power (W)", *rows]))
    energy = meter.energy()
    assert energy.source == "external_meter" and "meter.csv, clock aligned within" in energy.reason
    for window in energy.windows:
        assert abs(window.net_uj - 3e6 * window.duration_ns / 1e9) < window.net_uncertainty_uj < 0.3 * window.net_uj


def test_the_rest_lasts_until_a_slow_gauge_has_told_enough():
    """A made-up gauge that renews its reading every 0.1 s, and one that never does."""
    renewed = Channel("battery", "power", "gauge", lambda: 5e6 + time.monotonic() // 0.1, Accuracy())
    still = Channel("battery", "power", "gauge", lambda: 5e6, Accuracy())
    for channel, least, most in ((renewed, 1.7, 2.6), (still, 3.6, 4.6)):
        source = Source("battery gauge", (channel,), ("battery",), refresh_ns=200_000_000)
        meter = EnergyMeter(idle_s=0.1, interval_s=0.01, source=source)
        start = time.monotonic()
        meter.start()
        assert least < time.monotonic() - start < most
        meter.stop()
