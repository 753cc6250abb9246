"""Parts in C++ that are compiled where they are used, because they need what only that machine has."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

from edge.core.errors import EdgeError
from edge.core.files import cache_folder, full_disk_is_an_error
from edge.kernels.cross import sources

FLAGS = ("-std=c++17", "-O3", "-fPIC", "-shared")


def shared_library(name: str, source: Path, flags: Sequence[str]) -> Path:
    """`source` as a library in the cache folder, where it stays until it, the kernels' header or `flags` change.

    Raises `EdgeError`: kernels.compiler (none is here), kernels.compile (the compiler's message).
    """
    header = sources() / "include" / "edge_kernels.h"
    command = [*FLAGS, f"-I{header.parent}", str(source), *flags]
    digest = hashlib.sha256(source.read_bytes() + header.read_bytes() + " ".join(command).encode()).hexdigest()
    path = cache_folder() / f"{name}-{digest[:16]}.so"
    if path.is_file():
        return path
    compiler = next(filter(None, map(shutil.which, (os.environ.get("CXX", ""), "c++", "g++", "clang++"))), None)
    if compiler is None:
        raise EdgeError("kernels.compiler", f"{name} needs a C++ compiler", "install g++ or clang, or set CXX")
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    with full_disk_is_an_error(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        done = subprocess.run([compiler, *command, "-o", str(partial)], capture_output=True, text=True, check=False)
        if done.returncode:
            raise EdgeError("kernels.compile", f"{source} doesn't compile", (done.stderr.strip() or "?")[-300:])
        os.replace(partial, path)
    return path
