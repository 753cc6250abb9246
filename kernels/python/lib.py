"""The compiled kernels from Python: where the library is, and its C ABI (`edge_kernels.h`) through ctypes."""

from __future__ import annotations

import ctypes
import os
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from edge.core.errors import EdgeError, UsageError, nearest
from edge.kernels.pack import Bytes
from edge.kernels.reference import Activations, Floats
from edge.kernels.reference_ops import Attention, Cache, Epilogue, Norm

LIBRARY = "libedge_kernels.so"
ABI = 3
ISAS = {"auto": 0, "portable": 1, "avx2": 2, "avx512vnni": 3, "neon_dotprod": 4, "neon_i8mm": 5}
ENCODINGS = {1: "affine", 2: "codebook", 3: "group_mixed", 4: "sparse"}
PATTERNS = {0: "", 1: "16x8", 2: "16x4", 3: "2:4"}
ACTIVATIONS: dict[Activations, int] = {"a8": 0, "f32": 1}
NORMS: dict[Norm, int] = {"none": 0, "rms": 1, "layer": 2}
EPILOGUES: dict[Epilogue, int] = {
    **{"none": 0, "gelu": 1, "gelu_tanh": 2},
    **{"silu_gated": 3, "gelu_gated": 4, "gelu_tanh_gated": 5},
}
CACHES: dict[Cache, int] = {"f32": 0, "f16": 1, "int8": 2, "table": 3}


class Kernel(NamedTuple):
    """One row of the kernel table; `available` when this CPU runs it."""

    name: str
    encoding: str
    bits: int
    dim: int
    pattern: str
    activations: Activations
    isa: str
    available: bool


class _KernelInfo(ctypes.Structure):
    _fields_ = (
        ("name", ctypes.c_char_p),
        ("encoding", ctypes.c_int32),
        ("bits", ctypes.c_int32),
        ("dim", ctypes.c_int32),
        ("pattern", ctypes.c_int32),
        ("activations", ctypes.c_int32),
        ("isa", ctypes.c_int32),
        ("available", ctypes.c_int32),
    )


class _Parallel(ctypes.Structure):
    _fields_ = (("host", ctypes.c_void_p), ("run", ctypes.c_void_p), ("threads", ctypes.c_size_t))


class _Array(ctypes.Structure):
    """edge_input, edge_output."""

    _fields_ = (("data", ctypes.c_void_p), ("count", ctypes.c_size_t))


class _LinearTask(ctypes.Structure):
    _fields_ = (
        ("packed", ctypes.c_void_p),
        ("packed_bytes", ctypes.c_size_t),
        ("activations", ctypes.c_int),
        ("isa", ctypes.c_int),
        ("norm", ctypes.c_int),
        ("epilogue", ctypes.c_int),
        ("epsilon", ctypes.c_float),
        *((name, _Array) for name in ("x", "skip", "norm_weight", "norm_bias", "bias", "sum", "out")),
    )


class _AttentionTask(ctypes.Structure):
    _fields_ = (
        ("isa", ctypes.c_int),
        ("cache", ctypes.c_int),
        *((name, ctypes.c_int64) for name in ("heads", "kv_heads", "head_dim", "rotary_dim", "window")),
        *((name, ctypes.c_float) for name in ("scale", "softcap", "epsilon")),
        *((name, ctypes.c_int64) for name in ("position", "capacity")),
        *((name, _Array) for name in ("qkv", "cos", "sin", "q_norm", "k_norm", "keys", "values", "out")),
        *((name, ctypes.c_int64) for name in ("key_bits", "value_bits", "outliers")),
        *((name, _Array) for name in ("key_table", "value_table")),
    )


def library_path() -> Path:
    """The compiled kernels. Raises `EdgeError` (kernels.missing) with the command that builds them."""
    import edge.kernels

    if chosen := os.environ.get("EDGE_KERNELS_LIBRARY"):  # a build with sanitizers, say
        return Path(chosen)
    for folder in edge.kernels.__path__:  # an editable install has two: the sources, and what was built
        path = Path(folder) / LIBRARY
        if path.is_file():
            return path
    hint = "run `pip install .` (or `pip install -e .`) in the checkout; it needs a C++17 compiler"
    raise EdgeError("kernels.missing", f"{LIBRARY} is not built", hint)


def ort_library_path() -> Path:
    """The library that ONNX Runtime's `register_custom_ops_library` takes: the same file."""
    return library_path()


def isas() -> list[str]:
    """Instruction sets that this build has kernels for and this CPU runs, slowest first."""
    return [name for name, number in ISAS.items() if number and _load().edge_isa_available(number)]


