"""The process that is measured: `profile` starts it with a request file and reads back a result file."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import msgspec

from edge.core.bundle import Bundle, open_bundle
from edge.core.console import console, set_verbosity
from edge.core.errors import EdgeError, UsageError
from edge.core.files import SCHEMA, read_json, write_json
from edge.core.measurement import Measurement
from edge.core.plugins import RUNTIMES
from edge.profiles.answering import measurable
from edge.profiles.plan import Plan
from edge.profiles.protocol import measure


class Request(msgspec.Struct, frozen=True):
    bundle: str
    plan: Plan
    quiet: bool
    schema: int = SCHEMA


class Failure(msgspec.Struct, frozen=True):
    code: str
    message: str
    hint: str
    usage: bool


class Result(msgspec.Struct, frozen=True):
    measurement: Measurement | None = None
    failure: Failure | None = None
    schema: int = SCHEMA


def run_apart(bundle: Bundle, plan: Plan) -> Measurement:
    """Measure `bundle` in a fresh process, which shows its progress on this one's stderr."""
    with tempfile.TemporaryDirectory() as folder:
        request, result = Path(folder) / "request.json", Path(folder) / "result.json"
        write_json(request, Request(str(bundle.path), plan, console.quiet))
        command = [sys.executable, "-m", "edge.profiles.worker", str(request), str(result)]
        code = subprocess.run(command, stdout=subprocess.DEVNULL, env=environment(), check=False).returncode
        if not result.exists():
            ended = f"was ended by signal {-code}" if code < 0 else f"ended with code {code}"
            hint = "signal 9 mostly means too little memory; try a smaller model or --threads 1"
            raise EdgeError("profile.died", f"the measured process {ended}", hint)
        outcome = read_json(result, Result)
    if outcome.failure is not None:
        kind = UsageError if outcome.failure.usage else EdgeError
        raise kind(outcome.failure.code, outcome.failure.message, outcome.failure.hint)
    if outcome.measurement is None:
        raise EdgeError("profile.empty", "the measured process returned nothing", "profile the bundle again")
    return outcome.measurement


def main(request_path: Path, result_path: Path) -> None:
    request = read_json(request_path, Request)
    set_verbosity(-1 if request.quiet else 0)
    try:
        bundle = open_bundle(Path(request.bundle), verify=False)  # whoever asked has verified it
        runtime = RUNTIMES.load(bundle.manifest.runtime)
        runtime.versions()  # imports the engine: its load time is not the model's
        drop_from_page_cache(bundle)
        measurement = measure(bundle, lambda options: measurable(runtime.open(bundle, options), bundle), request.plan)
        write_json(result_path, Result(measurement))
    except EdgeError as error:
        failure = Failure(error.code, error.message, error.hint, isinstance(error, UsageError))
        write_json(result_path, Result(failure=failure))


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
    main(Path(sys.argv[1]), Path(sys.argv[2]))
