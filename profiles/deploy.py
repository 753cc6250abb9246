"""What a run needs on a device: the tools, ONNX Runtime's library, the bundle's model. Kept there for the next run."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from edge.core.bundle import Bundle
from edge.core.console import Ticker, progress
from edge.core.errors import DeviceUnavailable
from edge.core.files import sha256
from edge.core.target import Device
from edge.core.transport import Connection, DeviceLost
from edge.profiles.runner_files import model_files

RECONNECT_S = 120.0
TRIES = 5
KERNELS = "libedge_kernels.so"
ENGINE = "libonnxruntime.so"


@dataclass(frozen=True)
class Deployed:
    """Absolute paths on the device."""

    runner: str
    sampler: str
    onnxruntime: str
    kernels: str
    model: str


def native_engine(bundle: Bundle, device: Device) -> str:
    """Why there is no native runner for this bundle there; empty where there is one."""
    from edge.kernels.runner import PLATFORMS

    manifest = bundle.manifest
    if manifest.runtime != "onnx":
        return f"the native runner runs ONNX Runtime, not {manifest.runtime}"
    if manifest.task != "decoder":
        return f"the native runner runs decoders; this is a model of the task '{manifest.task}'"
    if device.platform not in PLATFORMS:
        return f"no native runner is built for {device.platform or 'a device of an unknown platform'}"
    return ""


def deploy(connection: Connection, bundle: Bundle, library: Path | None = None) -> Deployed:
    """Bring everything there that isn't there yet, with one progress bar over all bytes.

    library: ONNX Runtime's for the device, where the user has one. Raises `EdgeError` where something can't be built
    or had, the device is full, or stays away for `RECONNECT_S`.
    """
    from edge.kernels.runner import build
    from edge.runtimes._onnxruntime_library import library_for

    tools = build(connection.device.platform, _installed(connection.device))
    library = library_for(connection.device.platform, library)
    files = {"runner": tools.runner, "sampler": tools.sampler, KERNELS: tools.kernels, ENGINE: library}
    tool_folder = f"{connection.folder}/tools/{_digest(files.values())}"
    model_folder = f"{connection.folder}/bundles/{bundle.hash[:16]}"
    jobs = [(local, f"{tool_folder}/{name}") for name, local in files.items()]
    jobs += [(file, f"{model_folder}/{file.relative_to(bundle.path).as_posix()}") for file in model_files(bundle)]
    with progress(f"send to {connection.device.name}", sum(file.stat().st_size for file, _ in jobs) / 1e6) as tick:
        for file, remote in jobs:
            note = PurePosixPath(remote).name
            persist(connection, lambda f=file, r=remote, n=note: connection.push(f, r, megabytes(tick, n)))
    persist(connection, lambda: connection.run(["chmod", "755", f"{tool_folder}/runner", f"{tool_folder}/sampler"]))
    return Deployed(
        runner=f"{tool_folder}/runner",
        sampler=f"{tool_folder}/sampler",
        onnxruntime=f"{tool_folder}/{ENGINE}",
        kernels=f"{tool_folder}/{KERNELS}" if bundle.manifest.kernels == "edge" else "",
        model=f"{model_folder}/{bundle.manifest.artefact}",
    )


def _installed(device: Device) -> Path | None:
    """This machine has the kernels already."""
    if device.transport != "local":
        return None
    from edge.kernels.lib import ort_library_path

    return ort_library_path()


def persist(connection: Connection, action: Callable[[], Any]) -> Any:
    """Do it, again after a reconnect where the device was lost; what repeats it must not mind."""
    for attempt in range(TRIES):
        try:
            return action()
        except DeviceLost:
            if attempt == TRIES - 1:
                raise
            connection.reconnect(RECONNECT_S)
    raise DeviceUnavailable("device.lost", f"{connection.device.name} went away", "check its cable")


def megabytes(tick: Ticker, note: str) -> Ticker:
    """A ticker of bytes for one of megabytes."""
    return lambda count=1, _note=None: tick(count / 1e6, note)


def _digest(files: Any) -> str:
    return hashlib.sha256("".join(sha256(file) for file in files).encode()).hexdigest()[:16]
