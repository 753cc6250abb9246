"""Both transports on the stand-ins: what is there, files there and back, programs, and a connection that breaks."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

from edge.core.errors import EdgeError
from edge.core.transport import Connection, DeviceLost
from edge.runtimes.transports import connect

from .standin import Bench, Jetson, Phone
from .standin.device import StandIn
from .test_standin import until

NAMES = ("phone", "jetson")
pytestmark = pytest.mark.timeout(600)  # the first one waits for the stand-ins to be made


@pytest.fixture(params=NAMES)
def device(request: pytest.FixtureRequest) -> StandIn:
    return request.getfixturevalue(request.param)


@pytest.fixture
def connection(device: StandIn) -> Iterator[Connection]:
    opened = connect(device.name)
    yield opened
    opened.run(["rm", "-rf", opened.folder])
    opened.close()


@pytest.fixture
def payload(tmp_path: Path) -> Path:
    """More than fits into any buffer on the way."""
    file = tmp_path / "payload"
    file.write_bytes(os.urandom(1 << 20) * 12)
    return file


@contextmanager
def cut_after(device: StandIn, seconds: float) -> Iterator[None]:
    timer = threading.Timer(seconds, device.disconnect)
    timer.start()
    try:
        yield
    finally:
        timer.join()
        device.reconnect()


def edge(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["edge", *arguments], capture_output=True, text=True, check=False)


def test_edge_devices_lists_them_with_what_they_are(bench: Bench, phone: Phone, jetson: Jetson):
    done = edge("devices", jetson.name, "--json")
    assert done.returncode == 0, done.stderr
    found = {device["name"]: device for device in json.loads(done.stdout)}
    there, board = found[phone.name], found[jetson.name]
    assert (there["model"], there["soc"]) == ("QEMU Stand-in phone", "QEMU qemu-user")
    assert (board["model"], board["soc"]) == ("NVIDIA Jetson Orin Nano Developer Kit", "nvidia,tegra234")
    assert (there["battery_percent"], board["battery_percent"]) == (76, None)
    for device in (there, board):
        assert device["emulated"] and not device["problem"] and device["free_bytes"]
        assert (device["platform"], device["cores"]) == ("linux-arm64", os.cpu_count())
        assert device["memory_bytes"] == psutil.virtual_memory().total
    assert not found["cpu"]["emulated"]


def test_edge_devices_says_why_one_cannot_be_used(device):
    device.disconnect()
    done = edge("devices", device.name, "--json")
    device.reconnect()
    assert done.returncode == 3
    (found,) = (other for other in json.loads(done.stdout) if other["name"] == device.name)
    assert "can't reach" in found["problem"]


def test_a_file_goes_there_and_back_and_is_not_sent_twice(connection, payload, tmp_path):
    remote = f"{connection.folder}/some folder/it's a file"
    sent: list[int] = []
    connection.push(payload, remote, lambda count=1, note="": sent.append(count))
    assert sum(sent) == payload.stat().st_size
    start = time.monotonic()
    connection.push(payload, remote)
    assert connection.run(["sha256sum", remote]).stdout.split()[0].decode() == digest(payload)
    assert time.monotonic() - start < 30
    back = tmp_path / "back"
    back.write_bytes(payload.read_bytes()[:1000])
    assert connection.pull(remote, back, offset=1000) == payload.stat().st_size - 1000
    assert digest(back) == digest(payload)


def digest(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


def test_a_broken_push_goes_on_where_it_was(connection, device, payload):
    remote = f"{connection.folder}/broken"
    sent = 0

    def tick(count: int = 1, note: str = "") -> None:
        nonlocal sent
        sent += count
        if sent == 5 << 20:
            device.disconnect()

    with pytest.raises(DeviceLost):
        connection.push(payload, remote, tick)
    device.reconnect()
    connection.reconnect()
    kept = int(connection.run(["wc", "-c", f"{remote}.part"]).stdout.split()[0])
    steps: list[int] = []
    connection.push(payload, remote, lambda count=1, note="": steps.append(count))
    assert sum(steps) == payload.stat().st_size
    assert steps[0] == kept > 0
    assert connection.run(["sha256sum", remote]).stdout.split()[0].decode() == digest(payload)


def test_damage_is_noticed(connection, payload):
    """What an earlier try left isn't trusted."""
    remote = f"{connection.folder}/damaged"
    connection.run(["mkdir", "-p", connection.folder])
    connection.run(["sh", "-c", 'dd if=/dev/zero of="$1.part" bs=1024 count=64 2>/dev/null', "-", remote])
    connection.push(payload, remote)
    assert connection.run(["sha256sum", remote]).stdout.split()[0].decode() == digest(payload)


def test_a_program_tells_how_it_ended(connection):
    done = connection.run(["sh", "-c", 'cat; echo "$1" >&2; exit 7', "-", "it's $HOME"], stdin=b"\0\xff in\n")
    assert (done.code, done.stdout, done.stderr.strip()) == (7, b"\0\xff in\n", b"it's $HOME")
    with connection.stream(["sh", "-c", "i=0; while :; do echo $i; i=$((i+1)); sleep 0.05; done"]) as lines:
        assert [next(lines) for _ in range(5)] == [b"0", b"1", b"2", b"3", b"4"]


def test_what_was_started_outlives_the_connection(connection, device):
    log = f"{connection.folder}/log"
    pid = connection.start(["sh", "-c", "while :; do echo on; sleep 0.1; done"], log=log)
    assert connection.alive(pid)
    with cut_after(device, 0.5), pytest.raises(DeviceLost):
        connection.run(["sleep", "60"])
    connection.reconnect()
    assert connection.alive(pid)
    before = int(connection.run(["wc", "-c", log]).stdout.split()[0])
    time.sleep(1)
    assert int(connection.run(["wc", "-c", log]).stdout.split()[0]) > before
    connection.run(["kill", str(pid)])
    until(lambda: not connection.alive(pid))


def test_a_reboot_ends_what_was_started(connection, device):
    pid = connection.start(["sleep", "1000"], log=f"{connection.folder}/log")
    assert connection.alive(pid)
    device.reboot()
    connection.reconnect()
    until(lambda: not connection.alive(pid))  # raises where it never comes true


def test_a_full_disk_is_told_before_it_is_full(bench, payload):
    for small in (bench.phone(disk_bytes=8 << 20), bench.jetson(disk_bytes=8 << 20)):
        connection = connect(small.name)
        with pytest.raises(EdgeError) as error:
            connection.push(payload, f"{connection.folder}/payload")
        assert error.value.code == "device.full"
        connection.close()
