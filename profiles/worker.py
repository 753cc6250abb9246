"""The process that is measured. It takes a request on stdin, and says on stdout why it failed, if it did.

What it measures is in its journal and in the file beside it. It ends when its stdin does: whoever asked is gone.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path

import msgspec

from edge.core.bundle import Bundle, open_bundle
from edge.core.console import info, set_verbosity
from edge.core.errors import EdgeError, UsageError
from edge.core.files import full_disk_is_an_error, write_json
from edge.core.plugins import RUNTIMES
from edge.profiles.journal import End, Journal, finished, taken_up
from edge.profiles.plan import Plan, turns_of
from edge.profiles.protocol import measure

WATCHED = "watched.json"
CODES = {"profile.parity": "parity", "disk.full": "disk", "disk.denied": "disk", "profile.context": "context"}
"""What an error is called in the journal's end; others are `usage` or the engine's."""


class Request(msgspec.Struct, frozen=True):
    """journal: where it lies; digest: of the run that it must be of."""

    bundle: str
    plan: Plan
    digest: str
    journal: str
    quiet: bool = False


class Failure(msgspec.Struct, frozen=True):
    """An `EdgeError` on its way to another process."""

    code: str
    message: str
    hint: str
    exit_code: int


def main() -> None:
    request = msgspec.json.decode(sys.stdin.buffer.readline(), type=Request)
    answers = os.dup(1)
    os.dup2(2, 1)  # engines print as they like
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # whoever asked hears it too, and goes
    threading.Thread(target=_end_with_stdin, daemon=True).start()
    set_verbosity(-1 if request.quiet else 0)
    try:
        _run(request)
    except EdgeError as error:
        failure = Failure(error.code, error.message, error.hint, error.exit_code)
        os.write(answers, msgspec.json.encode(failure))


def _end_with_stdin() -> None:
    os.read(0, 1)
    os._exit(1)


def _run(request: Request) -> None:
    path = Path(request.journal)
    bundle = open_bundle(Path(request.bundle), verify=False)  # whoever asked has verified it
    _stay_on(request.plan.cores)
    runtime = RUNTIMES.load(bundle.manifest.runtime)
    versions = runtime.versions()  # imports the engine: its load time is not the model's
    with taken_up(path, request.digest) as log:
        _go_on(log, request.plan, versions)
        try:
            drop_from_page_cache(bundle)
            watched = measure(bundle, lambda options: runtime.open(bundle, options), request.plan, log)
            with full_disk_is_an_error(path):
                write_json(path.with_name(WATCHED), watched)
            log.append(End, at_ns=time.monotonic_ns(), code="ok")
        except EdgeError as error:
            with contextlib.suppress(EdgeError):  # a full disk has no room for this either
                kind = "usage" if isinstance(error, UsageError) else "engine"
                code = CODES.get(error.code, kind)
                log.append(End, at_ns=time.monotonic_ns(), code=code, message=str(error))
            raise


def _go_on(log: Journal, plan: Plan, versions: dict[str, str]) -> None:
    """Take the run up, or begin anew what can't be."""
    done = finished(log.entries, len(turns_of(plan)))
    began = log.entries[0] if log.entries else None
    if began is not None and getattr(began, "versions", None) != versions:
        info("Starting anew: what was there before was measured with another version of the engine")
        log.restart()
    elif done and plan.mode == "sustained":
        info("Starting anew: meanwhile the device has cooled, so a sustained run can't be taken up")
        log.restart()
    elif done:
        info(f"Taking up a run that was cut off after {len(done)} repetitions; --fresh starts anew")
    log.begin(versions)


def _stay_on(cores: Sequence[int]) -> None:
    """Keep this process, and the threads that it will have, on these cores."""
    if not cores:
        return
    if not hasattr(os, "sched_setaffinity"):
        raise UsageError("profile.cores", "a process can't be kept on cores here", "leave --cores away")
    allowed = sorted(os.sched_getaffinity(0))
    if missing := [core for core in cores if core not in allowed]:
        hint = f"there are {', '.join(map(str, allowed))}"
        raise UsageError("profile.cores", f"no core {missing[0]} for this process", hint)
    os.sched_setaffinity(0, cores)


def drop_from_page_cache(bundle: Bundle) -> None:
    """Ask the kernel to forget the bundle's files, as after a reboot. It may decline; loading is then warm."""
    if not hasattr(os, "posix_fadvise"):
        return
    for name in bundle.manifest.files:
        with (bundle.path / name).open("rb") as file:
            os.fsync(file.fileno())  # pages that are not on disk yet would stay
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def environment() -> dict[str, str]:
    """This environment for a process of its own, with the folder that `edge` was imported from first on the path."""
    own = str(Path(sys.modules["edge"].__file__ or ".").resolve().parents[1])
    paths = [own, *filter(None, [os.environ.get("PYTHONPATH")])]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}


if __name__ == "__main__":
    main()
