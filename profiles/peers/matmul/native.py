"""edge's own kernels, and what the machine could give: reading memory, and int8 products in registers.

All three run in `kernels/bench/bench.cpp`, compiled for this machine on first use: a call from Python costs as much as
a small matrix does, so one call does a whole pass.
"""

from __future__ import annotations

import ctypes
from ctypes import c_double, c_int, c_size_t, c_void_p
from functools import lru_cache
from typing import Any

import numpy as np

from edge.core.errors import EdgeError
from edge.kernels import lib
from edge.kernels.compiler import shared_library
from edge.kernels.cross import sources
from edge.kernels.pack import Bytes
from edge.profiles.peers.matmul import Contender, Pass, Shape, cold_memory

FLAGS = ("-march=native", "-fno-exceptions", "-fno-rtti", "-Wl,-z,lazy")
ALIGNMENT = 4096
FUNCTIONS: dict[str, tuple[Any, list[Any]]] = {
    "bench_linear": (
        c_int,
        [c_void_p, c_size_t, c_size_t, c_int, c_int, c_void_p, c_size_t, c_void_p, c_size_t, c_void_p],
    ),
    "bench_read": (c_size_t, [c_void_p, c_size_t, c_size_t, c_void_p]),
    "bench_int8": (c_double, [c_size_t, c_void_p]),
}


def linear(packed: Bytes, rows: int, shape: Shape, threads: int, cold_bytes: int, mode: tuple[str, str]) -> Contender:
    """Products with copies of one packed matrix. mode: activations and instruction set ("" for the best).

    Raises `EdgeError` where no kernel here serves the matrix.
    """
    activations, isa = mode
    stride = -(-packed.size // ALIGNMENT) * ALIGNMENT
    count = shape.matrices(packed.size, cold_bytes)
    memory, x, out = cold_memory(count * stride), shape.activations(), np.empty((shape.m, rows), np.float32)
    for start in range(0, memory.size, stride):
        memory[start : start + packed.size] = packed
    blobs = (c_void_p * count)(*range(memory.ctypes.data, memory.ctypes.data + memory.size, stride))
    numbers = lib.ACTIVATIONS[activations], lib.ISAS[isa or "auto"]  # type: ignore[index]
    library, pool = _library(), _pool(threads)

    def run() -> None:
        arrays = x.ctypes.data, x.size, out.ctypes.data, out.size
        if status := library.bench_linear(blobs, count, packed.size, *numbers, *arrays, pool):
            raise EdgeError("kernels.status", f"edge_linear gave {library.edge_status_text(status).decode()}")
        _ = memory  # the blobs are in it

    run()  # whatever is wrong shows before anything is timed
    return Pass(count, run)


def reader(threads: int, cold_bytes: int) -> tuple[Contender, int]:
    """Reads memory once from start to end; and how many bytes that is."""
    memory = cold_memory(cold_bytes)
    memory[:] = 1
    library, pool = _library(), _pool(threads)

    def run() -> int:
        return int(library.bench_read(memory.ctypes.data, memory.size, threads, pool))

    return Pass(1, run), run()


def multiplier(threads: int) -> tuple[Contender, float]:
    """Multiplies int8 values in registers; and how many operations that is, 0 where this CPU can't."""
    library, pool = _library(), _pool(threads)

    def run() -> float:
        return float(library.bench_int8(threads, pool))

    return Pass(1, run), run()


@lru_cache(maxsize=1)
def _library() -> Any:
    kernels = ctypes.CDLL(str(lib.library_path()), mode=ctypes.RTLD_GLOBAL)  # bench.cpp finds edge_linear there
    kernels.edge_pool_create.restype, kernels.edge_pool_create.argtypes = c_void_p, [c_size_t]
    kernels.edge_status_text.restype = ctypes.c_char_p
    source = sources() / "bench" / "bench.cpp"
    library: Any = ctypes.CDLL(str(shared_library("bench", source, FLAGS)))
    for name, (result, arguments) in FUNCTIONS.items():
        function = getattr(library, name)
        function.restype, function.argtypes = result, arguments
    library.edge_status_text, library.edge_pool_create = kernels.edge_status_text, kernels.edge_pool_create
    return library


@lru_cache(maxsize=4)
def _pool(threads: int) -> int | None:
    """The kernels' own threads; none for one, which is the caller."""
    return _library().edge_pool_create(threads) if threads > 1 else None
