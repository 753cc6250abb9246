"""Build what measures on a device without Python: the runner, the sampler and the kernels library (kernels/runner)."""

from __future__ import annotations

import hashlib
import os
import re
import tempfile
from pathlib import Path
from typing import NamedTuple

from edge.core.files import cache_folder, full_disk_is_an_error
from edge.kernels.cross import kept_build, sources
from edge.kernels.toolchain import COMPILE, LINK, PLATFORMS, Compiler, Platform, check, find_compiler, platform_named
from edge.kernels.toolchain import stubs as stub_libraries

__all__ = ["PLATFORMS", "Tools", "build"]
START, SAMPLER = "start.cpp", "sampler.cpp"
PART = re.compile(r"^// in (lib\w+)$")
FUNCTION = re.compile(r"^[^\s#/].*?(\w+)\((?!\*)")


class Tools(NamedTuple):
    """Files for a device: two programs, and the library with the operators of edge's graphs."""

    runner: Path
    sampler: Path
    kernels: Path


def build(platform: str, kernels: Path | None = None) -> Tools:
    """The tools for `platform`, one of `PLATFORMS`; the cache keeps them. kernels: where that library is already.

    Raises `EdgeError` as `cross_build` does: no compiler, no sources, the compiler's message, a result that would not
    load there.
    """
    files = sorted((sources() / "runner").glob("*.cpp"))
    runner = [source for source in files if source.name != SAMPLER]
    sampler = [source for source in files if source.name in (START, SAMPLER)]
    programs = _program("runner", runner, platform), _program("sampler", sampler, platform)
    return Tools(*programs, kernels or kept_build(platform))


def libc_symbols(header: Path) -> dict[str, list[str]]:
    """The functions that libc.h declares, by the library that it says they are in."""
    found: dict[str, list[str]] = {}
    part = ""
    for line in header.read_text().splitlines():
        if said := PART.match(line):
            part = said[1]
        elif part and (function := FUNCTION.match(line)):
            found.setdefault(part, []).append(function[1])
    return found


def _program(name: str, files: list[Path], target: str) -> Path:
    compiler, platform = find_compiler(target), platform_named(target)
    kept = cache_folder() / f"{name}-{target}-{_digest(compiler, platform)}"
    if not kept.is_file():
        kept.parent.mkdir(parents=True, exist_ok=True)
        with full_disk_is_an_error(kept), tempfile.TemporaryDirectory(dir=kept.parent) as folder:
            built = _link(compiler, platform, files, Path(folder) / name)
            built.chmod(0o755)
            os.replace(built, kept)
    return kept


def _link(compiler: Compiler, platform: Platform, files: list[Path], out: Path) -> Path:
    root = sources()
    symbols = libc_symbols(root / "runner" / "libc.h")
    libraries = stub_libraries(compiler, platform, symbols, out.parent)
    objects = []
    for source in files:
        objects.append(f"{out}-{source.stem}.o")
        include = [f"-I{root / part}" for part in ("include", "bind/ort")]
        compiler.run([*COMPILE, *platform.flags, *include, "-c", str(source), "-o", objects[-1]])
    program = ["-pie", f"-Wl,--dynamic-linker={platform.loader}", "-Wl,-z,now", "-o", str(out)]
    compiler.run([*LINK, *program, *objects, *libraries])
    check(out, platform, symbols, program=True)
    return out


def _digest(compiler: Compiler, platform: Platform) -> str:
    digest = hashlib.sha256(repr((compiler, platform, COMPILE, LINK)).encode())
    root = sources()
    for file in (*sorted((root / "runner").iterdir()), root / "bind" / "ort" / "ort_abi.h"):
        digest.update(file.name.encode() + b"\0" + file.read_bytes())
    return digest.hexdigest()[:16]
