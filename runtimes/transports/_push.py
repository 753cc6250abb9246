"""A file brought to a device, whole or not at all; what an earlier try brought there is kept."""

from __future__ import annotations

import hashlib
import os
import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from edge.core.console import Ticker
from edge.core.errors import EdgeError
from edge.runtimes.transports import _scripts
from edge.runtimes.transports._remote import CHUNK

if TYPE_CHECKING:
    from hashlib import _Hash as Hash

    from edge.runtimes.transports._shell import ShellConnection

MARGIN = 1 << 20
"""Bytes left free beside the file: file systems need some for themselves."""
FLUSH_S = 300.0
"""Seconds for what is on its way when the last byte has gone from here: adb holds some 100 MB."""
SLOWEST_HASH = 20e6
"""Bytes per second that the slowest board hashes and reads back."""


def push(connection: ShellConnection, file: Path, remote: str, tick: Ticker | None = None) -> None:
    """Put a file at an absolute path there. See `Connection.push`.

    It grows as REMOTE.part and takes its name when its SHA-256 is right. An executable file stays one.
    """
    size = file.stat().st_size
    whole, part, free = _inspect(connection, remote)
    with file.open("rb") as source:
        if whole == size and _same(connection, source, remote, size):
            _tick(tick, size)
            return
        part, hasher = _kept(connection, source, remote, part, size)
        _check_room(connection, remote, size - part, free)
        _tick(tick, part)
        _send(connection, source, remote, hasher, tick)
    if _hash(connection, f"{remote}.part", size) != hasher.hexdigest():
        connection.script(_scripts.DROP, remote)
        message = f"{connection.name}: {remote} is not what was sent"
        raise EdgeError("device.corrupt", message, "its storage or the connection is damaged; try again")
    mode = "755" if os.access(file, os.X_OK) else "644"
    connection.script(_scripts.FINISH, remote, mode)


def free_bytes(df: str) -> int | None:
    """Room that is left, from a line of `df -Pk`."""
    found = re.search(r"\s(-?\d+)\s+(?:\d+%|-)\s", df)
    return max(int(found.group(1)), 0) * 1024 if found else None


def _inspect(connection: ShellConnection, remote: str) -> tuple[int, int, int | None]:
    whole, part, df = connection.script(_scripts.INSPECT, remote).decode(errors="replace").splitlines()
    return int(whole), int(part), free_bytes(df)


def _kept(connection: ShellConnection, source: BinaryIO, remote: str, part: int, size: int) -> tuple[int, Hash]:
    """How much of an earlier try can stay, all of it or nothing, and its hash; `source` stands behind it."""
    if 0 <= part <= size:
        hasher = _digest(source, part)
        if part == 0 or _hash(connection, f"{remote}.part", part) == hasher.hexdigest():
            return part, hasher
    if part >= 0:
        connection.script(_scripts.DROP, remote)
    return 0, _digest(source, 0)


def _check_room(connection: ShellConnection, remote: str, need: int, free: int | None) -> None:
    if free is not None and need + MARGIN > free:
        message = f"{connection.name}: {remote} needs {need / 1e6:.1f} MB more, {free / 1e6:.1f} MB are free there"
        raise EdgeError("device.full", message, "make room there, then run the same command again: it resumes")


def _send(connection: ShellConnection, source: BinaryIO, remote: str, hasher: Hash, tick: Ticker | None) -> None:
    """Append what is left of `source`, which also makes an empty file."""
    with connection.running(_scripts.FED, ["sh", "-c", _scripts.APPEND, "edge", remote]) as there:
        while block := source.read(CHUNK):
            there.feed(block)
            hasher.update(block)
            _tick(tick, len(block))
        there.finish(FLUSH_S)


def _tick(tick: Ticker | None, count: int) -> None:
    if tick is not None and count:
        tick(count)


def _digest(source: BinaryIO, count: int) -> Hash:
    """The hash of the first `count` bytes; `source` stands behind them."""
    source.seek(0)
    hasher = hashlib.sha256()
    while count > 0 and (block := source.read(min(CHUNK, count))):
        hasher.update(block)
        count -= len(block)
    return hasher


def _same(connection: ShellConnection, source: BinaryIO, remote: str, size: int) -> bool:
    """Whether a file there is this one. Both sides hash at once."""
    with ThreadPoolExecutor(1) as pool:
        theirs = pool.submit(_hash, connection, remote, size)
        return _digest(source, size).hexdigest() == theirs.result()


def _hash(connection: ShellConnection, remote: str, size: int) -> str:
    done = connection.script('sha256sum "$1"', remote, timeout_s=60 + size / SLOWEST_HASH)
    return done.decode(errors="replace").lstrip("\\").split(" ")[0]
