"""The journal of a run: JSON lines with rising numbers, written as things happen, by the native runner or by a worker.

One line is one entry, appended whole; a torn last line is cut off when the run goes on. A process that takes up a
journal appends another `begin` and goes on after the last finished repetition. Times are nanoseconds of the device's
monotonic clock, `CLOCK_MONOTONIC`, of one boot: another `begin` may tell of another one.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import msgspec

from edge.core.errors import EdgeError, UsageError
from edge.core.files import cache_folder, full_disk_is_an_error

NAME = "journal.jsonl"


class Begin(msgspec.Struct, frozen=True, tag="begin", tag_field="type"):
    """A process takes the run up. plan: digest of all that decides the result; another one is another run.

    boot: the device's boot id, as clocks of two boots can't be compared. versions: of what computes.
    """

    seq: int
    at_ns: int
    plan: str
    engine: Literal["python", "runner"]
    pid: int
    boot: str
    versions: dict[str, str] = {}


class ParityChecked(msgspec.Struct, frozen=True, tag="parity", tag_field="type"):
    seq: int
    kl_divergence: float | None
    kl_divergence_limit: float | None
    top1_equal: bool
    relative_error: float | None = None
    relative_error_limit: float | None = None


class Span(msgspec.Struct, frozen=True, tag="phase", tag_field="type"):
    """A stretch that is over. name: load, warm-up, measured, idle before, idle after, wait (temperature), cool-down.

    Also every stretch that energy is told for: prefill, decode, call; `tokens` are those it read or made.
    """

    seq: int
    name: str
    start_ns: int
    end_ns: int
    tokens: int = 0


class Repeated(msgspec.Struct, frozen=True, tag="repetition", tag_field="type"):
    """A finished repetition. frequency_khz per core at its end; caps_khz the lowest cap of each core meanwhile.

    temperature_mc: of the hottest zone in 1/1000 °C when it began, null where nobody tells.
    """

    seq: int
    index: int
    turn: int
    start_ns: int
    prompt_tokens: int
    prefill_ns: int
    decode_ns: list[int]
    cpu_ns: int
    frequency_khz: list[int] = []
    caps_khz: list[int] = []
    encode_ns: int = 0
    throttled: bool = False
    temperature_mc: int | None = None


class Peak(msgspec.Struct, frozen=True, tag="peak", tag_field="type"):
    """VmHWM of the process that measured, or its like."""

    seq: int
    peak_bytes: int


class End(msgspec.Struct, frozen=True, tag="end", tag_field="type"):
    """The run is over. code: `ok`, or of the error: parity, model, library, context, disk, usage, engine."""

    seq: int
    at_ns: int
    code: str
    message: str = ""


Entry = Begin | ParityChecked | Span | Repeated | Peak | End
Kind = type[Begin] | type[ParityChecked] | type[Span] | type[Repeated] | type[Peak] | type[End]


@dataclass
class Attempt:
    """What one process wrote. offset_ns added to its times gives nanoseconds since the run's start.

    Between attempts of one boot the clock goes on; a restart of the device counts as no time, as nobody saw how long
    it took.
    """

    begin: Begin
    offset_ns: int
    entries: list[Entry] = field(default_factory=list)

    def since_start(self, at_ns: int) -> int:
        return at_ns + self.offset_ns

    @property
    def last_ns(self) -> int:
        """The latest time that it tells of."""
        return max((_time(entry) for entry in self.entries), default=self.begin.at_ns)


def run_folder(device: str, digest: str) -> Path:
    """Where the host keeps a run's journal, and what belongs to it, until its result was delivered."""
    return cache_folder() / "runs" / f"{re.sub(r'[^A-Za-z0-9.-]+', '_', device)}-{digest[:16]}"


def parse(data: bytes, name: str = NAME) -> tuple[list[Entry], int]:
    """The entries and how many bytes they take: a torn line at the end is left out.

    Raises `EdgeError` where an entry is damaged that others follow, or one is missing.
    """
    entries: list[Entry] = []
    taken = 0
    for line in data.splitlines(keepends=True):
        try:
            entry = msgspec.json.decode(line, type=Entry) if line.endswith(b"\n") else None
        except (msgspec.DecodeError, UnicodeDecodeError):
            entry = None
        if entry is None:
            break
        if entries and entry.seq != entries[-1].seq + 1:
            raise _damaged(name, f"entry {entry.seq} follows entry {entries[-1].seq}")
        entries.append(entry)
        taken += len(line)
    if data[taken:].count(b"\n") > 1:
        raise _damaged(name, f"line {len(entries) + 1} can't be read")
    return entries, taken


def read(path: Path) -> list[Entry]:
    """The whole entries of a journal, none where there is no file."""
    return parse(path.read_bytes(), str(path))[0] if path.exists() else []


