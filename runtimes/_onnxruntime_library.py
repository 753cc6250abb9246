"""ONNX Runtime's shared library for a device, which the native runner loads.

For this machine and for Linux on arm64 it is the one inside the wheel on PyPI, of the version that is installed here.
For Android there is no wheel: `EDGE_ONNXRUNTIME_ANDROID` names the official archive (.aar) or a library out of it; else
an archive of version 1.29 is taken from a package on npm that carries it, held against a pinned hash.
"""

from __future__ import annotations

import hashlib
import os
import platform as this_machine
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Callable, Iterable
from importlib import metadata
from pathlib import Path
from typing import IO

from edge.core.console import info
from edge.core.errors import EdgeError, UsageError, nearest
from edge.core.files import cache_folder, full_disk_is_an_error, sha256

ANDROID = "EDGE_ONNXRUNTIME_ANDROID"
OLDEST = "1.24"
"""The first version that takes edge's operators: older ones end the process at an optional input that isn't given."""
LIBRARY = "libonnxruntime.so"
MACHINES = {"linux-x86_64": "x86_64", "linux-arm64": "aarch64"}
ABIS = {"android-arm64": "arm64-v8a", "android-x86_64": "x86_64"}
NPM_PACKAGE, NPM_MEMBER = "com.github.asus4.onnxruntime@0.4.9", "package/Plugins/Android/onnxruntime.aar"
NPM_VERSION, NPM_SHA256 = "1.29.0", "98cddbac92640b4a6af72a03c42e0491851f366d3da66bbaeb5dd66310946cf2"
HOW_ANDROID = (
    f"set {ANDROID} to the file onnxruntime-android-VERSION.aar of Maven Central "
    f"(com.microsoft.onnxruntime:onnxruntime-android, {OLDEST} or later), or install npm and be online"
)


def library_for(platform: str, chosen: Path | None = None) -> Path:
    """libonnxruntime.so for `platform`, one of `edge.kernels.runner.PLATFORMS`; what was fetched stays in the cache.

    chosen: a library or archive of the user's own for it. Raises `UsageError` for an unknown platform, and `EdgeError`
    (engine.library: there is none, or it isn't for this platform; disk.full) with what to do.
    """
    if platform not in MACHINES and platform not in ABIS:
        hint = nearest(platform, [*MACHINES, *ABIS])
        raise UsageError("engine.platform", f"there is no ONNX Runtime for '{platform}'", hint)
    if chosen is None and platform in ABIS and (named := os.environ.get(ANDROID)):
        chosen = Path(named)
    if chosen is not None:
        return _checked(_of_file(chosen, platform), platform)
    if platform in ABIS:
        return _checked(_from_npm(platform), platform)
    if platform == f"linux-{this_machine.machine()}".replace("aarch64", "arm64") and sys.platform == "linux":
        return _installed()
    return _checked(_from_wheel(platform), platform)


def version_for(platform: str) -> str:
    """The version that `library_for` brings where the user names none."""
    return NPM_VERSION if platform in ABIS else metadata.version("onnxruntime")


def _installed() -> Path:
    """Found without importing it, which takes a while."""
    files = metadata.files("onnxruntime") or []
    for file in files:
        if _is_library(str(file)):
            return Path(str(file.locate()))
    hint = "pip install --force-reinstall onnxruntime"
    raise EdgeError("engine.library", f"the installed onnxruntime has no {LIBRARY}", hint)


def _from_wheel(platform: str) -> Path:
    version, machine = metadata.version("onnxruntime"), MACHINES[platform]
    kept = cache_folder() / f"onnxruntime-{version}-{platform}" / LIBRARY
    if kept.is_file():
        return kept
    info(f"Fetching ONNX Runtime {version} for {platform} from its wheel (22 MB)")
    kept.parent.mkdir(parents=True, exist_ok=True)
    with full_disk_is_an_error(kept), tempfile.TemporaryDirectory(dir=kept.parent.parent) as folder:
        pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:"]
        tags = [f"--platform=manylinux_2_{glibc}_{machine}" for glibc in (17, 27, 28, 34)]
        done = _run([*pip, *tags, "-d", folder, f"onnxruntime=={version}"])
        wheels = list(Path(folder).glob("*.whl"))
        if done.returncode or not wheels:
            hint = "check the network and that pip is installed, or give a library of your own"
            raise EdgeError("engine.library", f"can't fetch ONNX Runtime for {platform}: {_reason(done)}", hint)
        _unzip(wheels[0], _is_library, kept)
    return kept


