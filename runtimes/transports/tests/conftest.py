"""Connections of every kind to this machine, each with a way to break it."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import pytest

from edge.runtimes.transports import adb, local, ssh
from edge.runtimes.transports._shell import ShellConnection

SSHD = shutil.which("sshd", path=f"{os.environ['PATH']}:/usr/sbin:/usr/local/sbin")
SERIAL = "8ADX0QUH3"
# adb with this machine as its phone. What `adb devices` calls it is in `state`; who runs a command is in `running`.
FAKE_ADB = """#!/bin/sh
folder=$(dirname "$0")
state=$(cat "$folder/state")
[ "$1" != devices ] || { printf '* daemon started\\nList of devices attached\\n8ADX0QUH3\\t%s\\n' "$state"; exit; }
[ "$1" = -s ] && [ "$2" = 8ADX0QUH3 ] || exit 1
[ "$state" = device ] || { echo "adb: device '$2' not found" >&2; exit 1; }
[ "$3" != features ] || { echo 'shell_v2 cmd'; exit; }
for last; do :; done
echo $$ >>"$folder/running"
exec setsid sh -c "$last"
"""


class There(NamedTuple):
    """cut: breaks all that is going on and keeps it broken; mend: undoes that. None where nothing can break."""

    connection: ShellConnection
    cut: Callable[[], None] | None = None
    mend: Callable[[], None] | None = None


class BusyboxConnection(local.LocalConnection):
    """A board with nothing but busybox."""

    def __init__(self, tools: Path) -> None:
        self._tools = tools
        super().__init__()

    def _here(self, command: Sequence[str]) -> list[str]:
        return ["env", "-i", f"PATH={self._tools}", str(self._tools / command[0]), *command[1:]]


@pytest.fixture(params=["local", "busybox", "adb", "ssh"])
def there(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[There]:
    monkeypatch.setenv("EDGE_CACHE", str(tmp_path / "cache"))
    made: There = request.getfixturevalue(f"{request.param}_there")
    yield made
    made.connection.close()


@pytest.fixture
def local_there() -> There:
    return There(local.connect())


@pytest.fixture
def busybox_there(tmp_path: Path) -> There:
    busybox = shutil.which("busybox")
    if busybox is None:
        pytest.skip("there is no busybox here")
    tools = tmp_path / "tools"
    tools.mkdir()
    subprocess.run([busybox, "--install", "-s", tools], check=True)
    return There(BusyboxConnection(tools))


@pytest.fixture
def fake_adb(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder with an adb of ours, first on PATH."""
    folder = tmp_path / "adb"
    folder.mkdir()
    (folder / "adb").write_text(FAKE_ADB)
    (folder / "adb").chmod(0o755)
    (folder / "state").write_text("device")
    (folder / "running").touch()
    monkeypatch.setattr(adb, "SDKS", ())
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    monkeypatch.setenv("ANDROID_ADB_SERVER_PORT", str(a_free_port()))
    return folder


@pytest.fixture
def adb_there(fake_adb: Path) -> There:
    def cut() -> None:
        (fake_adb / "state").write_text("offline")
        for pid in (fake_adb / "running").read_text().split():
            end(-int(pid))
        (fake_adb / "running").write_text("")

    def mend() -> None:
        (fake_adb / "state").write_text("device")

    return There(adb.connect(SERIAL), cut, mend)


class Sshd:
    """A server on loopback with throw-away keys; `host` is its name for `ssh -F config`."""

    host = "board"

    def __init__(self, folder: Path) -> None:
        self.config = folder / "config"
        self._folder = folder
        self._port = a_free_port()
        for key in ("host", "key"):
            subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", folder / key], check=True)
        self.config.write_text(
            f"Host {self.host}\n HostName 127.0.0.1\n Port {self._port}\n IdentityFile {folder}/key\n"
            f" IdentitiesOnly yes\n UserKnownHostsFile {folder}/known\n StrictHostKeyChecking accept-new\n"
        )
        self.start()

    def start(self) -> None:
        assert SSHD
        if os.getuid() == 0:
            Path("/run/sshd").mkdir(exist_ok=True)
        options = ["UsePAM=no", "StrictModes=no", "PidFile=none", "ListenAddress=127.0.0.1"]
        options += [f"HostKey={self._folder}/host", f"AuthorizedKeysFile={self._folder}/key.pub"]
        command = [SSHD, "-D", "-e", "-f", "/dev/null", "-p", str(self._port), *(f"-o{option}" for option in options)]
        self._process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
        deadline = time.monotonic() + 10
        while socket.socket().connect_ex(("127.0.0.1", self._port)):
            assert time.monotonic() < deadline, "sshd does not listen"
            time.sleep(0.05)

    def stop(self) -> None:
        """End the server and every connection to it."""
        children = Path(f"/proc/{self._process.pid}/task/{self._process.pid}/children").read_text().split()
        self._process.kill()
        self._process.wait()
        for pid in children:
            end(int(pid))


@pytest.fixture(scope="session")
def sshd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sshd]:
    if SSHD is None or shutil.which("ssh") is None:
        pytest.skip("there is no sshd here: apt-get install openssh-server")
    server = Sshd(tmp_path_factory.mktemp("sshd"))
    yield server
    server.stop()


@pytest.fixture
def ssh_there(sshd: Sshd, monkeypatch: pytest.MonkeyPatch) -> There:
    monkeypatch.setenv("EDGE_SSH_CONFIG", str(sshd.config))
    return There(ssh.connect(sshd.host), sshd.stop, sshd.start)


def a_free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@pytest.fixture
def free_port() -> int:
    return a_free_port()


def end(pid: int) -> None:
    """Kill a process, or by a negative number its group, if it is still there."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)
