"""Boards and servers over OpenSSH's own client, so that ~/.ssh/config, agents, jump hosts and keys just work."""

from __future__ import annotations

import contextlib
import os
import re
import shlex
import shutil
import subprocess
import tempfile
import weakref
from collections.abc import Sequence
from pathlib import Path

from edge.core.errors import DeviceUnavailable, UsageError
from edge.core.files import cache_folder, write_text
from edge.core.target import Device
from edge.runtimes.transports._probe import in_parallel
from edge.runtimes.transports._shell import ShellConnection

CONFIG = "EDGE_SSH_CONFIG"
"""Names a configuration file for ssh to read in place of the user's own."""
ADDRESS = re.compile(r"(?:(?P<user>[\w.][\w.-]*)@)?(?P<host>\[[\da-fA-F:.%\w]+\]|[\w.][\w.-]*)(?::(?P<port>\d+))?")
# ssh asks nothing, forwards nothing, and notices within 15 s that a link is dead. A connection that nobody closed,
# because edge was killed, ends ten minutes after its last use.
OPTIONS = {
    "BatchMode": "yes",
    "ConnectTimeout": "10",
    "ServerAliveInterval": "5",
    "ServerAliveCountMax": "3",
    "ControlPersist": "600",
    "ClearAllForwardings": "yes",
    "ForwardAgent": "no",
    "ForwardX11": "no",
    "PermitLocalCommand": "no",
    "RemoteCommand": "none",
    "RequestTTY": "no",
    "LogLevel": "ERROR",
}


class SshConnection(ShellConnection):
    """One connection that all commands share, by a control socket of its own."""

    def __init__(self, address: str) -> None:
        super().__init__(f"ssh:{address}")
        self._to = destination(address)
        self._folder = tempfile.TemporaryDirectory(prefix="edge-")
        self._socket = Path(self._folder.name) / "ssh"
        self._end = weakref.finalize(self, _end, self._folder, self._socket, self._to)
        try:
            self._open()
            self.look()
        except BaseException:
            self.close()
            raise

    def _here(self, command: Sequence[str]) -> list[str]:
        # Where the shared connection is gone, ssh would make another one in silence; the proxy that fails stops it.
        alone = ["-oControlMaster=no", "-oProxyCommand=false"]
        return [*_ssh(self._socket), *alone, *self._to, shlex.join(command)]

    def _open(self) -> None:
        # stderr to a file: the part of ssh that stays in the background would keep a pipe open.
        with tempfile.TemporaryFile() as errors:
            command = [*_ssh(self._socket), "-M", "-N", "-f", *self._to]
            silent = subprocess.DEVNULL
            try:
                code = subprocess.run(
                    command, check=False, stdin=silent, stdout=silent, stderr=errors, timeout=30
                ).returncode
            except subprocess.TimeoutExpired:
                raise _unreachable(self.name, "no answer in 30 s") from None
            errors.seek(0)
            words = errors.read().decode(errors="replace").strip().splitlines()
        if code:
            raise _unreachable(self.name, words[-1] if words else f"ssh ended with {code}")

    def _come_back(self, timeout_s: float) -> None:
        _hang_up(self._socket, self._to)
        self._open()

    def close(self) -> None:
        self._end()


def connect(address: str) -> SshConnection:
    """`[USER@]HOST[:PORT]`, HOST as in ~/.ssh/config or an address, IPv6 in brackets."""
    return SshConnection(address)


def devices() -> list[Device]:
    """The hosts that were named to `edge devices` and answered."""
    return in_parallel(connect, remembered())


def remembered() -> list[str]:
    """Names of hosts, such as `ssh:nano@jetson`."""
    try:
        return _memory().read_text().split()
    except OSError:
        return []


def remember(names: Sequence[str]) -> None:
    """Keep these beside those known already, but for those that only another configuration file knows."""
    if names and CONFIG not in os.environ:
        _write(dict.fromkeys([*remembered(), *names]))


def forget(name: str) -> None:
    """Drop one. Raises `UsageError` where it isn't known."""
    known = remembered()
    if name not in known:
        raise UsageError("device.unknown", f"'{name}' is not remembered", f"known: {', '.join(known) or 'none'}")
    _write(dict.fromkeys(other for other in known if other != name))


def _memory() -> Path:
    return cache_folder() / "ssh-hosts"


def _write(names: dict[str, None]) -> None:
    write_text(_memory(), "".join(f"{name}\n" for name in names))


def _ssh(socket: Path) -> list[str]:
    program = shutil.which("ssh")
    if program is None:
        raise DeviceUnavailable("ssh.missing", "there is no ssh here", "install OpenSSH's client")
    config = os.environ.get(CONFIG)
    options = [f"-o{key}={value}" for key, value in OPTIONS.items()]
    return [program, *(["-F", config] if config else []), "-S", str(socket), *options]


def _hang_up(socket: Path, to: Sequence[str]) -> None:
    """End the shared connection, dead or alive."""
    if socket.exists():
        with contextlib.suppress(subprocess.TimeoutExpired):
            subprocess.run([*_ssh(socket), "-O", "exit", *to], check=False, capture_output=True, timeout=10)
        socket.unlink(missing_ok=True)


def _end(folder: tempfile.TemporaryDirectory[str], socket: Path, to: Sequence[str]) -> None:
    _hang_up(socket, to)
    folder.cleanup()


def destination(address: str) -> list[str]:
    found = ADDRESS.fullmatch(address)
    if not found:
        raise UsageError("device.address", f"'ssh:{address}' is not a host", "write ssh:[USER@]HOST[:PORT]")
    user, host, port = found["user"], found["host"].strip("[]"), found["port"]
    return [*(["-p", port] if port else []), *(["-l", user] if user else []), host]


def _unreachable(name: str, words: str) -> DeviceUnavailable:
    hint = next(
        (hint for sign, hint in _HINTS if sign in words), "check the name, the network and that sshd runs there"
    )
    return DeviceUnavailable("device.unreachable", f"can't reach {name}: {words}", hint)


_HINTS = (
    ("Permission denied", "edge asks for no password: put your key there with ssh-copy-id, or load it into ssh-agent"),
    ("Host key verification failed", "connect once by hand with ssh and check the host's key"),
    ("HOST IDENTIFICATION HAS CHANGED", "another machine answers; if that is right, remove the old key: ssh-keygen -R"),
    ("Bad configuration option", "your ssh is too old for its own configuration"),
)