def attempts(entries: Sequence[Entry]) -> list[Attempt]:
    """The entries by the process that wrote them, with its clock tied to the run's start."""
    found: list[Attempt] = []
    for entry in entries:
        if isinstance(entry, Begin):
            found.append(Attempt(entry, _offset(entry, found)))
        elif found:
            found[-1].entries.append(entry)
        else:
            raise _damaged(NAME, "it doesn't begin with its beginning")
    return found


def finished(entries: Sequence[Entry], turns: int = 1) -> list[list[Repeated]]:
    """The repetitions that came to their end, in order, each the list of its turns.

    One that was cut off was done again under its number: of the same turn the last counts.
    """
    found: dict[int, dict[int, Repeated]] = {}
    for entry in entries:
        if isinstance(entry, Repeated):
            found.setdefault(entry.index, {})[entry.turn] = entry
    whole = [of for _, of in sorted(found.items()) if all(turn in of for turn in range(turns))]
    return [[of[turn] for turn in range(turns)] for of in whole]


class Journal:
    """A journal that is open for writing: `entries` holds what is in the file."""

    def __init__(self, path: Path, file: int, entries: list[Entry], digest: str) -> None:
        self.path = path
        self.entries = entries
        self._file = file
        self._digest = digest

    def begin(self, versions: Mapping[str, str]) -> None:
        """This process takes the run up with a Python session. versions: of what computes."""
        fields = {"plan": self._digest, "engine": "python", "pid": os.getpid(), "boot": boot_id()}
        self.append(Begin, at_ns=time.monotonic_ns(), versions=dict(versions), **fields)

    def restart(self) -> None:
        """Forget all that was done."""
        os.truncate(self._file, 0)
        self.entries.clear()

    def append(self, kind: Kind, **fields: Any) -> Entry:
        """Write an entry with the next number; on return it is on the disk.

        Raises `EdgeError` (disk.full) where it doesn't fit: what was written before stays whole.
        """
        return self.append_all([(kind, fields)])[0]

    def append_all(self, several: Sequence[tuple[Kind, dict[str, Any]]]) -> list[Entry]:
        """Several entries, waiting for the disk once."""
        seq = self.entries[-1].seq + 1 if self.entries else 0
        entries: list[Entry] = [kind(seq=seq + i, **fields) for i, (kind, fields) in enumerate(several)]
        lines = b"".join(msgspec.json.encode(entry) + b"\n" for entry in entries)
        with full_disk_is_an_error(self.path):
            end = os.fstat(self._file).st_size
            try:
                if (written := os.write(self._file, lines)) < len(lines):
                    os.write(self._file, lines[written:])  # a full disk takes a part and says why at the rest
                os.fsync(self._file)
            except OSError:
                os.truncate(self._file, end)
                raise
        self.entries += entries
        return entries


@contextmanager
def taken_up(path: Path, digest: str) -> Iterator[Journal]:
    """A journal to go on with, or a new one; a torn last line is cut off.

    Raises `UsageError` for the journal of another plan, and `EdgeError` where another process is writing it or it is
    damaged.
    """
    with full_disk_is_an_error(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        file = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o644)
    try:
        _lock(file, path)
        entries, whole = parse(path.read_bytes(), str(path))
        os.truncate(file, whole)
        if entries and not (isinstance(entries[0], Begin) and entries[0].plan == digest):
            hint = "start anew with --fresh"
            raise UsageError("journal.other", f"{path} is the journal of another plan", hint)
        yield Journal(path, file, entries, digest)
    finally:
        os.close(file)


def _lock(file: int, path: Path) -> None:
    """Raise where somebody else writes this journal. The lock goes with the process."""
    try:
        import fcntl
    except ImportError:  # Windows: two at once are not told apart
        return
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        hint = "wait until that one is done, or end it"
        raise EdgeError("profile.running", f"this profile runs already: {path} is being written", hint) from error


def boot_id(root: Path = Path("/")) -> str:
    """What tells this boot of the machine from another; empty where nobody knows."""
    try:
        return (root / "proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""


def _offset(begin: Begin, before: Sequence[Attempt]) -> int:
    if not before:
        return -begin.at_ns
    last = before[-1]
    same_clock = begin.boot == last.begin.boot and begin.at_ns >= last.last_ns
    return last.offset_ns if same_clock else last.since_start(last.last_ns) - begin.at_ns


def _time(entry: Entry) -> int:
    """The latest time in an entry, 0 where it has none."""
    if isinstance(entry, Repeated):
        return entry.start_ns + entry.prefill_ns + sum(entry.decode_ns)
    return max((getattr(entry, name, 0) for name in ("at_ns", "end_ns")), default=0)


def _damaged(name: str, reason: str) -> EdgeError:
    return EdgeError("journal.damaged", f"{name} is damaged: {reason}", "start anew with --fresh")
