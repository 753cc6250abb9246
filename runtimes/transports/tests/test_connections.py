"""What every connection does, over each transport and with busybox's tools."""

from __future__ import annotations

import os
import shlex
import threading
import time
from pathlib import Path

import pytest

from edge.core.errors import DeviceUnavailable, EdgeError
from edge.core.transport import DeviceLost
from edge.runtimes.transports import _push, _scripts
from edge.runtimes.transports._shell import ShellConnection

BLOCK = 1 << 20
ODD = "a b'c\"d$HOME\n`ls`*ü"


@pytest.fixture
def connection(there) -> ShellConnection:
    return there.connection


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "file"
    path.write_bytes(os.urandom(5 * BLOCK + 77))
    return path


class Ticks(list[float]):
    def __call__(self, steps: float = 1, note: str | None = None) -> None:
        self.append(steps)


def is_running(pid: int) -> bool:
    try:
        return "zombie" not in Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return False


def until(true, seconds: float = 10) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end
        time.sleep(0.05)


def test_exit_codes_are_the_program_s_own(connection):
    codes = {"exit 7": 7, "exit 255": 255, "kill -9 $$": 137, "echo nothing like an end >&2": 0}
    assert {script: connection.run(["sh", "-c", script]).code for script in codes} == codes


def test_bytes_and_arguments_arrive_as_they_are(connection):
    everything = bytes(range(256)) * 5000
    assert connection.run(["cat"], stdin=everything) == (0, everything, b"")
    assert connection.run(["printf", "%s", ODD]).stdout.decode() == ODD
    assert connection.run(["sh", "-c", "echo out; echo err >&2"]) == (0, b"out\n", b"err\n")
    assert connection.run(["/no/such/program"]).code == 127


def test_a_program_that_takes_too_long_is_ended_there(connection, tmp_path):
    script = f"echo $$ >{shlex.quote(str(tmp_path))}/pid; exec sleep 100"
    with pytest.raises(EdgeError) as error:
        connection.run(["sh", "-c", script], timeout_s=1)
    assert error.value.code == "device.timeout"
    until(lambda: not is_running(int((tmp_path / "pid").read_text())))


def test_lines_come_as_they_are_written_and_leaving_ends_the_program(connection):
    with connection.stream(["sh", "-c", "echo $$; while :; do echo x; sleep 0.1; done"]) as lines:
        pid = int(next(lines))
        assert [next(lines), next(lines)] == [b"x", b"x"]
    until(lambda: not is_running(pid))
    with connection.stream(["printf", "a\\nb\\nlast"]) as lines:
        assert list(lines) == [b"a", b"b", b"last"]
    with pytest.raises(EdgeError, match="No such file"), connection.stream(["cat", "/no/such/file"]) as lines:
        list(lines)


def test_what_is_started_goes_on_without_a_connection_and_is_ended_with_its_children(there, tmp_path):
    log = tmp_path / "new folder" / "log"
    script = 'sleep 200 & echo "$1" $!; sleep 100'
    pid = there.connection.start(["sh", "-c", script, "x", ODD], log=str(log))
    until(lambda: log.exists() and log.read_text().strip())
    child = int(log.read_text().split()[-1])
    assert log.read_text() == f"{ODD} {child}\n"
    if there.cut and there.mend:
        there.cut()
        there.mend()
        there.connection.reconnect()
    assert there.connection.alive(pid) and is_running(child)
    there.connection.kill(pid)
    assert not there.connection.alive(pid)
    until(lambda: not is_running(child))


def test_what_is_not_there_cannot_be_started(connection, tmp_path):
    with pytest.raises(EdgeError) as error:
        connection.start(["/no/such/program"], log=str(tmp_path / "log"))
    assert error.value.code == "device.missing"


def test_a_file_arrives_whole_and_is_not_sent_again(connection, file, tmp_path):
    target = tmp_path / "folders of" / ODD.replace("\n", "") / "target"
    ticks = Ticks()
    connection.push(file, str(target), ticks)
    assert target.read_bytes() == file.read_bytes() and sum(ticks) == file.stat().st_size
    assert not os.access(target, os.X_OK) and not target.with_name("target.part").exists()
    before, again = target.stat(), Ticks()
    connection.push(file, str(target), again)
    assert target.stat() == before and again == [file.stat().st_size]
    file.write_bytes(b"x" + file.read_bytes()[1:])
    file.chmod(0o755)
    connection.push(file, str(target))
    assert target.read_bytes() == file.read_bytes() and os.access(target, os.X_OK)


