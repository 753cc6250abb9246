"""edge_attention against NumPy bit for bit, and NumPy's definition against softmax attention in float64."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from edge.core.errors import EdgeError
from edge.kernels import lib, reference_ops
from edge.kernels.reference_ops import Attention

CACHES = ("f32", "f16", "int8")
SHAPES = [
    Attention(4, 4, 64, 0.125, rotary_dim=64),
    Attention(9, 3, 64, 0.125, rotary_dim=64, window=7),
    Attention(4, 1, 80, 0.1, rotary_dim=32, softcap=3.0),
    Attention(6, 1, 96, 0.1, rotary_dim=96, window=19),
    Attention(2, 2, 128, 0.09, softcap=20.0, window=1),
    Attention(7, 1, 20, 0.3, rotary_dim=10),
    Attention(5, 1, 256, 0.06, rotary_dim=64, window=16),
]
WITH_NORMS = {4: True, 9: True}


def normal(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def arguments(s: Attention, capacity: int) -> dict:
    """cos, sin and norms as a model has them."""
    given: dict = {}
    if s.rotary_dim:
        steps = 10000.0 ** (-2 * np.arange(s.rotary_dim // 2) / s.rotary_dim)
        angles = np.arange(capacity)[:, None] * steps
        given |= {"cos": np.cos(angles).astype(np.float32), "sin": np.sin(angles).astype(np.float32)}
    if s.heads in WITH_NORMS:
        given |= {"q_norm": 1 + normal(1, s.head_dim) / 8, "k_norm": 1 + normal(2, s.head_dim) / 8}
    return given


def tokens_of(s: Attention, tokens: int, seed: int = 0) -> np.ndarray:
    return normal(seed, tokens, (s.heads + 2 * s.kv_heads) * s.head_dim)


def same(a: np.ndarray, b: np.ndarray) -> bool:
    return np.array_equal(a, b, equal_nan=True)


def dirty_cache(s: Attention, capacity: int) -> np.ndarray:
    """NaN wherever nothing was written: no position that isn't seen may reach a result."""
    cache = s.empty_cache(capacity)
    cache[:] = 0xFF
    return cache


@pytest.mark.parametrize("cache", CACHES)
@pytest.mark.parametrize("shape", SHAPES, ids=lambda s: f"{s.heads}x{s.kv_heads}x{s.head_dim}")
@pytest.mark.parametrize("isa", lib.isas())
def test_attention_equals_numpy(isa, shape, cache):
    """A prompt, a step of one token, a few more, one: as a decoder runs. Outputs and the bytes of the cache."""
    s, capacity = replace(shape, cache=cache), 64
    keys, values, expected_keys, expected_values = (dirty_cache(s, capacity) for _ in range(4))
    position, given = 0, arguments(s, capacity)
    for tokens in (21, 1, 12, 1):
        qkv = tokens_of(s, tokens, position)
        expected = reference_ops.attention(s, qkv, expected_keys, expected_values, position, **given)
        assert same(lib.attention(s, qkv, keys, values, position, isa, **given), expected)
        assert same(keys, expected_keys) and same(values, expected_values)
        position += tokens
    assert np.isfinite(expected).all()


@pytest.mark.parametrize("cache", CACHES)
@pytest.mark.parametrize("isa", lib.isas())
def test_steps_add_up_to_one_prefill(isa, cache):
    s, capacity = replace(SHAPES[1], cache=cache), 48
    qkv, given = tokens_of(s, 40), arguments(s, capacity)
    whole_cache, step_cache = ([dirty_cache(s, capacity) for _ in range(2)] for _ in range(2))
    whole = lib.attention(s, qkv, *whole_cache, 0, isa, **given)
    steps = [lib.attention(s, qkv[i : i + 1], *step_cache, i, isa, **given) for i in range(40)]
    assert same(whole, np.concatenate(steps))
    assert same(whole_cache[0], step_cache[0]) and same(whole_cache[1], step_cache[1])


@pytest.mark.parametrize("cache", CACHES)
@pytest.mark.parametrize("window", [0, 100])
def test_threads_and_instruction_sets_change_nothing(cache, window):
    """A prefill of many blocks, then a decode step, long enough for several threads."""
    s, capacity, runs = replace(SHAPES[1], cache=cache, window=window), 512, []
    given = arguments(s, capacity)
    for isa, threads in (("portable", 1), *((isa, 3) for isa in lib.isas())):
        keys, values = dirty_cache(s, capacity), dirty_cache(s, capacity)
        prefill = lib.attention(s, tokens_of(s, 330), keys, values, 0, isa, threads, **given)
        step = lib.attention(s, tokens_of(s, 1, 5), keys, values, 330, isa, threads, **given)
        runs.append((prefill, step, keys, values))
    assert all(same(a, b) for run in runs[1:] for a, b in zip(run, runs[0], strict=True))