def kernels() -> list[Kernel]:
    """The kernel table."""
    names = {number: name for name, number in ISAS.items()}
    modes = {number: name for name, number in ACTIVATIONS.items()}
    rows = []
    for index in range(_load().edge_kernel_count()):
        info = _KernelInfo()
        _check(_load().edge_kernel_at(index, ctypes.byref(info)))
        mode, isa = modes[info.activations], names[info.isa]
        encoding = (ENCODINGS[info.encoding], info.bits, info.dim, PATTERNS[info.pattern])
        rows.append(Kernel(info.name.decode(), *encoding, mode, isa, bool(info.available)))
    return rows


def version() -> str:
    """Version of the C ABI that the library speaks."""
    return str(_load().edge_kernels_abi())


def oldest_onnxruntime() -> str:
    """The first ONNX Runtime that takes the operators: older ones crash where one leaves out an optional input."""
    return "1.24"


def verify(packed: Bytes) -> None:
    """Check header, size and checksum as the library does. Raises `EdgeError`."""
    _check(_load().edge_verify(*_bytes(packed)))


def kernel_name(packed: Bytes, isa: str | None = None, activations: Activations = "a8") -> str:
    """Name of the kernel that `linear` would run."""
    name = ctypes.c_char_p()
    _check(_load().edge_linear_kernel(*_bytes(packed), ACTIVATIONS[activations], _isa(isa), ctypes.byref(name)))
    return (name.value or b"").decode()


