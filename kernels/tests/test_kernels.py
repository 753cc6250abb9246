"""Every kernel of kernels.inc against NumPy, bit for bit."""

from __future__ import annotations

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from functools import cache

import numpy as np
import pytest

from edge.core.encoding import Affine, Codebook
from edge.core.errors import EdgeError, UsageError
from edge.kernels import lib, pack, reference
from edge.kernels.testing import random_tensor

SHAPES = [(1, 4), (16, 32), (33, 100), (50, 576), (130, 260)]  # (rows, columns)
TOKENS = [1, 2, 3, 5, 8, 17]
GRIDS = ("symmetric", "zero_point", "half_integer")
WIDE = (  # of every dim
    {"group_size": 0},
    {"group_size": 0, "scale": "row"},
    {"group_size": 128, "table_rows": 12},
    {"group_size": 128, "scale": "row", "table_columns": 256},
)
TABLES = (*WIDE, {"group_size": 64, "table_rows": 20}, {"group_size": 64, "table_rows": 4, "table_columns": 128})
SCALARS = (  # of dim 1 alone
    *TABLES,
    {"group_size": 64, "table_rows": 1},
    {"group_size": 32, "table_rows": 1, "table_columns": 64, "scale": "row"},
)


def random_x(tokens: int, columns: int) -> np.ndarray:
    return np.random.default_rng(tokens * 1000 + columns).standard_normal((tokens, columns)).astype(np.float32)


def same(a: np.ndarray, b: np.ndarray) -> bool:
    return np.array_equal(a, b, equal_nan=True)


def kernel_name(row: lib.Kernel) -> str:
    kinds = {
        "affine": f"affine{row.bits}",
        "codebook": f"codebook{row.bits}d{row.dim}",
        "group_mixed": f"mixed{row.bits}",
        "sparse": f"sparse{row.bits}_{row.pattern.replace(':', 'of')}",
    }
    return f"{kinds[row.encoding]}_{row.activations}_{row.isa}"


def test_the_table_has_every_kernel_once():
    rows = lib.kernels()
    names = {row.name for row in rows}
    kinds = [*(f"affine{b}" for b in (2, 3, 4, 8)), *(f"codebook{b}d{d}" for b in (2, 3, 4) for d in (1, 2, 4))]
    kinds.append("codebook1d1")
    assert len(names) == len(rows)
    assert names >= {f"{kind}_{mode}_portable" for kind in kinds for mode in ("a8", "f32")}
    assert [row.name for row in rows] == [kernel_name(row) for row in rows]


def encodings(kernel: lib.Kernel) -> list[Affine | Codebook]:
    """All that a kernel of dense steps serves."""
    if kernel.encoding == "affine":
        return [Affine(kernel.bits, group, grid) for grid in GRIDS for group in (0, 32, 64, 128)]
    if kernel.dim > 1:
        return [Codebook(kernel.bits, kernel.dim, **tables) for tables in (TABLES if kernel.dim == 2 else WIDE)]
    entries = [("int8", tables) for tables in SCALARS]
    entries += [("int16", tables) for tables in SCALARS if tables["group_size"]]
    return [Codebook(kernel.bits, 1, entry, **tables) for entry, tables in entries]


def cases() -> list[tuple[lib.Kernel, Affine | Codebook]]:
    dense = [row for row in lib.kernels() if row.encoding in ("affine", "codebook")]
    return [(kernel, encoding) for kernel in dense for encoding in encodings(kernel)]


@cache
def packed_matrix(rows: int, columns: int, encoding: Affine | Codebook) -> np.ndarray:
    return pack(random_tensor(rows, columns, encoding))


@cache
def expected_product(packed_of: tuple, tokens: int, activations: str) -> np.ndarray:
    bias = random_x(1, packed_of[0])[0]
    return reference.linear(packed_matrix(*packed_of), random_x(tokens, packed_of[1]), activations, bias)


@pytest.mark.parametrize(("kernel", "encoding"), cases(), ids=lambda value: getattr(value, "name", None) or str(value))
def test_kernel_equals_numpy(kernel, encoding):
    if not kernel.available:
        pytest.skip(f"this CPU has no {kernel.isa}")
    for rows, columns in SHAPES:
        packed = packed_matrix(rows, columns, encoding)
        assert lib.kernel_name(packed, kernel.isa, kernel.activations) == kernel.name
        bias = random_x(1, rows)[0]
        for tokens in TOKENS:
            got = lib.linear(packed, random_x(tokens, columns), kernel.isa, activations=kernel.activations, bias=bias)
            expected = expected_product((rows, columns, encoding), tokens, kernel.activations)
            assert same(got, expected), (rows, columns, tokens)


EXTREMES = (
    *(Affine(bits, 128, grid) for bits in (2, 3, 4, 8) for grid in GRIDS),
    *(Affine(8, 0, grid) for grid in GRIDS),
    *(Codebook(4, dim, group_size=group) for dim in (1, 2, 4) for group in (0, 128)),
    *(Codebook(4, entry="int16", group_size=128, table_rows=rows) for rows in (0, 1)),
)


@pytest.mark.parametrize("encoding", EXTREMES, ids=str)
def test_extremes_do_not_overflow(encoding):
    """Codes, zero points, entries and activations at their limits: 16-bit sums of AVX2, the longest 32-bit sums."""
    columns = 256 if encoding.group_size else 65536
    tensor = random_tensor(5, columns, encoding)
    tensor.parts["scales"][:] = 1
    if "zero_points" in tensor.parts:
        tensor.parts["zero_points"][:] = 0
    limits = ((1 << encoding.bits) - 1,) if isinstance(encoding, Affine) else table_limits(encoding)
    for limit in limits:
        tensor.parts["codes" if isinstance(encoding, Affine) else "tables"][:] = limit
        packed = pack(tensor)
        x = np.repeat(np.array([[1], [-1]], np.float32), columns, axis=1)
        expected = reference.linear(packed, x)
        for isa in lib.isas():
            assert same(lib.linear(packed, x, isa), expected), (isa, limit)


