"""A profile on this machine: a process of its own measures with the runtime's Python session, journalled."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import msgspec

from edge.core.bundle import Bundle
from edge.core.console import console, info
from edge.core.errors import DeviceUnavailable, EdgeError, GateFailed, UsageError
from edge.core.files import read_json
from edge.core.measurement import Measurement, MemorySample
from edge.profiles import journal
from edge.profiles.assemble import measurement_of
from edge.profiles.fingerprint import fingerprint
from edge.profiles.outcome import Outcome
from edge.profiles.plan import Plan, digest
from edge.profiles.protocol import Watched
from edge.profiles.worker import WATCHED, Failure, Request, environment

DEVICE = "cpu"
KINDS = {kind.exit_code: kind for kind in (EdgeError, UsageError, DeviceUnavailable, GateFailed)}


def run(bundle: Bundle, plan: Plan, *, fresh: bool = False) -> Outcome:
    """Measure on this machine, going on with what an earlier process has finished unless it is to be `fresh`.

    Raises the `EdgeError` of a run that didn't get as far as to begin.
    """
    named = digest(plan, bundle.hash, DEVICE, "python")
    folder = journal.run_folder(DEVICE, named)
    path = folder / journal.NAME
    if fresh:
        shutil.rmtree(folder, ignore_errors=True)
    error = None
    if _is_whole(path):
        info("This run was finished before; --fresh measures again")
    else:
        request = Request(str(bundle.path), plan, named, str(path), console.quiet)
        began = len(journal.attempts(_entries(path)))
        error = _ask(request)
        if error is not None and len(journal.attempts(_entries(path))) <= began:
            raise error
    return Outcome(_measurement(bundle, plan, path, error), folder, error)


def _is_whole(path: Path) -> bool:
    entries = _entries(path)
    return bool(entries) and isinstance(entries[-1], journal.End) and entries[-1].code == "ok"


def _entries(path: Path) -> list[journal.Entry]:
    """None of a journal that is damaged: the worker says so."""
    try:
        return journal.read(path)
    except EdgeError:
        return []


def _ask(request: Request) -> EdgeError | None:
    """Have a fresh process measure, which shows its progress on this one's stderr. Why it failed, if it did."""
    command = [sys.executable, "-m", "edge.profiles.worker"]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, env=environment()) as process:
        if process.stdin is None or process.stdout is None:
            raise EdgeError("profile.died", "the measured process can't be asked")
        process.stdin.write(msgspec.json.encode(request) + b"\n")
        process.stdin.flush()  # it stays open: the process ends with it
        answer = process.stdout.read()
    if answer:
        failure = msgspec.json.decode(answer, type=Failure)
        return KINDS.get(failure.exit_code, EdgeError)(failure.code, failure.message, failure.hint)
    if code := process.returncode:
        ended = f"was ended by signal {-code}" if code < 0 else f"ended with code {code}"
        hint = "signal 9 mostly means too little memory; the same command goes on where it stopped"
        return EdgeError("profile.died", f"the measured process {ended}", hint)
    return None


def _measurement(bundle: Bundle, plan: Plan, path: Path, error: EdgeError | None) -> Measurement:
    entries = journal.read(path)
    if error is not None:
        return measurement_of(bundle, plan, entries, device=fingerprint(), problem=str(error))
    return assembled(bundle, plan, entries, read_json(path.with_name(WATCHED), Watched))


def assembled(bundle: Bundle, plan: Plan, entries: Sequence[journal.Entry], watched: Watched) -> Measurement:
    """The measurement from a journal and what its last process saw beside it."""
    last = journal.attempts(entries)[-1]
    memory = [MemorySample(last.since_start(watched.start_ns + m.time_ns), m.resident_bytes) for m in watched.memory]
    more = {"energy": watched.energy, "operators": watched.operators, "memory": memory}
    return measurement_of(bundle, plan, entries, device=watched.device, **more)
