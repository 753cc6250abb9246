"""Files that are whole or absent: hashes, atomic folders, checked paths."""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from edge.core.errors import EdgeError, UsageError

SCHEMA = 1
T = TypeVar("T")


def cache_folder() -> Path:
    """Where what was fetched or built is kept between runs: $EDGE_CACHE, else the user's cache folder."""
    base = os.environ.get("EDGE_CACHE")
    return Path(base) if base else Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "edge"


def sha256(path: Path) -> str:
    """Hex digest of a file's bytes."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def refuse_existing(path: Path, *, force: bool) -> None:
    """Raise unless `path` is free, empty, or may be replaced."""
    if path.exists() and not force and not (path.is_dir() and not any(path.iterdir())):
        raise UsageError(
            "output.exists", f"{path} exists already", "name another folder, or pass --force to replace it"
        )


@contextmanager
def atomic_folder(final: Path, *, force: bool = False, resume: bool = False) -> Iterator[Path]:
    """A folder under a temporary name that takes its final name only when the block ends well.

    With `resume`, a partial folder of an earlier, killed run is handed out again; otherwise it is emptied first. On an
    error the partial folder stays for a resuming run and goes otherwise.
    """
    refuse_existing(final, force=force)
    partial = final.with_name(f".{final.name}.partial")
    if partial.exists() and not resume:
        shutil.rmtree(partial)
    with full_disk_is_an_error(final):
        partial.mkdir(parents=True, exist_ok=True)
        try:
            yield partial
        except BaseException:
            if not resume:
                shutil.rmtree(partial, ignore_errors=True)
            raise
        if final.exists():
            shutil.rmtree(final)
        os.replace(partial, final)


@contextmanager
def full_disk_is_an_error(path: Path) -> Iterator[None]:
    """Turn "no space left" and the like into an `EdgeError` that names the folder."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            free = "run again after making room: finished work is kept where the command can resume"
            raise EdgeError("disk.full", f"no space left while writing {path}", free) from error
        if error.errno in (errno.EACCES, errno.EROFS):
            raise EdgeError(
                "disk.denied", f"can't write to {path}: {error.strerror}", "name a folder you own"
            ) from error
        raise


def write_atomic(path: Path, data: bytes) -> None:
    """Replace a file's content in one step."""
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_bytes(data)
    os.replace(temporary, path)


def write_text(path: Path, text: str) -> None:
    """Write a file for people, with its folder; a disk that is full or closed to us is an `EdgeError`."""
    with full_disk_is_an_error(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(path, text.encode("utf-8", "replace"))


def write_json(path: Path, value: Any) -> None:
    """A msgspec value as indented JSON with a final newline, byte for byte the same for the same value."""
    write_atomic(path, msgspec.json.format(msgspec.json.encode(value, order="sorted"), indent=2) + b"\n")


def read_json(path: Path, type_: type[T]) -> T:
    """Decode a file that carries `schema: 1`; refuse a newer schema, a wrong type, an unreadable file."""
    try:
        return decode_json(path.read_bytes(), type_, path)
    except FileNotFoundError as error:
        raise EdgeError("file.missing", f"{path} is missing", "check the path, or make the folder again") from error


def decode_json(raw: bytes | msgspec.Raw, type_: type[T], path: Path) -> T:
    """The same of a part of the file `path`."""
    try:
        schema = msgspec.json.decode(raw, type=_Versioned).schema
        if schema > SCHEMA:
            hint = "upgrade edge, or write the file again with this version"
            raise EdgeError("file.newer", f"{path} has schema {schema}; this edge reads up to {SCHEMA}", hint)
        return msgspec.json.decode(raw, type=type_)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise EdgeError("file.corrupt", f"{path}: {error}", "the file is damaged or of another kind") from error


class _Versioned(msgspec.Struct):
    schema: int
