"""A device's state: recorded, set, given back whatever happens. The phone is made of scripts that keep it in files."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

import edge
from edge.core.errors import EdgeError, UsageError
from edge.core.transport import DeviceLost
from edge.profiles import state
from edge.profiles.state import preparation, prepared
from edge.runtimes.transports.local import LocalConnection

SETTINGS = """#!/bin/sh
[ "$1" = get ] && { cat "$PHONE/$2-$3" 2>/dev/null || echo null; exit; }
[ "$1" = delete ] && exec rm -f "$PHONE/$2-$3"
echo "$4" >"$PHONE/$2-$3"
"""
DUMPSYS = """#!/bin/sh
case $1 in
power) echo "  mWakefulness=$(cat "$PHONE/wakefulness")" ;;
battery) printf '  USB powered: true\\n  level: 44\\n  voltage: 3872\\n' ;;
thermalservice) printf 'Thermal Status: 0\\nHAL Ready: true\\n' ;;
esac
"""
CMD = """#!/bin/sh
echo "$@" >>"$PHONE/log"
case "$*" in
"connectivity airplane-mode enable") echo 1 >"$PHONE/global-airplane_mode_on" ;;
"connectivity airplane-mode disable") echo 0 >"$PHONE/global-airplane_mode_on" ;;
"power set-fixed-performance-mode-enabled true") [ ! -f "$PHONE/no-fixed" ] && echo 1 >"$PHONE/fixed" ;;
"power set-fixed-performance-mode-enabled false") rm -f "$PHONE/fixed" ;;
*) exit 255 ;;
esac
"""
INPUT = """#!/bin/sh
case $2 in 223) echo Asleep ;; 224) echo Awake ;; esac >"$PHONE/wakefulness"
"""
BEFORE = {
    "system-screen_brightness": "120",
    "system-screen_brightness_mode": "1",
    "system-screen_off_timeout": "30000",
    "global-airplane_mode_on": "0",
    "wakefulness": "Asleep",
}


@pytest.fixture
def phone(tmp_path, monkeypatch):
    """A folder with what the phone's services remember; a battery saver that was never touched."""
    folder, programs = tmp_path / "phone", tmp_path / "bin"
    folder.mkdir()
    programs.mkdir()
    for name, script in {"settings": SETTINGS, "dumpsys": DUMPSYS, "cmd": CMD, "input": INPUT}.items():
        (programs / name).write_text(script)
        (programs / name).chmod(0o755)
    for name, value in BEFORE.items():
        (folder / name).write_text(f"{value}\n")
    for core in (0, 1):
        cpu = tmp_path / f"root/sys/devices/system/cpu/cpu{core}/cpufreq"
        cpu.mkdir(parents=True)
        (cpu / "scaling_governor").write_text("schedutil\n")
    monkeypatch.setenv("PATH", f"{programs}:{os.environ['PATH']}")
    monkeypatch.setenv("PHONE", str(folder))
    monkeypatch.setenv("EDGE_CACHE", str(tmp_path / "cache"))
    return folder


def now(phone):
    return {file.name: file.read_text().strip() for file in phone.iterdir() if file.name != "log"}


def governors(phone):
    return {file.read_text().strip() for file in phone.parent.glob("root/**/scaling_governor")}


def test_state_is_recorded_and_nothing_is_touched(phone):
    with prepared(LocalConnection(), root=str(phone.parent / "root")) as found:
        assert found == {
            "brightness": "120",
            "brightness mode": "automatic",
            "screen timeout": "30000",
            "airplane": "off",
            "battery saver": "off",
            "screen": "off",
            "charging": "USB",
            "battery level": "44 %",
            "thermal status": "0",
            "governor": "schedutil",
        }
    assert now(phone) == BEFORE and not (phone / "log").exists()


def test_state_is_set_and_given_back(phone):
    connection, root = LocalConnection(), str(phone.parent / "root")
    with prepared(connection, True, root) as found:
        assert now(phone)["system-screen_brightness"] == "1" and now(phone)["wakefulness"] == "Awake"
        assert now(phone)["global-airplane_mode_on"] == "1" and governors(phone) == {"performance"}
        assert found["airplane"] == "off" and found["airplane set"] == "on" and found["fixed performance set"] == "on"
        assert found["governor set"] == "performance" and found["brightness mode set"] == "manual"
    assert now(phone) == BEFORE and governors(phone) == {"schedutil"}
    assert not list((phone.parent / "cache").rglob("*.json")) and not (Path(connection.folder) / "state").exists()