@pytest.mark.parametrize("isa", lib.isas())
def test_what_is_masked_never_reaches_a_result(isa):
    """NaN and infinity in later tokens, and in those that the window has left behind."""
    s = replace(SHAPES[0], window=4)
    clean, given = tokens_of(s, 20), arguments(s, 32)
    loud = clean.copy()
    loud[8] = np.nan
    loud[9] = np.inf
    caches = [dirty_cache(s, 32) for _ in range(4)]
    expected = lib.attention(s, clean, *caches[:2], 0, isa, **given)
    got = lib.attention(s, loud, *caches[2:], 0, isa, **given)
    assert same(got[:8], expected[:8]) and same(got[13:], expected[13:])
    assert np.isnan(got[8:13]).all()


@pytest.mark.parametrize("isa", lib.isas())
def test_scores_of_any_size(isa):
    """Far above and below each other: weights of exactly 0 and 1, and infinite scores give NaN."""
    s = Attention(1, 1, 16, 1.0)
    qkv = np.zeros((4, 48), np.float32)
    qkv[:, 0], qkv[:, 16], qkv[:, 32:] = 1, (0, 1000, -1000, 3e38), normal(1, 4, 16)
    qkv[3, 0] = 10
    caches = [dirty_cache(s, 16) for _ in range(4)]
    got = lib.attention(s, qkv, *caches[:2], 0, isa)
    with np.errstate(all="ignore"):
        assert same(got, reference_ops.attention(s, qkv, *caches[2:], 0))
    assert same(got[:3], qkv[[0, 1, 1], 32:]) and np.isnan(got[3]).all()


