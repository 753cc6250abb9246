"""Other tools' results as measurements. One file adds one kind: its name is listed, its content recognized."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Protocol

from edge.core.errors import UsageError
from edge.core.measurement import Energy, Measurement
from edge.core.measurement import Protocol as Conversation
from edge.core.plugins import IMPORTS

HEAD_BYTES = 4096
MOST_BYTES = 1 << 30


class Importer(Protocol):
    """A module of this package. DESCRIPTION: whose file it reads."""

    DESCRIPTION: str

    def recognizes(self, head: bytes) -> bool:
        """Whether a file that begins with these 4 kB, or is as short, is of this kind."""

    def read(self, path: Path, record: Path | None) -> list[Measurement]:
        """The measurements in a file. record: what says of which layer an operator is, for kinds that have that.

        Raises `EdgeError` for a damaged file.
        """


def read(path: Path, record: Path | None = None) -> list[Measurement]:
    """The measurements in a file of any kind. Raises `UsageError` for a file that none knows."""
    try:
        if path.stat().st_size > MOST_BYTES:
            raise UsageError("import.size", f"{path} is larger than {MOST_BYTES >> 30} GB", "profile a shorter run")
        with path.open("rb") as file:
            head = file.read(HEAD_BYTES)
    except OSError as error:
        raise UsageError("import.missing", f"can't read {path}: {error.strerror}", "check the path") from error
    for name in IMPORTS.names():
        importer: Importer = IMPORTS.load(name)
        if importer.recognizes(head):
            return importer.read(path, record)
    known = "; ".join(IMPORTS.load(name).DESCRIPTION for name in IMPORTS.names())
    raise UsageError("import.kind", f"{path} is of no kind that can be imported", f"these can: {known}")


def no_record(record: Path | None) -> None:
    """Raise where a record was given for a kind of file that has no use for one."""
    if record is not None:
        hint = "an ETRecord belongs to an ETDump: import that alone"
        raise UsageError("import.record", "--etrecord is of no use for this kind of file", hint)


def imported(path: Path, protocol: Conversation, note: str, **fields: Any) -> Measurement:
    """A measurement with what a file tells; what it can't tell is empty or 0, and the report leaves it out.

    note: which tool it is from, and what is missing.
    """
    empty: dict[str, Any] = {
        "bundle": path.name,
        "bundle_sha256": "",
        "name": path.stem,
        "kernels": "its own",
        "recipe": "",
        "stored_bytes": 0,
        "bits_per_weight": 0.0,
        "device": {},
        "load_ns": 0,
        "repetitions": [],
        "operators": [],
        "peak_bytes": 0,
        "memory": [],
        "phases": [],
        "energy": Energy("not_available", "the imported file tells none"),
    }
    return Measurement(protocol=protocol, engine="imported", engine_note=note, **{**empty, **fields})
