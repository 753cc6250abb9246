"""What edge_linear does before and after the product: against NumPy bit for bit, and the formulas against float64."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

from edge.core.errors import EdgeError
from edge.core.weight import Affine
from edge.kernels import lib, pack, reference_ops

GATED = ("silu_gated", "gelu_gated", "gelu_tanh_gated")
PLAIN = ("none", "gelu", "gelu_tanh")


def normal(*shape: int) -> np.ndarray:
    return np.random.default_rng(shape).standard_normal(shape).astype(np.float32)


def same(a: np.ndarray, b: np.ndarray) -> bool:
    return np.array_equal(a, b, equal_nan=True)


def norm_arguments(norm: str, columns: int) -> dict:
    given = {"norm": norm, "norm_weight": None if norm == "none" else normal(columns, 1)[:, 0] + np.float32(1)}
    return {**given, "norm_bias": normal(columns, 2)[:, 0] if norm == "layer" else None}


@pytest.mark.parametrize("activations", ["a8", "f32"])
@pytest.mark.parametrize("isa", lib.isas())
def test_fused_equals_numpy(make_tensor, isa, activations):
    """Rows with half tiles, columns that fill no lanes, one and several pieces of tokens; all gates."""
    epilogues = itertools.cycle((*PLAIN, *GATED))
    for rows, columns in ((64, 64), (34, 100), (32, 17), (66, 228)):
        packed = pack(make_tensor(rows, columns, Affine(4, 64)))
        for norm, with_skip, tokens in itertools.product(("none", "rms", "layer"), (False, True), (1, 9)):
            x, bias = normal(tokens, columns), normal(rows, 3)[:, 0]
            skip = normal(columns, tokens).T.copy() if with_skip else None
            arguments = {**norm_arguments(norm, columns), "skip": skip, "epilogue": next(epilogues), "bias": bias}
            expected = reference_ops.fused_linear(packed, x, activations, **arguments)
            got = lib.linear(packed, x, isa, activations=activations, **arguments)
            assert same(got, expected), (rows, columns, arguments["epilogue"], norm, tokens)


@pytest.mark.parametrize("activations", ["a8", "f32"])
@pytest.mark.parametrize("norm", ["none", "rms"])
def test_the_sum_goes_where_it_is_wanted(make_tensor, activations, norm):
    packed = pack(make_tensor(20, 100, Affine(4, 32)))
    x, skip = normal(3, 100), normal(4, 100)[:3]
    arguments = {"activations": activations, **norm_arguments(norm, 100)}
    expected = lib.linear(packed, x + skip, **arguments)
    apart, in_x, in_skip = np.zeros_like(x), x.copy(), skip.copy()
    assert same(lib.linear(packed, x, skip=skip, sum_out=apart, **arguments), expected)
    assert same(lib.linear(packed, in_x, skip=skip, sum_out=in_x, **arguments), expected)
    assert same(lib.linear(packed, x, skip=in_skip, sum_out=in_skip, **arguments), expected)
    assert same(apart, x + skip) and same(in_x, apart) and same(in_skip, apart)


@pytest.mark.parametrize("activations", ["a8", "f32"])
@pytest.mark.parametrize(("rows", "tokens"), [(3072, 1), (3080, 40), (96, 40)])
def test_threads_change_nothing(make_tensor, activations, rows, tokens):
    """Decode and prefill, a matrix for many threads and one for a single one, gates that end inside a tile."""
    packed = pack(make_tensor(rows, 576, Affine(4, 64)))
    arguments = {"activations": activations, "epilogue": "silu_gated", "skip": normal(tokens, 576) * np.float32(0.1)}
    arguments |= norm_arguments("rms", 576)
    x = normal(576, tokens).T
    assert same(lib.linear(packed, x, threads=3, **arguments), lib.linear(packed, x, **arguments))


@pytest.mark.parametrize("isa", lib.isas())
def test_odd_values_have_a_defined_result(make_tensor, isa):
    packed = pack(make_tensor(32, 64, Affine(4, 32)))
    x = normal(6, 64)
    x[0] = 0
    x[1, 3], x[2, 5] = np.nan, np.inf
    x[3] *= np.float32(1e-30)
    x[4] *= np.float32(3e37)  # the squares overflow: the norm is 0
    for norm, epilogue in itertools.product(("rms", "layer"), ("gelu", *GATED)):
        arguments = {**norm_arguments(norm, 64), "epilogue": epilogue, "epsilon": 1e-5}
        got = lib.linear(packed, x, isa, **arguments)
        with np.errstate(all="ignore"):
            assert same(got, reference_ops.fused_linear(packed, x, **arguments))
        assert np.isnan(got[1:3]).all()
        assert np.isfinite(got[[0, 3, 5]]).all()


@pytest.mark.parametrize("isa", lib.isas())
@pytest.mark.parametrize("epilogue", PLAIN[1:])
def test_activations_over_the_whole_range_equal_numpy(make_tensor, isa, epilogue):
    """Through a matrix with one column and weight 1, so that the bias alone is the activation's input."""
    tensor = make_tensor(4096, 1, Affine(8, 32))
    bias = np.concatenate([np.linspace(-12, 12, 4000), [0.0, -0.0, 1e-30, -1e-30, 87.3, -87.3, 1e4, -1e4]])
    bias = np.resize(bias, 4096).astype(np.float32)
    arguments = {"bias": bias, "epilogue": epilogue}
    got = lib.linear(pack(tensor), np.zeros((1, 1), np.float32), isa, **arguments)
    assert same(got, reference_ops.fused_linear(pack(tensor), np.zeros((1, 1), np.float32), **arguments))


