"""How a device is reached: run a program there, and move files there and back."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import NamedTuple, Protocol

from edge.core.console import Ticker
from edge.core.errors import DeviceUnavailable
from edge.core.target import Device


class DeviceLost(DeviceUnavailable):
    """The connection broke, or the device went away, while something was going on. It may come back."""


class Completed(NamedTuple):
    """A program that has ended on a device."""

    code: int
    stdout: bytes
    stderr: bytes


class Connection(Protocol):
    """A device that can be used. Paths on it are absolute and POSIX; commands are lists of arguments.

    Every call raises `DeviceLost` where the connection breaks, and `EdgeError` (device.full, device.denied ...) where
    the device refuses. Nothing is retried in silence: whoever calls decides, by `reconnect`.
    """

    device: Device
    folder: str
    """Where edge may write there."""

    def run(self, command: Sequence[str], *, timeout_s: float = 60, stdin: bytes = b"") -> Completed:
        """Run a program until it ends. Its exit code is in the result; only a broken connection raises."""

    def stream(self, command: Sequence[str]) -> AbstractContextManager[Iterator[bytes]]:
        """The lines that a program writes on stdout, as they come. Leaving the block ends the program."""

    def start(self, command: Sequence[str], *, log: str) -> int:
        """Start a program that outlives the connection, its output in the file `log`. Returns its process id there."""

    def alive(self, pid: int) -> bool:
        """Whether a process is running there."""

    def kill(self, pid: int, *, grace_s: float = 5) -> None:
        """End what `start` started, with its children: SIGTERM, after `grace_s` SIGKILL."""

    def push(self, file: Path, remote: str, tick: Ticker | None = None) -> None:
        """Put a file there, its folders made, held against its SHA-256; what an earlier try brought there is kept.

        `tick` hears bytes. A file that is there already, whole, isn't sent again.
        """

    def pull(self, remote: str, file: Path, *, offset: int = 0) -> int:
        """Append what follows `offset` in a remote file to a local one; the number of bytes that came."""

    def reconnect(self, timeout_s: float = 60) -> None:
        """Wait until the device can be used again. Raises `DeviceUnavailable` after `timeout_s`."""

    def close(self) -> None: ...


class Transport(Protocol):
    """A module of `edge.runtimes.transports`: `local`, `adb`, `ssh`."""

    def devices(self) -> list[Device]:
        """What can be seen now without being told of it, also what can't be used, each with its `problem`."""

    def connect(self, address: str) -> Connection:
        """The device with this address: what follows `adb:` or `ssh:` in its name. Raises `DeviceUnavailable`."""
