"""The kernels inside ExecuTorch: a library of operators, compiled on first use against the ExecuTorch that is here.

Export with `edge.kernels.torch_ops` imported, which gives export the operators; `load` before a program that has them.
"""

from __future__ import annotations

import ctypes
import importlib.util
from functools import lru_cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from edge.core.errors import EdgeError
from edge.kernels import lib
from edge.kernels.compiler import shared_library
from edge.kernels.cross import sources

INSTALL = 'pip install "edge-deploy[executorch]"'
DEFINES = ("-DC10_USING_CUSTOM_GENERATED_MACROS", "-DET_EVENT_TRACER_ENABLED", "-DET_USE_THREADPOOL")


def executorch_version() -> str:
    """Version of the installed ExecuTorch. Raises `EdgeError` (kernels.no_executorch) when there is none."""
    try:
        return version("executorch")
    except PackageNotFoundError as error:
        raise EdgeError("kernels.no_executorch", "ExecuTorch is not installed", INSTALL) from error


def library() -> Path:
    """The operators for this ExecuTorch, compiled unless they are. Raises `EdgeError` when that can't be done."""
    found = executorch_version()
    root = _root()
    include, kernels = root / "include", lib.library_path().resolve()
    includes = (include, include / "executorch" / "runtime" / "core" / "portable_type" / "c10")
    libraries = ("-lexecutorch", "-lexecutorch_threadpool", str(kernels))
    folders = [f"-Wl,-rpath,{folder}" for folder in (root / "lib", kernels.parent)]
    flags = [*DEFINES, *(f"-isystem{path}" for path in includes), f"-L{root / 'lib'}", *libraries, *folders]
    source = sources() / "bind" / "executorch" / "operators.cpp"
    return shared_library(f"executorch-{found}", source, [*flags, "-Wl,--no-undefined"])


def _root() -> Path:
    """Where ExecuTorch's libraries and headers are."""
    spec = importlib.util.find_spec("executorch")
    roots = list(spec.submodule_search_locations or ()) if spec else []
    root = next((Path(root) for root in roots if (Path(root) / "lib" / "libexecutorch.so").is_file()), None)
    if root is None:
        message = f"ExecuTorch {executorch_version()} comes without its library and headers"
        raise EdgeError("kernels.executorch", message, INSTALL)
    return root


@lru_cache(maxsize=1)
def load_quantized() -> None:
    """Register ExecuTorch's own quantized operators: embeddings of 4 and 8 bits."""
    ctypes.CDLL(str(_root() / "lib" / "libexecutorch_kernels_quantized.so"), mode=ctypes.RTLD_GLOBAL)


@lru_cache(maxsize=1)
def load() -> Path:
    """Register the operators with the ExecuTorch of this process; the library that did it."""
    path = library()
    try:
        ctypes.CDLL(str(path), mode=ctypes.RTLD_GLOBAL)
    except OSError as error:
        raise EdgeError("kernels.executorch", f"{path} can't be loaded: {error}", f"remove {path}") from error
    return path


def error() -> str:
    """The first error that ExecuTorch logged since the call before, in one line; empty for none.

    From the first call on, ExecuTorch prints nothing.
    """
    function = ctypes.CDLL(str(load())).edge_executorch_error
    function.restype = ctypes.c_char_p
    return " ".join(function().decode("utf-8", "replace").split())
