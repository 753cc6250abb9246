"""A profile by the Python session of a device's own edge: for what the native runner doesn't run."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory

import msgspec

from edge.core.bundle import MANIFEST, Bundle, open_bundle
from edge.core.console import progress
from edge.core.errors import DeviceUnavailable, EdgeError
from edge.core.files import read_json
from edge.core.measurement import Measurement
from edge.core.transport import Connection, DeviceLost
from edge.profiles import journal
from edge.profiles.deploy import RECONNECT_S, megabytes, persist
from edge.profiles.outcome import Outcome
from edge.profiles.plan import Plan, digest

POLL_S = 1.0
PYTHON = "EDGE_DEVICE_PYTHON"
MODULE = "edge.profiles.python_there"


def profile_in_python(connection: Connection, bundle: Bundle, plan: Plan, reason: str) -> Outcome:
    """Have the device's own `edge` measure. `reason`, why not the native runner, goes with the result.

    Raises `DeviceUnavailable` (device.engine) where no Python there has edge.
    """
    python = _python_with_edge(connection, reason)
    named = digest(plan, bundle.hash, connection.device.name, "python")
    there, local = f"{connection.folder}/runs/{named[:16]}", journal.run_folder(connection.device.name, named)
    local.mkdir(parents=True, exist_ok=True)
    models = _send(connection, bundle, plan, there)
    command = [python, "-m", MODULE, models, f"{there}/plan.json", f"{there}/result.json"]
    _wait_for(connection, command, f"{there}/log", bundle.manifest.name)
    measurement = _fetch(connection, there, local)
    persist(connection, lambda: connection.run(["rm", "-rf", there]))
    emulated = connection.device.emulated
    measurement = msgspec.structs.replace(measurement, engine_note=reason, emulated=emulated, bundle=str(bundle.path))
    problem = measurement.problem
    return Outcome(measurement, local, EdgeError("profile.there", problem, "") if problem else None)


def _python_with_edge(connection: Connection, reason: str) -> str:
    wanted = os.environ.get(PYTHON, "")
    for python in [wanted] if wanted else ["python3", f"{connection.folder}/venv/bin/python"]:
        if persist(connection, lambda p=python: connection.run([p, "-c", f"import {MODULE}"])).code == 0:
            return python
    message = f"{reason}, and no Python on {connection.device.name} has edge"
    hint = f"install edge-deploy there ({PYTHON} names its python), or export with --runtime onnx"
    raise DeviceUnavailable("device.engine", message, hint)


def _send(connection: Connection, bundle: Bundle, plan: Plan, there: str) -> str:
    """Bring the whole bundle and the plan; the bundle's folder there."""
    folder = f"{connection.folder}/bundles/{bundle.hash[:16]}"
    names = [*bundle.manifest.files, MANIFEST]
    size = sum((bundle.path / name).stat().st_size for name in names)
    with progress(f"send to {connection.device.name}", size / 1e6) as tick:
        for name in names:
            tell = megabytes(tick, name)
            persist(connection, lambda n=name, t=tell: connection.push(bundle.path / n, f"{folder}/{n}", t))
    with TemporaryDirectory() as here:
        file = Path(here) / "plan.json"
        file.write_bytes(msgspec.json.encode(plan))
        persist(connection, lambda: connection.push(file, f"{there}/plan.json"))
    return folder


def _wait_for(connection: Connection, command: list[str], log: str, name: str) -> None:
    """Until it has ended. It goes on while the connection is lost; started again, it goes on where it was."""
    with progress(f"profile {name} on {connection.device.name}", None) as tick:
        pid = persist(connection, lambda: connection.start(command, log=log))
        while True:
            try:
                if not connection.alive(pid):
                    return
                time.sleep(POLL_S)
                tick(0, "a Python session there")
            except DeviceLost:
                connection.reconnect(RECONNECT_S)


def _fetch(connection: Connection, there: str, local: Path) -> Measurement:
    result = local / "result.json"
    result.unlink(missing_ok=True)
    try:
        persist(connection, lambda: connection.pull(f"{there}/result.json", result))
    except EdgeError as error:
        if error.code != "device.missing":
            raise
        log = persist(connection, lambda: connection.run(["tail", "-n", "2", f"{there}/log"]))
        said = " ".join(log.stdout.decode(errors="replace").split())
        raise EdgeError("profile.there", f"edge on {connection.device.name} measured nothing: {said}", "") from error
    return read_json(result, Measurement)


def main(bundle: Path, plan: Path, result: Path) -> None:
    """On the device: measure and write the result, also of a run that failed."""
    from edge.profiles import local

    outcome = local.run(open_bundle(bundle, verify=False), msgspec.json.decode(plan.read_bytes(), type=Plan))
    outcome.deliver(result)


if __name__ == "__main__":
    try:
        main(*(Path(argument) for argument in sys.argv[1:4]))
    except EdgeError as error:
        sys.exit(str(error))