def test_state_is_given_back_after_an_error(phone):
    connection = LocalConnection()
    with pytest.raises(RuntimeError), prepared(connection, {"brightness": "9"}):
        assert now(phone)["system-screen_brightness"] == "9"
        raise RuntimeError
    assert now(phone) == BEFORE


def test_what_a_phone_refuses_is_told(phone):
    (phone / "no-fixed").touch()
    with prepared(LocalConnection(), {"fixed-performance": "1", "brightness": "7"}) as found:
        assert found["fixed performance set"] == "refused" and found["brightness set"] == "7"


def test_airplane_mode_would_cut_a_network_connection(phone):
    connection = LocalConnection()
    assert preparation(connection)["airplane"] == "1"
    connection.device = type(connection.device)(
        name="adb:10.0.0.7:5555", transport="adb", model="x", cores=1, memory_bytes=1
    )
    assert "airplane" not in preparation(connection)


@pytest.mark.parametrize(
    ("wanted", "code"), [({"brigthness": "1"}, "state.unknown"), ({"brightness": "1; ls"}, "state.value")]
)
def test_what_cant_be_asked_for(phone, wanted, code):
    with pytest.raises(UsageError) as caught, prepared(LocalConnection(), wanted):
        pass
    assert caught.value.code == code and now(phone) == BEFORE


HELD = """
import sys, time
from edge.profiles import state
from edge.runtimes.transports.local import LocalConnection
state.BEAT_S, state.SILENT_S, state.STEP_S = 0.3, int(sys.argv[1]), 1
with state.prepared(LocalConnection(), {"brightness": "5", "airplane": "1"}):
    print("ready", flush=True)
    time.sleep(60)
"""


def held(silent_s):
    path = str(Path(edge.__file__).resolve().parents[1])
    environment = {**os.environ, "PYTHONPATH": path}
    process = subprocess.Popen(
        [sys.executable, "-c", HELD, str(silent_s)], stdout=subprocess.PIPE, text=True, env=environment
    )
    assert process.stdout.readline() == "ready\n"
    return process


def until(condition, seconds=10):
    end = time.monotonic() + seconds
    while not condition() and time.monotonic() < end:
        time.sleep(0.1)
    return condition()


def test_the_device_gives_its_state_back_after_kill_9_of_the_host(phone):
    with held(2) as process:
        time.sleep(3.5)  # as long as it is heard of, nothing happens
        assert now(phone)["system-screen_brightness"] == "5"
        process.kill()
    assert until(lambda: now(phone) == BEFORE)
    (phone / "system-screen_brightness").write_text("200\n")  # its owner's own wish since then
    with prepared(LocalConnection()) as found:
        assert found["brightness"] == "200"
    assert now(phone)["system-screen_brightness"] == "200"


def test_the_next_run_gives_back_what_a_killed_one_left(phone):
    with held(600) as process:
        with pytest.raises(EdgeError) as caught, prepared(LocalConnection()):
            pass
        assert caught.value.code == "device.busy"
        process.kill()
    assert now(phone)["system-screen_brightness"] == "5"
    with prepared(LocalConnection()) as found:
        assert found["brightness"] == "120" and now(phone) == BEFORE


def test_what_was_written_down_here_counts_where_the_device_forgot(phone):
    with held(600) as process:
        process.kill()
    for file in (Path(LocalConnection().folder) / "state").iterdir():
        file.unlink()
    with prepared(LocalConnection()):
        assert now(phone) == BEFORE


def test_a_device_that_is_gone_gives_its_state_back_later(phone, monkeypatch):
    connection = LocalConnection()
    run = connection.run

    def gone(command, **options):
        raise DeviceLost("device.lost", "the cable was pulled", "")

    with prepared(connection, {"brightness": "3"}):
        monkeypatch.setattr(connection, "run", gone)
    assert now(phone)["system-screen_brightness"] == "3"
    monkeypatch.setattr(connection, "run", run)
    state.restore(connection)
    assert now(phone) == BEFORE


def test_a_device_that_gave_its_state_back_is_set_again(phone, monkeypatch):
    """The link was gone for longer than the device waits."""
    monkeypatch.setattr(state, "BEAT_S", 0.2)
    connection = LocalConnection()
    with prepared(connection, {"brightness": "3"}) as found:
        connection.run(["sh", "-c", state.SCRIPT, "edge", "restore", f"{connection.folder}/state", ""])
        assert until(lambda: now(phone)["system-screen_brightness"] == "3" and "interrupted" in found)
    assert now(phone) == BEFORE