def test_an_empty_file_is_a_file(connection, tmp_path):
    (tmp_path / "empty").touch()
    connection.push(tmp_path / "empty", str(tmp_path / "there"))
    assert (tmp_path / "there").read_bytes() == b""


def test_a_part_of_an_earlier_try_is_kept_and_of_another_file_not(connection, file, tmp_path):
    data = file.read_bytes()
    for part, kept in ((b"", 0), (data[:-7], len(data) - 7), (data, len(data)), (b"else", 0), (bytes(6 * BLOCK), 0)):
        (tmp_path / "target").unlink(missing_ok=True)
        (tmp_path / "target.part").write_bytes(part)
        ticks = Ticks()
        connection.push(file, str(tmp_path / "target"), ticks)
        assert (tmp_path / "target").read_bytes() == data
        assert sum(ticks) == len(data) and ticks[0] == (kept or BLOCK)


def test_what_does_not_fit_is_not_begun(connection, file, tmp_path, monkeypatch):
    monkeypatch.setattr(_push, "free_bytes", lambda df: 2 * BLOCK)
    with pytest.raises(EdgeError, match=r"needs 5\.2 MB more, 2\.1 MB are free") as error:
        connection.push(file, str(tmp_path / "target"))
    assert error.value.code == "device.full" and not (tmp_path / "target.part").exists()


def test_a_disk_that_fills_up_says_so(connection, file, tmp_path, monkeypatch):
    monkeypatch.setattr(_scripts, "APPEND", "cat >/dev/full")
    with pytest.raises(EdgeError) as error:
        connection.push(file, str(tmp_path / "target"))
    assert error.value.code == "device.full"


def test_what_follows_an_offset_is_appended(connection, file, tmp_path):
    here = tmp_path / "here"
    data = file.read_bytes()
    here.write_bytes(data[:1000])
    assert connection.pull(str(file), here, offset=1000) == len(data) - 1000
    assert connection.pull(str(file), here, offset=len(data)) == 0
    assert here.read_bytes() == data
    with pytest.raises(EdgeError) as error:
        connection.pull("/no/such/file", here)
    assert error.value.code == "device.missing"


@pytest.mark.parametrize("there", ["adb", "ssh"], indirect=True)
def test_a_push_that_was_cut_off_is_taken_up(there, file, tmp_path):
    file.write_bytes(os.urandom(40 * BLOCK))
    sent = Ticks()

    def cut_half_way(steps: float = 1, note: str | None = None) -> None:
        sent(steps)
        if sum(sent) == 20 * BLOCK:
            there.cut()

    target = tmp_path / "target"
    with pytest.raises(DeviceLost):
        there.connection.push(file, str(target), cut_half_way)
    with pytest.raises(DeviceLost):
        there.connection.run(["true"])
    assert not target.exists()
    there.mend()
    there.connection.reconnect()
    ticks = Ticks()
    there.connection.push(file, str(target), ticks)
    assert ticks[0] > 2 * BLOCK and sum(ticks) == 40 * BLOCK
    assert target.read_bytes() == file.read_bytes()


@pytest.mark.parametrize("there", ["adb", "ssh"], indirect=True)
def test_a_stream_that_was_cut_off_says_so(there):
    with there.connection.stream(["sh", "-c", "echo $$; exec sleep 100"]) as lines:
        pid = int(next(lines))
        there.cut()
        with pytest.raises(DeviceLost):
            next(lines)
    until(lambda: not is_running(pid))
    with pytest.raises(DeviceUnavailable, match="did not come back"):
        there.connection.reconnect(0.1)
    threading.Timer(0.5, there.mend).start()
    there.connection.reconnect(30)
    assert there.connection.run(["true"]).code == 0


def test_it_says_what_it_is(connection):
    device = connection.device
    assert device.name == connection.name and not device.problem and not device.emulated
    assert device.platform == f"linux-{ {'aarch64': 'arm64'}.get(os.uname().machine, os.uname().machine) }"
    assert device.cores >= 1 and device.memory_bytes > BLOCK and device.free_bytes and device.os