def _from_npm(platform: str) -> Path:
    kept = cache_folder() / f"onnxruntime-{NPM_VERSION}-{platform}" / LIBRARY
    if kept.is_file():
        return kept
    npm = shutil.which("npm")
    if npm is None:
        raise EdgeError("engine.library", f"there is no ONNX Runtime for {platform} here", HOW_ANDROID)
    info(f"Fetching ONNX Runtime {NPM_VERSION} for Android from the npm package {NPM_PACKAGE} (143 MB)")
    kept.parent.mkdir(parents=True, exist_ok=True)
    with full_disk_is_an_error(kept), tempfile.TemporaryDirectory(dir=kept.parent.parent) as folder:
        done = _run([npm, "pack", "--silent", "--pack-destination", folder, NPM_PACKAGE])
        archives = list(Path(folder).glob("*.tgz"))
        if done.returncode or not archives:
            raise EdgeError("engine.library", f"can't fetch {NPM_PACKAGE}: {_reason(done)}", HOW_ANDROID)
        archive = Path(folder) / "onnxruntime.aar"
        _untar(archives[0], NPM_MEMBER, archive)
        if sha256(archive) != NPM_SHA256:
            raise EdgeError("engine.library", f"{NPM_PACKAGE} isn't what it was: its hash differs", HOW_ANDROID)
        _unzip(archive, _member_for(platform), kept)
    return kept


def _of_file(file: Path, platform: str) -> Path:
    """A library as it is, or the one inside an archive."""
    if not file.is_file():
        raise EdgeError("engine.library", f"{file} is missing", "name an .aar archive or a libonnxruntime.so")
    if not zipfile.is_zipfile(file):
        return file
    digest = hashlib.sha256(f"{file.resolve()} {file.stat().st_mtime_ns} {file.stat().st_size}".encode())
    kept = cache_folder() / f"onnxruntime-{digest.hexdigest()[:16]}-{platform}" / LIBRARY
    if not kept.is_file():
        kept.parent.mkdir(parents=True, exist_ok=True)
        with full_disk_is_an_error(kept):
            _unzip(file, _member_for(platform), kept)
    return kept


def _checked(library: Path, platform: str) -> Path:
    """Raise unless it is a library for this processor."""
    from edge.kernels import elf
    from edge.kernels.toolchain import PLATFORMS, PROCESSORS

    wanted = PLATFORMS[platform]
    found = elf.read(library, symbols=False)
    libc = wanted.libraries["libc"]
    if found.machine != PROCESSORS[wanted.processor] or libc not in found.needed:
        hint = HOW_ANDROID if platform in ABIS else "take the one out of the wheel for that machine"
        raise EdgeError("engine.library", f"{library} is not for {platform}", hint)
    return library


def _is_library(member: str) -> bool:
    return member.startswith(f"onnxruntime/capi/{LIBRARY}.")


def _member_for(platform: str) -> Callable[[str], bool]:
    """Which file of an archive it is: of an .aar, else of a wheel."""
    return (lambda name: name == f"jni/{ABIS[platform]}/{LIBRARY}") if platform in ABIS else _is_library


def _unzip(archive: Path, wanted: Callable[[str], bool], out: Path) -> None:
    """Write the one wanted member, whatever its name, to `out` alone."""
    try:
        with zipfile.ZipFile(archive) as files:
            names = [name for name in files.namelist() if wanted(name)]
            if not names:
                raise EdgeError("engine.library", f"{archive.name} has no {LIBRARY} for this platform", HOW_ANDROID)
            with files.open(names[0]) as member:
                _write(iter(lambda: member.read(1 << 20), b""), out)
    except (zipfile.BadZipFile, EOFError, OSError) as error:
        if isinstance(error, OSError) and error.errno:
            raise
        raise EdgeError("engine.library", f"{archive.name} is damaged: {error}", "fetch it again") from error


def _untar(archive: Path, member: str, out: Path) -> None:
    with tarfile.open(archive) as files:
        found: IO[bytes] | None = files.extractfile(member) if member in files.getnames() else None
        if found is None:
            raise EdgeError("engine.library", f"{NPM_PACKAGE} has no {member}", HOW_ANDROID)
        _write(iter(lambda: found.read(1 << 20), b""), out)


def _write(blocks: Iterable[bytes], out: Path) -> None:
    partial = out.with_name(f".{out.name}.{os.getpid()}")
    with partial.open("wb") as file:
        for block in blocks:
            file.write(block)
    os.replace(partial, out)


def _run(command: list[str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, check=False)


def _reason(done: subprocess.CompletedProcess[str]) -> str:
    lines = [line for line in done.stderr.strip().splitlines() if line.strip()]
    return lines[-1] if lines else f"exit code {done.returncode}"
