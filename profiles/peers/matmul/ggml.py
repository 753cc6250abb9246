"""llama.cpp's ggml out of llama-cpp-python's shared libraries: one graph with a node per matrix, ggml's own threads.

Timed: one computation of the graph. "repacked" weights are in the interleaved layout that llama.cpp makes at load.
"""

from __future__ import annotations

import ctypes
import importlib.util
from ctypes import POINTER, byref, c_bool, c_char_p, c_int, c_int64, c_size_t, c_void_p
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from edge.profiles.peers.matmul import Contender, Missing, Pass, Shape

# ggml_type: number, bits, columns of a block
TYPES = {"Q4_0": (2, 4, 32), "Q4_K": (12, 4, 256), "IQ4_XS": (23, 4, 256), "Q3_K": (11, 3, 256), "Q2_K": (10, 2, 256)}
REPACKED = ("Q4_0", "Q4_K", "Q2_K")
VARIANTS = {f"ggml-{name}{suffix}": TYPES[name][1] for name in TYPES for suffix in ("", "-repacked")}
for _name in TYPES:
    if _name not in REPACKED:
        del VARIANTS[f"ggml-{_name}-repacked"]
F32 = 0


class _InitParams(ctypes.Structure):
    _fields_ = (("mem_size", c_size_t), ("mem_buffer", c_void_p), ("no_alloc", c_bool))


# Result and arguments of what is called, by the library that has it.
BASE = {
    "ggml_init": (c_void_p, [_InitParams]),
    "ggml_tensor_overhead": (c_size_t, []),
    "ggml_graph_overhead_custom": (c_size_t, [c_size_t, c_bool]),
    "ggml_new_tensor_2d": (c_void_p, [c_void_p, c_int, c_int64, c_int64]),
    "ggml_mul_mat": (c_void_p, [c_void_p, c_void_p, c_void_p]),
    "ggml_new_graph_custom": (c_void_p, [c_void_p, c_size_t, c_bool]),
    "ggml_build_forward_expand": (None, [c_void_p, c_void_p]),
    "ggml_row_size": (c_size_t, [c_int, c_int64]),
    "ggml_quantize_chunk": (c_size_t, [c_int, c_void_p, c_void_p, c_int64, c_int64, c_int64, c_void_p]),
    "ggml_backend_alloc_ctx_tensors_from_buft": (c_void_p, [c_void_p, c_void_p]),
    "ggml_backend_tensor_set": (None, [c_void_p, c_void_p, c_size_t, c_size_t]),
    "ggml_backend_graph_compute": (c_int, [c_void_p, c_void_p]),
    "ggml_backend_get_default_buffer_type": (c_void_p, [c_void_p]),
    "ggml_backend_get_device": (c_void_p, [c_void_p]),
    "ggml_backend_dev_backend_reg": (c_void_p, [c_void_p]),
    "ggml_backend_dev_supports_op": (c_bool, [c_void_p, c_void_p]),
    "ggml_backend_reg_get_proc_address": (c_void_p, [c_void_p, c_char_p]),
    "ggml_backend_buft_name": (c_char_p, [c_void_p]),
}
CPU = {"ggml_backend_cpu_init": (c_void_p, []), "ggml_backend_cpu_set_n_threads": (None, [c_void_p, c_int])}


class _Ggml:
    """The functions above as attributes."""

    def __init__(self, folder: Path) -> None:
        for library, functions in (("libggml-base.so", BASE), ("libggml-cpu.so", CPU)):
            loaded = ctypes.CDLL(str(folder / library), mode=ctypes.RTLD_GLOBAL)
            for name, (result, arguments) in functions.items():
                function = getattr(loaded, name)
                function.restype, function.argtypes = result, arguments
                setattr(self, name.removeprefix("ggml_"), function)

    def __getattr__(self, name: str) -> Any:  # for type checkers: all are set above
        raise AttributeError(name)

    def context(self, tensors: int) -> Any:
        """A context that holds so many tensors and a graph over them, but no data."""
        size = tensors * self.tensor_overhead() + self.graph_overhead_custom(tensors, False)
        return self.init(_InitParams(size, None, True))


