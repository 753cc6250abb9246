"""The stand-ins themselves, by the plain adb and ssh clients."""

from __future__ import annotations

import subprocess
import time
from pathlib import Path

import pytest

from .standin import Bench, Jetson, Phone

pytestmark = pytest.mark.timeout(600)  # the first one waits for the stand-ins to be made


def adb(bench: Bench, phone: Phone, command: str) -> str:
    return bench.run_adb("-s", phone.serial, "shell", command).strip()


def ssh(jetson: Jetson, command: str) -> str:
    return subprocess.run(["ssh", jetson.alias, command], capture_output=True, text=True, check=True).stdout.strip()


def until(true, seconds: float = 30) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end
        time.sleep(0.2)


def test_programs_there_are_arm64_and_the_host_knows_nothing_of_it(bench, phone, jetson):
    assert adb(bench, phone, "uname -m") == ssh(jetson, "uname -m") == "aarch64"
    known = [file for file in Path("/proc/sys/fs/binfmt_misc").glob("*") if file.name not in ("register", "status")]
    assert not any(str(phone.system.qemu) in file.read_text() for file in known)


def test_a_phone_has_services_that_remember(bench, phone):
    assert "level: 76" in adb(bench, phone, "dumpsys battery")
    assert "Thermal Status: 0" in adb(bench, phone, "dumpsys thermalservice")
    adb(bench, phone, "settings put global airplane_mode_on 1")
    assert adb(bench, phone, "cmd connectivity airplane-mode") == "enabled"
    assert adb(bench, phone, "settings get global nothing_like_it") == "null"


def test_readings_move(bench, phone, jetson):
    current = "cat /sys/class/power_supply/battery/current_now"
    first = adb(bench, phone, current)
    until(lambda: adb(bench, phone, current) != first)
    rail = "cat /sys/bus/i2c/devices/1-0040/hwmon/hwmon3/curr1_input"
    assert 900 < int(ssh(jetson, rail)) < 1300


def test_a_lost_phone_comes_back_and_its_programs_live_on(bench, phone):
    pid = adb(bench, phone, "setsid sleep 100 >/dev/null 2>&1 </dev/null & echo $!")
    phone.disconnect()
    assert adb(bench, phone, "true") != ""
    phone.reconnect()
    until(lambda: "connected to" in bench.run_adb("connect", phone.serial))
    until(lambda: adb(bench, phone, f"kill -0 {pid} && echo alive") == "alive")


def test_a_reboot_ends_everything_and_is_another_boot(bench, jetson):
    boot = ssh(jetson, "cat /proc/sys/kernel/random/boot_id")
    pid = ssh(jetson, "touch kept; setsid sleep 100 >/dev/null 2>&1 </dev/null & echo $!")
    jetson.reboot()
    until(lambda: subprocess.run(["ssh", jetson.alias, "true"], capture_output=True, check=False).returncode == 0)
    assert ssh(jetson, "cat /proc/sys/kernel/random/boot_id") != boot
    assert ssh(jetson, f"ls kept; kill -0 {pid} 2>/dev/null || echo gone") == "kept\ngone"
