"""What every connection does the same way, given a way to run a POSIX shell command there, its streams carried."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from edge.core.console import Ticker
from edge.core.errors import DeviceUnavailable, EdgeError
from edge.core.target import Device
from edge.core.transport import Completed
from edge.runtimes.transports import _push, _scripts
from edge.runtimes.transports._facts import device_of
from edge.runtimes.transports._remote import Remote, refused


class ShellConnection:
    """An `edge.core.transport.Connection`. A transport says how a command line is carried, and how it comes back."""

    device: Device
    folder: str

    def __init__(self, name: str) -> None:
        self.name = name

    def _here(self, command: Sequence[str]) -> list[str]:
        """The local command that runs `command` there, stdin, stdout and stderr carried."""
        raise NotImplementedError

    def _come_back(self, timeout_s: float) -> None:
        """Try once to reach the device again; return early where it is there. Raises `DeviceUnavailable` if not."""
        raise NotImplementedError

    def close(self) -> None:
        """Let the connection go."""

    def look(self, folder: str = "", timeout_s: float = 15) -> None:
        """Find out what is there: sets `device` and `folder`."""
        facts = self.script(_scripts.FACTS, folder, timeout_s=timeout_s)
        self.device, self.folder = device_of(self.name, facts.decode(errors="replace"))

    def running(self, wrapper: str, command: Sequence[str]) -> Remote:
        """`command` in one of the wrappers `LEASHED` and `FED`."""
        return Remote(self.name, self._here(["sh", "-c", wrapper, "edge", *command]))

    def run(self, command: Sequence[str], *, timeout_s: float = 60, stdin: bytes = b"") -> Completed:
        with self.running(_scripts.FED if stdin else _scripts.LEASHED, command) as remote:
            return remote.completed(stdin, timeout_s)

    def script(self, text: str, *arguments: str, timeout_s: float = 60) -> bytes:
        """stdout of a shell script there. Raises where it fails."""
        done = self.run(["sh", "-c", text, "edge", *arguments], timeout_s=timeout_s)
        if done.code:
            raise refused(self.name, done.code, done.stderr)
        return done.stdout

    @contextmanager
    def stream(self, command: Sequence[str]) -> Iterator[Iterator[bytes]]:
        with self.running(_scripts.LEASHED, command) as remote:
            yield remote.lines()

    def start(self, command: Sequence[str], *, log: str) -> int:
        return int(self.script(_scripts.START, log, *command))

    def alive(self, pid: int) -> bool:
        return self.run(["sh", "-c", _scripts.ALIVE, "edge", str(pid)]).code == 0

    def kill(self, pid: int, *, grace_s: float = 5) -> None:
        self.script(_scripts.KILL, str(pid), "TERM")
        end = time.monotonic() + grace_s
        while self.alive(pid):
            if time.monotonic() > end:
                self.script(_scripts.KILL, str(pid), "KILL")
                return
            time.sleep(0.1)

    def push(self, file: Path, remote: str, tick: Ticker | None = None) -> None:
        _push.push(self, file, remote, tick)

    def pull(self, remote: str, file: Path, *, offset: int = 0) -> int:
        count = 0
        with self.running(_scripts.FED, ["tail", "-c", f"+{offset + 1}", remote]) as there, file.open("ab") as here:
            for block in there.blocks():
                here.write(block)
                count += len(block)
            there.finish()
        return count

    def reconnect(self, timeout_s: float = 60) -> None:
        end = time.monotonic() + timeout_s
        while True:
            try:
                self._come_back(max(end - time.monotonic(), 1))
                self.run(["true"], timeout_s=10)
                return
            except EdgeError as error:
                if time.monotonic() > end:
                    message = f"{self.name} did not come back in {timeout_s:.0f} s: {error.message}"
                    raise DeviceUnavailable("device.gone", message, error.hint) from error
            time.sleep(0.5)