X = np.concatenate([np.linspace(-30, 30, 200001), [0, 1e-30, -1e-4]]).astype(np.float32)
ERF = np.array([math.erf(float(value) / math.sqrt(2)) for value in X])


def test_exp_is_within_two_roundings():
    """Maximum error: 8e-8 of the value."""
    x = np.linspace(-86.9, 88.7, 200001).astype(np.float32)
    exact = np.exp(x.astype(np.float64))
    assert (np.abs(reference_ops.exp(x) - exact) <= 8e-8 * exact).all()
    edges = np.array([-87.1, -np.inf, -1e30, 88.8, np.inf, np.nan, 0], np.float32)
    assert same(reference_ops.exp(edges), np.array([0, 0, 0, np.inf, np.inf, np.nan, 1], np.float32))


def test_tanh_is_within_two_roundings():
    """Maximum error: 1.3e-7 of the value."""
    exact = np.tanh(X.astype(np.float64))
    assert (np.abs(reference_ops.tanh(X) - exact) <= 1.3e-7 * np.abs(exact)).all()


def test_activation_functions_are_close_to_float64():
    """Maximum errors: silu 1.8e-7 of the value, gelu by tanh 1.2e-7 |x|, gelu 1.4e-7 |x|, final roundings included."""
    x = X.astype(np.float64)
    u = math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)
    exact_silu, exact_tanh, exact_gelu = x / (1 + np.exp(-x)), 0.5 * x * (1 + np.tanh(u)), 0.5 * x * (1 + ERF)
    assert (np.abs(reference_ops.silu(X) - exact_silu) <= 1.8e-7 * np.abs(exact_silu)).all()
    assert (np.abs(reference_ops.gelu_tanh(X) - exact_tanh) <= 1.2e-7 * np.abs(x)).all()
    assert (np.abs(reference_ops.gelu(X) - exact_gelu) <= 1.4e-7 * np.abs(x)).all()


def test_norms_are_close_to_float64():
    x, weight, bias = normal(5, 1000) * np.float32(3) + np.float32(1), normal(1000, 1)[:, 0], normal(1000, 2)[:, 0]
    wide = x.astype(np.float64)
    rms = wide / np.sqrt((wide**2).mean(axis=1, keepdims=True) + 1e-5) * weight
    layer = (wide - wide.mean(axis=1, keepdims=True)) / np.sqrt(wide.var(axis=1, keepdims=True) + 1e-5) * weight + bias
    assert np.allclose(reference_ops.rms_norm(x, weight, 1e-5), rms, rtol=1e-6, atol=1e-7)
    assert np.allclose(reference_ops.layer_norm(x, weight, bias, 1e-5), layer, rtol=1e-6, atol=1e-6)


def test_arguments_that_do_not_fit_are_refused(make_tensor):
    packed, odd = pack(make_tensor(32, 64, Affine(4, 32))), pack(make_tensor(33, 64, Affine(4, 32)))
    x, weight = normal(2, 64), normal(64, 1)[:, 0]
    bad = [
        {"norm": "rms"},
        {"norm": "rms", "norm_weight": weight[:63]},
        {"norm_weight": weight},
        {"norm": "rms", "norm_weight": weight, "norm_bias": weight},
        {"norm": "layer", "norm_weight": weight, "norm_bias": weight[:1]},
        {"skip": x[:1]},
        {"sum_out": np.zeros_like(x)},
        {"skip": x, "sum_out": np.zeros_like(x[:1])},
    ]
    for arguments in bad:
        with pytest.raises(EdgeError, match="has the wrong size"):
            lib.linear(packed, x, **arguments)
    with pytest.raises(EdgeError, match="has the wrong size"):
        lib.linear(odd, x, epilogue="silu_gated")
    with pytest.raises(EdgeError, match="array of float32"):
        lib.linear(packed, x, skip=x, sum_out=np.zeros((2, 64)))
    out = np.zeros((2, 32), np.float32)
    for numbers in ((2, 0, 0, 0), (0, 77, 0, 0), (0, 0, 3, 0), (0, 0, 0, -1), (0, 0, 0, 6)):
        task = lib._LinearTask(*lib._bytes(packed), *numbers, x=lib._Array(*lib._array(x)))
        task.out = lib._Array(*lib._array(out))
        assert lib._load().edge_linear(lib.ctypes.byref(task), None) == 1
    assert lib._load().edge_linear(None, None) == 1