def open(name: str, shape: Shape, threads: int, cold_bytes: int) -> Contender:
    """Raises `Missing` without llama-cpp-python, for columns that no block divides, and where ggml doesn't repack."""
    ggml = load()
    kind, bits, block = TYPES[name.split("-")[1]]
    if shape.k % block:
        raise Missing(f"{name} needs columns in multiples of {block}")
    backend = ggml.backend_cpu_init()
    ggml.backend_cpu_set_n_threads(backend, threads)
    plain = ggml.backend_get_default_buffer_type(backend)
    buffer_type = _repacking(ggml, backend) if name.endswith("-repacked") else plain
    count = shape.matrices(shape.n * shape.k * bits / 8, cold_bytes)
    holder = ggml.context(count)
    weights = [ggml.new_tensor_2d(holder, kind, shape.k, shape.n) for _ in range(count)]
    if not ggml.backend_alloc_ctx_tensors_from_buft(holder, buffer_type):
        raise Missing(f"{name}: ggml got no memory")
    nodes = 2 * count + 1  # the products, the matrices and x
    context = ggml.context(nodes)
    x = ggml.new_tensor_2d(context, F32, shape.k, shape.m)
    graph = ggml.new_graph_custom(context, nodes, False)
    for weight in weights:
        product = ggml.mul_mat(context, weight, x)
        if not ggml.backend_dev_supports_op(ggml.backend_get_device(backend), product):
            raise Missing(f"this ggml doesn't run {name} on this CPU")
        ggml.build_forward_expand(graph, product)
    ggml.backend_alloc_ctx_tensors_from_buft(context, plain)
    activations, data = shape.activations(), _quantized(ggml, kind, shape)
    ggml.backend_tensor_set(x, activations.ctypes.data, 0, activations.nbytes)
    for weight in weights:
        ggml.backend_tensor_set(weight, data.ctypes.data, 0, data.nbytes)

    def run() -> None:
        if status := ggml.backend_graph_compute(backend, graph):
            raise RuntimeError(f"ggml failed with status {status}")

    return Pass(count, run)


@lru_cache(maxsize=1)
def load() -> _Ggml:
    """The libraries. Raises `Missing` without llama-cpp-python."""
    found = importlib.util.find_spec("llama_cpp")
    if found is None or found.origin is None:
        raise Missing("llama-cpp-python is not installed")
    try:
        return _Ggml(Path(found.origin).parent / "lib")
    except (OSError, AttributeError) as error:
        raise Missing(f"llama-cpp-python's ggml can't be used: {error}") from error


def _repacking(ggml: _Ggml, backend: Any) -> Any:
    """The buffer type that interleaves rows when data are set."""
    registry = ggml.backend_dev_backend_reg(ggml.backend_get_device(backend))
    address = ggml.backend_reg_get_proc_address(registry, b"ggml_backend_dev_get_extra_bufts")
    if address:
        kinds = ctypes.CFUNCTYPE(POINTER(c_void_p), c_void_p)(address)(ggml.backend_get_device(backend))
        while kinds and kinds[0]:
            if ggml.backend_buft_name(kinds[0]) == b"CPU_REPACK":
                return kinds[0]
            kinds = ctypes.cast(byref(kinds.contents, ctypes.sizeof(c_void_p)), POINTER(c_void_p))
    raise Missing("this ggml repacks nothing")


def _quantized(ggml: _Ggml, kind: int, shape: Shape) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """A matrix in ggml's format: some rows quantized by ggml itself, over and over."""
    rows = min(64, shape.n)
    values = np.random.default_rng(0).standard_normal((rows, shape.k)).astype(np.float32)
    row_bytes = ggml.row_size(kind, shape.k)
    part = np.empty(rows * row_bytes, np.uint8)
    ggml.quantize_chunk(kind, values.ctypes.data, part.ctypes.data, 0, rows, shape.k, None)
    return np.resize(part, shape.n * row_bytes)
