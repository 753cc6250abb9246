"""A command on a device, seen from here: the local client that carries it."""

from __future__ import annotations

import contextlib
import os
import select
import subprocess
import tempfile
from collections.abc import Iterator, Sequence

from edge.core.errors import EdgeError
from edge.core.transport import Completed, DeviceLost
from edge.runtimes.transports._scripts import ENDED

CHUNK = 1 << 20
STALL_S = 60.0
"""Seconds without a byte moving after which a transfer counts as broken: no client notices every dead link."""
GRACE_S = 3.0


class Remote:
    """One running client. Leaving the block ends it and, by its leash, what it runs there.

    stderr goes to a file: nobody has to read it for the program to go on.
    """

    def __init__(self, name: str, command: Sequence[str]) -> None:
        self.name = name
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 - closed by __exit__
        pipe = subprocess.PIPE
        self._process = subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=self._errors, bufsize=0)
        assert self._process.stdin is not None and self._process.stdout is not None
        self._stdin, self._stdout = self._process.stdin, self._process.stdout

    def __enter__(self) -> Remote:
        return self

    def __exit__(self, *_: object) -> None:
        self._stdout.close()
        self._close_stdin()
        try:
            self._process.wait(GRACE_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._errors.close()

    def completed(self, stdin: bytes, timeout_s: float) -> Completed:
        """Wait for its end. With stdin the program gets that; without, stdin stays open as its leash."""
        if not stdin:
            self._process.stdin = None  # communicate() would close it
        try:
            stdout, _ = self._process.communicate(stdin or None, timeout_s)
        except subprocess.TimeoutExpired:
            raise self._late(timeout_s) from None
        code, stderr = self._end()
        return Completed(code, stdout, stderr)

    def blocks(self) -> Iterator[bytes]:
        """What it writes on stdout, as it comes. Raises `DeviceLost` where nothing comes for `STALL_S`."""
        while True:
            if not select.select([self._stdout], [], [], STALL_S)[0]:
                raise self.lost(f"nothing came for {STALL_S:.0f} s")
            block = self._stdout.read(CHUNK)
            if not block:
                return
            yield block

    def lines(self) -> Iterator[bytes]:
        """Lines without their ends, as long as it runs; an unfinished one at a broken connection is dropped."""
        rest = b""
        while block := self._stdout.read(1 << 16):
            *lines, rest = (rest + block).split(b"\n")
            yield from lines
        self.finish(None)
        if rest:
            yield rest

    def feed(self, block: bytes) -> None:
        """Write to its stdin. Raises `DeviceLost` where it takes nothing for `STALL_S`, or is gone."""
        os.set_blocking(self._stdin.fileno(), False)
        left = memoryview(block)
        while left:
            if not select.select([], [self._stdin], [], STALL_S)[1]:
                raise self.lost(f"nothing went for {STALL_S:.0f} s")
            try:
                left = left[self._stdin.write(left) or 0 :]
            except BrokenPipeError:
                self.finish(GRACE_S)
                raise self.lost("it stopped reading") from None

    def finish(self, timeout_s: float | None = STALL_S) -> None:
        """Wait for its end, nothing more to come on stdin. Raises where it failed."""
        if timeout_s is not None:
            self._close_stdin()
        try:
            self._process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            raise self.lost(f"no end after {timeout_s:.0f} s") from None
        code, stderr = self._end()
        if code:
            raise refused(self.name, code, stderr)

    def lost(self, why: str = "") -> DeviceLost:
        """The error that says so, with the client's own last words."""
        self._errors.seek(0)
        words = self._errors.read().decode(errors="replace").strip().splitlines()
        heard = words and not words[-1].startswith("kex_exchange")  # which is only our way to stop ssh, see ssh.py
        reason = why or (words[-1] if heard else "the connection broke")
        hint = "see `edge devices`; the same command resumes"
        return DeviceLost("device.lost", f"{self.name} is gone: {reason}", hint)

    def _end(self) -> tuple[int, bytes]:
        """Exit code and stderr of the program, as the wrapper there tells them."""
        self._process.wait()
        self._errors.seek(0)
        stderr, found, code = self._errors.read().rpartition(ENDED)
        if not found or not code.strip().isdigit():
            raise self.lost()
        return int(code), stderr

    def _late(self, timeout_s: float) -> EdgeError:
        """A program that ends when its leash is let go was only slow; else nobody is there any more."""
        self._close_stdin()
        try:
            self._process.communicate(timeout=GRACE_S)
            self._end()
        except (subprocess.TimeoutExpired, DeviceLost, ValueError):
            return self.lost(f"no answer in {timeout_s:g} s")
        hint = "the device may be busy; try again"
        return EdgeError("device.timeout", f"{self.name}: a command took longer than {timeout_s:g} s", hint)

    def _close_stdin(self) -> None:
        with contextlib.suppress(BrokenPipeError):
            self._stdin.close()


def refused(name: str, code: int, stderr: bytes) -> EdgeError:
    """What a device's own words mean."""
    text = stderr.decode(errors="replace").strip()
    last = text.splitlines()[-1] if text else f"exit code {code}"
    for words, kind, hint in _REASONS:
        if words in text:
            return EdgeError(kind, f"{name}: {last}", hint)
    return EdgeError("device.failed", f"{name}: {last}", "run the command there by hand to see more")


_REASONS = (
    ("No space left", "device.full", "make room there, then run the same command again: it resumes"),
    ("Disk quota exceeded", "device.full", "make room there, then run the same command again: it resumes"),
    ("Permission denied", "device.denied", "edge must be allowed to write to and run from its folder there"),
    ("Read-only file system", "device.denied", "edge must be allowed to write to and run from its folder there"),
    ("No such file", "device.missing", "it isn't there (any more)"),
    ("not found", "device.missing", "the program isn't there"),
)
