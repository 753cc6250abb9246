"""edge doctor"""

from __future__ import annotations

import platform
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, requires, version

from edge.cli._output import Json, print_json, print_table


@dataclass(frozen=True)
class Check:
    """state: `ok`, `missing` (something won't work) or `optional` (something extra won't)."""

    name: str
    state: str
    found: str
    todo: str = ""


def command(json: Json = False) -> None:
    """Say what is installed, what is missing, and what to do about it.

    Exits with 1 when something needed is missing.
    """
    checks = list(_checks())
    if json:
        print_json(checks)
    else:
        marks = {"ok": "ok", "missing": "MISSING", "optional": "absent"}
        print_table(
            ("what", "state", "found", "what to do"), [(c.name, marks[c.state], c.found, c.todo) for c in checks]
        )
    if any(check.state == "missing" for check in checks):
        sys.exit(1)


def _checks() -> Iterator[Check]:
    yield Check("python", "ok", f"{platform.python_version()} on {platform.system()} {platform.machine()}")
    yield from _packages()
    yield from _kernels()
    yield _android()
    yield _energy()
    yield _disk()


def _packages() -> Iterator[Check]:
    """Every requirement of the installed distribution, against what is there."""
    from packaging.requirements import Requirement

    for line in requires("edge-deploy") or []:
        need = Requirement(line)
        if need.marker and not need.marker.evaluate({"extra": ""}):
            continue
        try:
            found = version(need.name)
        except PackageNotFoundError:
            yield Check(need.name, "missing", "not installed", f'pip install "{need.name}{need.specifier}"')
            continue
        fits = need.specifier.contains(found, prereleases=True)
        todo = "" if fits else f'pip install "{need.name}{need.specifier}"'
        yield Check(need.name, "ok" if fits else "missing", found, todo)


def _kernels() -> Iterator[Check]:
    from edge.core.errors import EdgeError
    from edge.kernels import lib

    try:
        isas = lib.isas()
        yield Check("kernels", "ok", f"version {lib.version()}, runs {', '.join(isas)}")
    except EdgeError as error:
        yield Check("kernels", "missing", error.message, error.hint)
        return
    yield Check("kernels in ONNX Runtime", "ok", f"built, for {lib.oldest_onnxruntime()} and later")
    yield Check("kernels in torch", "ok", "made when edge.kernels.torch_ops is imported")
    yield _executorch()


def _executorch() -> Check:
    """Compiles the operators if they aren't: some seconds, once for each ExecuTorch."""
    from edge.core.errors import EdgeError
    from edge.kernels import executorch_ops

    try:
        found = executorch_ops.executorch_version()
        executorch_ops.library()
        return Check("kernels in ExecuTorch", "ok", f"built, for {found}")
    except EdgeError as error:
        return Check("kernels in ExecuTorch", "optional", error.message, error.hint)


def _android() -> Check:
    from edge.core.errors import EdgeError
    from edge.kernels import toolchain

    try:
        return Check("arm64 compiler", "ok", toolchain.find_compiler("android-arm64").describe())
    except EdgeError as error:
        return Check("arm64 compiler", "optional", error.message, error.hint)


def _energy() -> Check:
    from edge.profiles.energy_meter import sources
    from edge.runtimes.probes.power.series import Source

    found = dict(sources())
    here = [one.describe() for one in found.values() if isinstance(one, Source)]
    return Check("energy", "ok" if here else "optional", "; ".join(here or map(str, found.values())))


def _disk() -> Check:
    from edge.core.files import cache_folder

    folder = cache_folder()
    parent = next(p for p in (folder, *folder.parents) if p.exists())
    free = shutil.disk_usage(parent).free
    todo = "" if free > 2e9 else "make room: the demo needs about 2 GB"
    return Check("free disk", "ok" if not todo else "missing", f"{free / 1e9:.1f} GB at {parent}", todo)
