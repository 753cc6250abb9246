"""What Android's services and its tracer tell of a run, from scripts in their place. Nothing is measured."""

import importlib.util
import os

import numpy as np
import pytest

from edge.core.measurement import Track
from edge.profiles.android_watch import Watch, watching
from edge.profiles.energy import Window
from edge.profiles.journal import Attempt, Begin
from edge.profiles.perfetto_rails import from_trace, has_rails, traced
from edge.profiles.sampled import Segment
from edge.runtimes.transports.local import LocalConnection

DUMPSYS = """#!/bin/sh
case $1 in
battery) printf 'Current Battery Service state:\\n  USB powered: true\\n  level: 44\\n  temperature: 280\\n' ;;
thermalservice)
  echo 'Thermal Status: 1'
  echo 'Cached temperatures:'
  echo ' Temperature{mValue=99.0, mType=3, mName=SKIN, mStatus=0}'
  echo 'HAL Ready: true'
  echo 'Current temperatures from HAL:'
  echo ' Temperature{mValue=31.5, mType=3, mName=SKIN, mStatus=1}' ;;
powerstats) echo 'ChannelId: 2, ChannelName: S2M_VDD_CPUCL2, ChannelSubsystem: CPU(BIG)' ;;
esac
"""
PERFETTO = """#!/bin/sh
grep -q collect_power_rails || exit 1
[ "$1 $2 $3 $4 $5" = "--background --txt -c - -o" ] || exit 2
cp "$CANNED" "$6"
sleep 60 >/dev/null 2>&1 &
echo $!
"""


@pytest.fixture
def phone(tmp_path, monkeypatch):
    programs = tmp_path / "bin"
    programs.mkdir()
    for name, script in {"dumpsys": DUMPSYS, "perfetto": PERFETTO}.items():
        (programs / name).write_text(script)
        (programs / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{programs}:{os.environ['PATH']}")
    monkeypatch.setenv("EDGE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("CANNED", str(tmp_path / "canned"))
    return LocalConnection()


def test_thermal_status_and_battery_over_a_run(phone):
    with watching(phone, every_s=0.05) as watch:
        while len(watch.points.get("thermal/status", ())) < 3:
            pass
    boot = watch.points["thermal/status"][0][0]
    segment = Segment([], boot=boot, boot_offset_ns=0)
    attempts = [Attempt(Begin(0, 0, "p", "runner", 1, boot), -watch.points["thermal/status"][1][1])]
    found = {track.name: track for track in watch.tracks([segment], attempts)}
    assert set(found) == {"thermal/status", "temperature/SKIN", "battery/level", "temperature/battery"}
    assert found["temperature/SKIN"].values[0] == 31.5 and found["temperature/SKIN"].unit == "C"
    assert found["thermal/status"].values[0] == 1 and found["thermal/status"].time_ns[0] == 0
    assert found["battery/level"].unit == "percent" and found["temperature/battery"].values[0] == 28.0
    sampled = Track("battery/level", "percent", [0], [44])
    assert "battery/level" not in {t.name for t in watch.tracks([segment], attempts, [sampled])}
    assert watch.tracks([Segment([], boot="another")], attempts) == []


def test_a_board_is_asked_once(tmp_path, monkeypatch):
    monkeypatch.setenv("EDGE_CACHE", str(tmp_path))
    with watching(LocalConnection(), every_s=0.01) as watch:
        while not watch.silent:
            pass
    assert watch.points == {}


@pytest.mark.parametrize("text", ["", "x 1 2\nbattery:\nthermal:\n", "b 12.5 3.0\nbattery:\n"])
def test_an_answer_that_is_none_says_nothing(text):
    watch = Watch()
    watch.take(text)
    assert watch.points == {}


def test_battery_values_that_were_set_by_hand_are_no_readings():
    watch = Watch()
    watch.take(
        "b\n12.5 3.0\nbattery:\n(UPDATES STOPPED -- use 'reset' to restart)\n level: 7\nthermal:\nThermal Status: 0\n"
    )
    assert set(watch.points) == {"thermal/status"}


@pytest.mark.skipif(importlib.util.find_spec("perfetto") is None, reason="needs perfetto")
def test_power_rails_of_a_run(phone, tmp_path):
    """A made-up phone: two bucks, one behind which a linear regulator lies, ten readings a second."""
    from perfetto.protos.perfetto.trace.perfetto_trace_pb2 import Trace

    trace = Trace()
    clocks = trace.packet.add().clock_snapshot.clocks
    clocks.add(clock_id=6, timestamp=0)
    clocks.add(clock_id=3, timestamp=0)
    for index, name in enumerate(("S2M_VDD_CPUCL2", "S1S_VDD_GPU", "L15M_VDD_SLC_M")):
        trace.packet.add().power_rails.rail_descriptor.add(index=index, rail_name=name)
    for tick in range(100):
        rails = trace.packet.add().power_rails
        for index, watts in enumerate((2, 1, 0.5)):
            rails.energy_data.add(index=index, timestamp_ms=100 * tick, energy=int(100_000 * watts * tick))
    (tmp_path / "canned").write_bytes(trace.SerializeToString())
    assert has_rails(phone)
    with traced(phone, "test", str(tmp_path)) as rails:
        pass
    series, described = from_trace(rails.series)([Window("decode", 0, 1)])
    assert described == "ODPM: S2M_VDD_CPUCL2 + S1S_VDD_GPU" and not rails.problem
    assert np.diff(series.value) == pytest.approx(300_000) and not (tmp_path / "edge-test.perfetto-trace").exists()


def test_a_tracer_that_fails_does_not_fail_the_run(phone, tmp_path):
    with traced(phone, "test", str(tmp_path / "no" / "folder")) as rails:
        pass
    assert rails.series == [] and rails.problem
    (tmp_path / "canned").write_bytes(b"no trace")
    with traced(phone, "test", str(tmp_path)) as rails:
        pass
    assert rails.series == [] and rails.problem


def test_a_phone_without_rails_is_not_traced(phone, tmp_path):
    (tmp_path / "bin/dumpsys").write_text("#!/bin/sh\necho 'PowerStatsService dumpsys: available Channels'\n")
    assert not has_rails(phone)
    with traced(phone, "test", str(tmp_path)) as rails:
        pass
    assert rails.series == [] and not rails.problem