def table_limits(encoding: Codebook) -> tuple[int, int]:
    return (-127, 127) if encoding.entry == "int8" else (-32768, 32767)


@pytest.mark.parametrize("isa", lib.isas())
def test_odd_activations_have_a_defined_result(make_tensor, isa):
    packed = pack(make_tensor(20, 64, Affine(4, 32)))
    x = random_x(9, 64)
    x[0] = 0
    x[1, 3], x[2, 5], x[3, 63] = np.nan, np.inf, -np.inf
    x[4] *= 1e-38  # 1 / scale is infinite: counts as zeros
    x[5] *= np.float32(2e-36)
    x[6] *= np.float32(3e37)
    x[7] = np.float32(1e-45)
    x[8] = np.arange(64) - 31.5  # many ties of the rounding
    got = lib.linear(packed, x, isa)
    assert same(got, reference.linear(packed, x))
    assert np.isnan(got[1:4]).all()
    assert not got[[0, 4, 7]].any()
    assert np.isfinite(got[[5, 8]]).all()


def test_quantized_activations_are_the_stated_formula():
    x = np.array([[-127.0, 0.5, 1.5, 2.5, 126.6], [0, 0, 0, 0, 0]], np.float32)
    q, scale = reference.quantize_activations(x)
    assert q.tolist() == [[-127, 0, 2, 2, 127], [0, 0, 0, 0, 0]]
    assert scale.tolist() == [1.0, 0.0]


def test_an_outlier_costs_its_own_group_alone(make_tensor):
    tensor = make_tensor(32, 192, Affine(4, 64))
    x = random_x(1, 192)
    loud = x.copy()
    loud[0, 3] = 1e6
    silent = np.zeros_like(x)
    silent[:, :64] = loud[:, :64]  # the outlier's group by itself
    rest = x.copy()
    rest[:, :64] = 0
    packed = pack(tensor)
    together = lib.linear(packed, loud).astype(np.float64)
    assert np.allclose(together, lib.linear(packed, silent).astype(np.float64) + lib.linear(packed, rest), rtol=1e-6)


@pytest.mark.parametrize("activations", ["a8", "f32"])
def test_close_to_the_dense_product(make_tensor, activations):
    """The reference itself: within half a quantization step per activation, and float rounding for f32."""
    tensor = make_tensor(64, 512, Affine(4, 64))
    x = random_x(4, 512)
    weights = tensor.dequantize().astype(np.float64)
    step = np.abs(x).max(axis=1) / 127 if activations == "a8" else 2 * 512 * np.finfo(np.float32).eps * np.abs(x).max()
    limit = 0.51 * np.reshape(step, (-1, 1)) * np.abs(weights).sum(axis=1) + 1e-6
    assert (np.abs(reference.linear(pack(tensor), x, activations) - x @ weights.T) <= limit).all()


@pytest.mark.parametrize("activations", ["a8", "f32"])
def test_threads_change_nothing(make_tensor, activations):
    packed = pack(make_tensor(1000, 576, Affine(4, 64)))
    x = random_x(21, 576)
    expected = lib.linear(packed, x, activations=activations)
    assert same(lib.linear(packed, x, threads=4, activations=activations), expected)
    with ThreadPoolExecutor(4) as pool:
        results = pool.map(lambda _: lib.linear(packed, x, activations=activations), range(16))
        assert all(same(result, expected) for result in results)


def test_shapes_that_do_not_fit_are_refused(make_tensor):
    packed = pack(make_tensor(20, 64, Affine(4, 32)))
    for x, bias in ((random_x(1, 63), None), (random_x(1, 64)[0], None), (random_x(1, 64), np.zeros(19, np.float32))):
        with pytest.raises(EdgeError, match="don't fit"):
            lib.linear(packed, x, bias=bias)
    assert lib.linear(packed, np.zeros((0, 64), np.float32)).shape == (0, 20)


def run_with_isa(isa: str) -> subprocess.CompletedProcess[str]:
    program = (
        "import numpy as np; from edge.core.weight import *; from edge.kernels import lib, pack\n"
        "parts = {'codes': np.ones((4, 32), np.uint8), 'scales': np.ones((4, 1), np.float16)}\n"
        "print(lib.kernel_name(pack(CompressedTensor('w', (4, 32), Affine(4, 32), parts))))"
    )
    environment = {**os.environ, "EDGE_KERNELS_ISA": isa}
    command = [sys.executable, "-c", program]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("isa", lib.isas())
def test_the_environment_forces_an_instruction_set(isa):
    assert run_with_isa(isa).stdout.strip() == f"affine4_a8_{isa}"


def test_an_instruction_set_that_is_not_there(make_tensor):
    done = run_with_isa("sse9")
    assert done.returncode != 0
    assert "instruction set asked for is not in this build or this CPU" in done.stderr
    with pytest.raises(UsageError, match="avx3"):
        lib.linear(pack(make_tensor(16, 32, Affine(4, 32))), np.zeros((1, 32), np.float32), "avx3")


def test_a_missing_library_says_how_to_build_it(monkeypatch, tmp_path):
    import edge.kernels

    monkeypatch.delenv("EDGE_KERNELS_LIBRARY", raising=False)
    monkeypatch.setattr(edge.kernels, "__path__", [str(tmp_path)])
    with pytest.raises(EdgeError, match="pip install") as error:
        lib.library_path()
    assert error.value.code == "kernels.missing"