def linear(
    packed: Bytes,
    x: Floats,
    isa: str | None = None,
    threads: int = 1,
    *,
    activations: Activations = "a8",
    bias: Floats | None = None,
    norm: Norm = "none",
    norm_weight: Floats | None = None,
    norm_bias: Floats | None = None,
    epsilon: float = 1e-5,
    skip: Floats | None = None,
    sum_out: Floats | None = None,
    epilogue: Epilogue = "none",
) -> Floats:
    """epilogue(norm(x + skip) [tokens, columns] times the packed matrix [rows, columns] transposed + bias).

    Returns [tokens, rows], or half the rows from a gated epilogue, whose matrix has the gate's rows first. `sum_out`
    gets x + skip; it may be either of them.
    isa: use no newer instruction set than this one. Raises `EdgeError` for damaged weights and shapes that don't fit.
    """
    x = np.ascontiguousarray(x, np.float32)
    columns, rows = _shape(packed)
    if x.ndim != 2 or x.shape[1] != columns or (bias is not None and bias.shape != (rows,)):
        bias_shape = "" if bias is None else f" and a bias {list(bias.shape)}"
        raise EdgeError("kernels.shape", f"x {list(x.shape)}{bias_shape} don't fit a matrix [{rows}, {columns}]")
    out = np.empty((x.shape[0], rows // 2 if epilogue.endswith("_gated") else rows), np.float32)
    inputs = {"x": x, "skip": skip, "norm_weight": norm_weight, "norm_bias": norm_bias, "bias": bias}
    kept = {name: None if a is None else np.ascontiguousarray(a, np.float32) for name, a in inputs.items()}
    total = None if sum_out is None else _result(sum_out, np.float32)
    arrays = {name: _Array(*_array(a)) for name, a in {**kept, "sum": total, "out": out}.items()}
    modes = (ACTIVATIONS[activations], _isa(isa), NORMS[norm], EPILOGUES[epilogue], epsilon)
    task = _LinearTask(*_bytes(packed), *modes, **arrays)
    _check(_load().edge_linear(ctypes.byref(task), parallel(threads)))
    return out


def embedding(packed: Bytes, ids: NDArray[np.int64]) -> Floats:
    """The dequantized rows that `ids` [..] name: [.., columns]. Raises `EdgeError` for an id outside the table."""
    ids = np.ascontiguousarray(ids, np.int64)
    out = np.empty((*ids.shape, _shape(packed)[0]), np.float32)
    _check(_load().edge_embedding(*_bytes(packed), *_array(ids), *_array(out)))
    return out


def attention(
    settings: Attention,
    qkv: Floats,
    keys: Bytes,
    values: Bytes,
    position: int,
    isa: str | None = None,
    threads: int = 1,
    *,
    cos: Floats | None = None,
    sin: Floats | None = None,
    q_norm: Floats | None = None,
    k_norm: Floats | None = None,
    key_table: Floats | None = None,
    value_table: Floats | None = None,
) -> Floats:
    """Attention of the tokens qkv [tokens, (heads + 2 kv_heads) head_dim] from `position` on: [tokens, heads head_dim].

    Their keys and values go into the cache (`settings.empty_cache`), in place. cos, sin: [positions, rotary_dim / 2].
    key_table, value_table: of the cache `table`, as `reference_cache` has them. Raises `EdgeError` for sizes that don't
    fit each other or the cache.
    """
    inputs = {"qkv": qkv, "cos": cos, "sin": sin, "q_norm": q_norm, "k_norm": k_norm}
    inputs |= {"key_table": key_table, "value_table": value_table}
    kept = {name: None if a is None else np.ascontiguousarray(a, np.float32) for name, a in inputs.items()}
    out = np.empty((qkv.shape[0], settings.heads * settings.head_dim), np.float32)
    cache = {"keys": _result(keys, np.uint8), "values": _result(values, np.uint8)}
    arrays = {name: _Array(*_array(a)) for name, a in {**kept, **cache, "out": out}.items()}
    numbers = {**vars(settings), "isa": _isa(isa), "cache": CACHES[settings.cache]}
    task = _AttentionTask(**numbers, position=position, capacity=settings.capacity(keys), **arrays)
    _check(_load().edge_attention(ctypes.byref(task), parallel(threads)))
    return out


@lru_cache
def parallel(threads: int) -> Any:
    """`edge_parallel*` of a pool of so many threads, which lives as long as the process; None for one."""
    if threads < 2:
        return None
    create, describe = _load().edge_pool_create, _load().edge_pool_parallel
    create.restype, create.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
    describe.restype, describe.argtypes = _Parallel, [ctypes.c_void_p]
    pool = create(threads)
    if not pool:
        raise EdgeError("kernels.pool", f"there is no memory for {threads} threads")
    return ctypes.pointer(describe(pool))


@lru_cache(maxsize=1)
def _load() -> ctypes.CDLL:
    path = library_path()
    try:
        library = ctypes.CDLL(str(path))
    except OSError as error:
        raise EdgeError(
            "kernels.broken", f"{path} can't be loaded: {error}", "build it again: pip install ."
        ) from error
    library.edge_kernels_abi.restype = ctypes.c_uint32
    if (found := library.edge_kernels_abi()) != ABI:
        raise EdgeError(
            "kernels.abi", f"{path} has ABI {found}, this edge wants {ABI}", "build it again: pip install ."
        )
    pointer, size, number = ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int
    arguments = {
        "edge_verify": [pointer, size],
        "edge_check": [pointer, size, pointer],
        "edge_kernel_at": [size, pointer],
        "edge_linear_kernel": [pointer, size, number, number, pointer],
        "edge_linear": [pointer, pointer],
        "edge_attention": [pointer, pointer],
        "edge_cache_tile_bytes": [number, ctypes.c_int64],
        "edge_table_cache_bytes": [number, *[ctypes.c_int64] * 4],
        "edge_embedding": [pointer, size, pointer, size, pointer, size],
    }
    for name, types in arguments.items():
        getattr(library, name).argtypes = types
    library.edge_status_text.restype = ctypes.c_char_p
    library.edge_kernel_count.restype = library.edge_cache_tile_bytes.restype = size
    library.edge_table_cache_bytes.restype = size
    return library


def _check(status: int) -> None:
    if status:
        text = _load().edge_status_text(status).decode()
        raise EdgeError("kernels.status", text, "check the weights and the shapes, or export the model again")


def _shape(packed: Bytes) -> tuple[int, int]:
    """(columns, rows) after the library checked the header."""
    header = (ctypes.c_uint32 * 16)()  # edge_packed_header
    _check(_load().edge_check(*_bytes(packed), header))
    return header[3], header[2]


def _bytes(packed: Bytes) -> tuple[int, int]:
    if packed.dtype != np.uint8 or not packed.flags.c_contiguous:
        raise EdgeError("kernels.packed", f"packed weights are contiguous uint8, not {packed.dtype}")
    return packed.ctypes.data, packed.size


def _result(array: NDArray[Any], dtype: type[Any]) -> NDArray[Any]:
    if not (array.dtype == dtype and array.flags.c_contiguous and array.flags.writeable):
        raise EdgeError("kernels.array", f"results go to a contiguous, writable array of {np.dtype(dtype)}")
    return array


def _array(array: NDArray[Any] | None) -> tuple[int | None, int]:
    return (None, 0) if array is None else (array.ctypes.data, array.size)


def _isa(name: str | None) -> int:
    if name is not None and name not in ISAS:
        raise UsageError("kernels.isa", f"no instruction set is called '{name}'", nearest(name, ISAS))
    return ISAS[name or "auto"]