def exact_attention(s: Attention, qkv: np.ndarray, cos: np.ndarray, sin: np.ndarray) -> np.ndarray:
    """The textbook's, in float64, over the tokens themselves."""
    parts = qkv.astype(np.float64).reshape(len(qkv), -1, s.head_dim)
    half = s.rotary_dim // 2
    x1, x2 = parts[:, : -s.kv_heads, :half], parts[:, : -s.kv_heads, half : 2 * half]
    c, n = cos[: len(qkv), None].astype(np.float64), sin[: len(qkv), None].astype(np.float64)
    parts[:, : -s.kv_heads, : 2 * half] = np.concatenate([x1 * c - x2 * n, x2 * c + x1 * n], axis=-1)
    queries, keys, values = np.split(parts, [s.heads, s.heads + s.kv_heads], axis=1)
    keys, values = (np.repeat(a, s.heads // s.kv_heads, axis=1) for a in (keys, values))
    scores = np.einsum("qhd,khd->hqk", queries, keys) * s.scale
    scores = s.softcap * np.tanh(scores / s.softcap) if s.softcap else scores
    distance = np.arange(len(qkv))[:, None] - np.arange(len(qkv))
    scores[:, (distance < 0) | (distance >= (s.window or len(qkv)))] = -np.inf
    weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
    weights /= weights.sum(axis=-1, keepdims=True)
    return np.einsum("hqk,khd->qhd", weights, values).reshape(len(qkv), -1)


@pytest.mark.parametrize(("cache", "limit"), [("f32", 3e-6), ("f16", 3e-3), ("int8", 5e-2)])
@pytest.mark.parametrize("window", [0, 40])
@pytest.mark.parametrize("softcap", [0.0, 5.0])
def test_close_to_softmax_attention(cache, limit, window, softcap):
    """Maximum error for values of about 1: float rounding, that of half precision, and one step of 127."""
    s = Attention(4, 2, 64, 0.125, cache=cache, rotary_dim=48, window=window, softcap=softcap)
    qkv, given = tokens_of(s, 100), arguments(replace(s, heads=1), 112)
    got = lib.attention(s, qkv, s.empty_cache(112), s.empty_cache(112), 0, **given)
    assert np.abs(got - exact_attention(s, qkv, **given)).max() < limit


def test_fma_is_rounded_once():
    """Against Python's integers, which are exact, and where rounding twice would differ."""
    random = np.random.default_rng(0)
    a, b = (random.integers(1 << 23, 1 << 24, 4000).astype(np.float32) for _ in range(2))
    c = -(a.astype(np.float64) * b).astype(np.float32)  # the product's leading bits cancel: the rest is exact
    exact = [int(x) * int(y) + int(z) for x, y, z in zip(a, b, c, strict=True)]
    assert reference_ops.fma(a, b, c).tolist() == [float(np.float32(value)) for value in exact]
    tie = np.float32(1 + 2**-12), np.float32(1 + 2**-12), np.float32(2**-80)  # a tie without c
    assert reference_ops.fma(*(np.array([value]) for value in tie))[0] == np.float32(1 + 2**-11 + 2**-23)


def test_an_instruction_set_that_is_not_there():
    other = next(isa for isa in ("neon_dotprod", "avx2") if isa not in lib.isas())
    with pytest.raises(EdgeError, match="instruction set asked for"):
        lib.attention(S, tokens_of(S, 1), S.empty_cache(16), S.empty_cache(16), 0, other, **arguments(S, 16))


def test_tile_bytes():
    for s in SHAPES:
        for number, cache in enumerate(CACHES):
            assert lib._load().edge_cache_tile_bytes(number, s.head_dim) == replace(s, cache=cache).tile_bytes
    for cache, head_dim in ((0, 0), (0, -1), (0, 513), (3, 64), (-1, 64)):
        assert lib._load().edge_cache_tile_bytes(cache, head_dim) == 0


S = Attention(4, 2, 32, 0.2, rotary_dim=32)
DAMAGE = [
    {"heads": 3},
    {"heads": 0},
    {"kv_heads": 0},
    {"heads": -4, "kv_heads": -2},
    {"head_dim": 0},
    {"head_dim": 513},
    {"head_dim": 2**62},
    {"rotary_dim": 31},
    {"rotary_dim": 34},
    {"rotary_dim": 0},
    {"rotary_dim": -2},
    {"window": -1},
    {"softcap": -1.0},
    {"softcap": float("nan")},
    {"position": -1},
    {"position": 47},
    {"position": 2**63 - 1},
    {"capacity": 0},
    {"capacity": 40},
    {"capacity": 64},
    {"capacity": 2**62},
    {"cache": 1},
    {"cache": 3},
    {"cache": -1},
    {"isa": 99},
]
ARRAYS = ("qkv", "cos", "sin", "q_norm", "k_norm", "keys", "values", "out")


def good_task(kept: list) -> lib._AttentionTask:
    arrays = {"qkv": tokens_of(S, 2), **arguments(S, 48), "keys": S.empty_cache(48), "values": S.empty_cache(48)}
    arrays |= {"q_norm": normal(1, 32), "k_norm": normal(2, 32), "out": np.zeros((2, 128), np.float32)}
    kept.append(arrays)
    given = {name: lib._Array(a.ctypes.data, a.size) for name, a in arrays.items()}
    return lib._AttentionTask(**{**vars(S), "cache": 0}, position=3, capacity=48, **given)


def status(task: lib._AttentionTask) -> int:
    return int(lib._load().edge_attention(lib.ctypes.byref(task), None))


@pytest.mark.parametrize("damage", DAMAGE, ids=str)
def test_numbers_that_make_no_sense_are_refused(damage):
    kept: list = []
    task = good_task(kept)
    assert status(task) == 0
    for name, value in damage.items():
        setattr(task, name, value)
    assert status(task) == 1


@pytest.mark.parametrize("name", ARRAYS)
def test_arrays_of_the_wrong_size_are_refused(name):
    kept: list = []
    for change in (-1, 1, "null", "unaligned"):
        task = good_task(kept)
        array = getattr(task, name)
        if change == "null":
            array.data = None
        elif change == "unaligned":
            if name not in ("keys", "values"):
                continue
            array.data += 1
        else:
            array.count += change
        assert status(task) == 1, change


def test_a_full_cache_is_an_error_and_no_tokens_are_none():
    keys, values = S.empty_cache(16), S.empty_cache(16)
    given = arguments(S, 16)
    with pytest.raises(EdgeError, match="wrong size"):
        lib.attention(S, tokens_of(S, 3), keys, values, 14, **given)
    with pytest.raises(EdgeError, match="writable array of uint8"):
        lib.attention(S, tokens_of(S, 1), keys, values.view(np.int8), 0, **given)
    assert lib.attention(S, tokens_of(S, 0), keys, values, 16, **given).shape == (0, 128)
    assert lib._load().edge_attention(None, None) == 1
