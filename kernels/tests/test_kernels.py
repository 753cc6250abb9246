"""Every kernel of kernels.inc against NumPy, bit for bit."""

from __future__ import annotations

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from edge.core.errors import EdgeError, UsageError
from edge.core.weight import Affine
from edge.kernels import lib, pack, reference

SHAPES = [(1, 1), (16, 32), (33, 100), (50, 576), (130, 260)]  # (rows, columns)
TOKENS = [1, 2, 3, 5, 17]


def random_x(tokens: int, columns: int) -> np.ndarray:
    return np.random.default_rng(tokens * 1000 + columns).standard_normal((tokens, columns)).astype(np.float32)


def same(a: np.ndarray, b: np.ndarray) -> bool:
    return np.array_equal(a, b, equal_nan=True)


def kernel_rows() -> list[lib.Kernel]:
    return lib.kernels()


def test_the_table_has_every_kernel_once():
    rows = kernel_rows()
    assert len({row.name for row in rows}) == len(rows)
    assert {row.name for row in rows} >= {f"affine{b}_{a}_portable" for b in (2, 3, 4, 8) for a in ("a8", "f32")}
    assert all(row.name == f"affine{row.bits}_{row.activations}_{row.isa}" for row in rows)


@pytest.mark.parametrize("group_size", [0, 32, 64, 128])
@pytest.mark.parametrize("grid", ["symmetric", "zero_point"])
@pytest.mark.parametrize("kernel", kernel_rows(), ids=lambda kernel: kernel.name)
def test_kernel_equals_numpy(make_tensor, kernel, grid, group_size):
    if not kernel.available:
        pytest.skip(f"this CPU has no {kernel.isa}")
    for rows, columns in SHAPES:
        packed = pack(make_tensor(rows, columns, Affine(kernel.bits, group_size, grid)))
        assert lib.kernel_name(packed, kernel.isa, kernel.activations) == kernel.name
        bias = random_x(1, rows)[0]
        for tokens in TOKENS:
            x = random_x(tokens, columns)
            expected = reference.linear(packed, x, kernel.activations, bias)
            got = lib.linear(packed, x, kernel.isa, activations=kernel.activations, bias=bias)
            assert same(got, expected), (rows, columns, tokens)


@pytest.mark.parametrize("isa", lib.isas())
def test_extremes_do_not_overflow(make_tensor, isa):
    """Codes, zero points and activations at their limits: the 16-bit sums of AVX2 and the longest 32-bit sum."""
    for encoding, columns in ((Affine(4, 128), 1024), (Affine(8, 128), 1024), (Affine(8, 0, "zero_point"), 65536)):
        tensor = make_tensor(16, columns, encoding)
        tensor.parts["codes"][:] = (1 << encoding.bits) - 1
        tensor.parts["scales"][:] = 1
        if "zero_points" in tensor.parts:
            tensor.parts["zero_points"][:] = 0
        packed = pack(tensor)
        for sign in (1, -1):
            x = np.full((5, columns), sign, np.float32)
            assert same(lib.linear(packed, x, isa), reference.linear(packed, x))


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


EMBEDDINGS = [Affine(2, 32), Affine(3, 64, "zero_point"), Affine(4, 0), Affine(8, 128, "zero_point")]


@pytest.mark.parametrize("encoding", EMBEDDINGS, ids=str)
def test_embedding_is_dequantize(make_tensor, encoding):
    tensor = make_tensor(77, 100, encoding)
    ids = np.array([[0, 76, 5], [16, 15, 5]])
    assert same(lib.embedding(pack(tensor), ids), tensor.dequantize()[ids])
    assert lib.embedding(pack(tensor), np.zeros((0, 3), np.int64)).shape == (0, 3, 100)


@pytest.mark.parametrize("bad", [-1, 77, 2**62, -(2**63)])
def test_ids_outside_the_table_are_refused(make_tensor, bad):
    with pytest.raises(EdgeError, match="row that is not there"):
        lib.embedding(pack(make_tensor(77, 100, Affine(4, 32))), np.array([1, bad]))


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
