"""What devices say of themselves, as read from phones, boards and emulators."""

from __future__ import annotations

import pytest

from edge.runtimes.transports._facts import device_of

DF = "df=/dev/block/dm-47   111374776 31201340  80042364      29% /data\nwritable=1\n"
PIXEL = f"""machine=aarch64
kernel_arch=aarch64
bits=64
memory_kib=7663092
ro.product.manufacturer=Google
ro.product.model=Pixel 6
ro.soc.manufacturer=Google
ro.soc.model=Tensor
ro.board.platform=gs101
ro.hardware=oriole
ro.product.cpu.abi=arm64-v8a
ro.build.version.release=15
ro.build.version.sdk=35
android=1
bionic=1
folder=/data/local/tmp/edge
{DF}battery=76
cpuinfo=
processor\t: 0
CPU implementer\t: 0x41
CPU part\t: 0xd05
processor\t: 1
CPU implementer\t: 0x41
CPU part\t: 0xd41
"""
ORIN = f"""machine=aarch64
kernel_arch=aarch64
bits=64
memory_kib=7802064
model=NVIDIA Jetson Orin Nano Developer Kit
compatible=nvidia,tegra234
os=Ubuntu 22.04.4 LTS
kernel=Linux 5.15.136-tegra
folder=/home/nano/.cache/edge/device
{DF}cpuinfo=
processor\t: 0
model name\t: ARMv8 Processor rev 1 (v8l)
CPU implementer\t: 0x41
"""
LAPTOP = f"""machine=x86_64
memory_kib=16000000
os=Debian GNU/Linux 12 (bookworm)
kernel=Linux 6.1.0
folder=/root/.cache/edge/device
{DF}cpuinfo=
processor\t: 0
model name\t: Some CPU
physical id\t: 0
core id\t: 0
processor\t: 1
model name\t: Some CPU
physical id\t: 0
core id\t: 0
processor\t: 2
model name\t: Some CPU
physical id\t: 0
core id\t: 1
"""


def test_a_phone():
    device, folder = device_of("adb:8ADX0QUH3", PIXEL)
    assert (device.transport, device.model, device.soc) == ("adb", "Google Pixel 6", "Google Tensor")
    assert (device.platform, device.os, device.battery_percent) == ("android-arm64", "Android 15 (API 35)", 76)
    assert (device.cores, device.memory_bytes, device.free_bytes) == (2, 7663092 << 10, 80042364 << 10)
    assert folder == "/data/local/tmp/edge" and not device.emulated and not device.problem


def test_a_maker_s_name_is_said_once_and_an_old_phone_has_a_platform_for_a_chip():
    old = PIXEL.replace("model=Pixel 6", "model=Google Pixel").replace("ro.soc", "no.soc")
    device, _ = device_of("adb:x", old)
    assert (device.model, device.soc) == ("Google Pixel", "gs101")


def test_a_board():
    device, folder = device_of("ssh:nano@orin", ORIN)
    assert (device.model, device.soc) == ("NVIDIA Jetson Orin Nano Developer Kit", "nvidia,tegra234")
    assert (device.platform, device.os, device.cores) == ("linux-arm64", "Ubuntu 22.04.4 LTS", 1)
    assert folder == "/home/nano/.cache/edge/device" and device.battery_percent is None and not device.emulated


def test_hardware_threads_are_no_cores():
    device, _ = device_of("ssh:host", LAPTOP)
    assert (device.model, device.cores, device.platform) == ("Some CPU", 2, "linux-x86_64")


def test_a_system_of_32_bits_on_a_kernel_of_64_is_one_of_32():
    assert device_of("ssh:pi", ORIN.replace("bits=64", "bits=32"))[0].platform == "linux-arm"
    assert device_of("adb:x", PIXEL.replace("arm64-v8a", "armeabi-v7a"))[0].platform == "android-arm"


@pytest.mark.parametrize(
    ("what", "told"),
    [
        ("kernel_arch=aarch64", "kernel_arch=x86_64"),  # qemu-user
        ("android=1", "android=1\nro.kernel.qemu=1"),
        ("android=1", "android=1\nro.boot.qemu=1"),
        ("ro.hardware=oriole", "ro.hardware=ranchu"),
        ("implementer\t: 0x41", "implementer\t: 0x00"),  # qemu-system, -cpu max
        ("CPU part", "model name\t: QEMU TCG CPU version 2.5+\nCPU part"),
    ],
)
def test_an_emulator_is_found_out(what, told):
    assert what in PIXEL and device_of("adb:x", PIXEL.replace(what, told))[0].emulated


def test_programs_of_32_bits_are_no_emulation():
    assert not device_of("ssh:pi", ORIN.replace("machine=aarch64", "machine=armv8l"))[0].emulated
    assert not device_of("ssh:pi", ORIN.replace("kernel_arch=aarch64\n", ""))[0].emulated


def test_why_a_device_cannot_be_used():
    full = PIXEL.replace("80042364      29%", "12000     100%")
    assert device_of("adb:x", full)[0].problem == "no space: 12 MB free in /data/local/tmp/edge"
    assert "can't write to /data/local/tmp/edge" in device_of("adb:x", PIXEL.replace("writable=1\n", ""))[0].problem


def test_a_device_that_says_nothing_has_no_facts():
    device, folder = device_of("ssh:x", "")
    assert (device.model, device.cores, device.memory_bytes, device.platform, folder) == ("", 0, 0, "", "")
