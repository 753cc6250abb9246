"""The quantized cache of the attention operator: all instruction sets against NumPy, and NumPy against its purpose."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from edge.core.errors import EdgeError
from edge.kernels import lib, reference_ops
from edge.kernels.reference_cache import Layout, constants_of, tables_of
from edge.kernels.reference_ops import Attention
from edge.kernels.testing import random_cache_tables, with_bounds

# bits of keys and of values, outliers: every width on both sides, none and several outliers
KINDS = [(4, 4, 1), (3, 2, 0), (2, 3, 2), (8, 4, 1), (4, 8, 3), (3, 3, 4)]
SHAPES = [
    Attention(4, 4, 64, 0.125, rotary_dim=64),
    Attention(9, 3, 64, 0.125, rotary_dim=64, window=7),
    Attention(4, 1, 80, 0.1, rotary_dim=32, softcap=3.0),
    Attention(6, 1, 96, 0.1, rotary_dim=96, window=19),
    Attention(7, 1, 21, 0.3, rotary_dim=10),
    Attention(5, 1, 256, 0.06, window=16),
]
WITH_NORMS = {4: True, 9: True}


def normal(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def quantized(s: Attention, kind: tuple[int, int, int]) -> Attention:
    key_bits, value_bits, outliers = kind
    return replace(s, cache="table", key_bits=key_bits, value_bits=value_bits, outliers=outliers)


def arguments(s: Attention, capacity: int) -> dict[str, np.ndarray]:
    given = random_cache_tables(s)
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


def dirty_caches(s: Attention, capacity: int) -> list[np.ndarray]:
    """Ones wherever nothing was written: no position that isn't seen may reach a result."""
    caches = [s.empty_cache(capacity, part) for part in ("keys", "values")]
    for cache in caches:
        cache[:] = 0xFF
    return caches


@pytest.mark.parametrize(("shape", "kind"), [*zip(SHAPES, KINDS, strict=True), (SHAPES[1], KINDS[0])], ids=str)
def test_attention_equals_numpy(shape, kind):
    """A prompt beyond the fp16 tile, a step, more tokens into a new tile, a step: outputs and the cache's bytes."""
    s, capacity = quantized(shape, kind), 64
    given, expected_caches = arguments(s, capacity), dirty_caches(s, capacity)
    caches = {isa: dirty_caches(s, capacity) for isa in lib.isas()}
    position = 0
    for tokens in (21, 1, 12, 1):
        qkv = tokens_of(s, tokens, position)
        expected = reference_ops.attention(s, qkv, *expected_caches, position, **given)
        assert np.isfinite(expected).all()
        for isa in lib.isas():
            assert same(lib.attention(s, qkv, *caches[isa], position, isa, **given), expected), isa
            assert all(same(a, b) for a, b in zip(caches[isa], expected_caches, strict=True)), isa
        position += tokens


@pytest.mark.parametrize("window", [0, 100])
def test_steps_threads_and_instruction_sets_change_nothing(window):
    """A prefill of many blocks from the middle of a tile on, against the same tokens in steps."""
    s, capacity = replace(quantized(SHAPES[1], (3, 4, 1)), window=window), 320
    given, qkv = arguments(s, capacity), tokens_of(s, 300)
    whole = dirty_caches(s, capacity)
    expected = lib.attention(s, qkv, *whole, 0, "portable", **given)
    for isa in lib.isas():
        caches, position, out = dirty_caches(s, capacity), 0, []
        for tokens in (5, 1, 12, 270, *[1] * 12):
            out.append(lib.attention(s, qkv[position : position + tokens], *caches, position, isa, 3, **given))
            position += tokens
        assert same(np.concatenate(out), expected)
        assert all(same(a, b) for a, b in zip(caches, whole, strict=True))


@pytest.mark.parametrize(("bits", "limit"), [(8, 0.02), (4, 0.25), (3, 0.5)])
def test_close_to_attention_without_quantization(bits, limit):
    """Against the f32 cache, whose keys are rotated when they are written, with levels that suit the data."""
    s = quantized(Attention(4, 2, 64, 0.125, rotary_dim=48), (bits, bits, 2))
    qkv, given = tokens_of(s, 100), arguments(s, 112)
    table = np.linspace(-2.5, 2.5, 1 << bits)
    given["key_table"] = np.broadcast_to(with_bounds(table)[:, None, None], (2, 2, 64, 1 << bits)).copy()
    given["value_table"] = with_bounds(np.linspace(-1, 1, 1 << bits))
    if bits == 8:
        given["key_table"] = np.broadcast_to(np.float32([[2.5 / 127], [0]])[:, None, None], (2, 2, 64, 1)).copy()
        del given["value_table"]
    got = lib.attention(s, qkv, s.empty_cache(112), s.empty_cache(112, "values"), 0, **given)
    plain = replace(s, cache="f32")
    known = {name: array for name, array in given.items() if "table" not in name}
    exact = lib.attention(plain, qkv, plain.empty_cache(112), plain.empty_cache(112), 0, **known)
    assert 0 < np.abs(got - exact)[16:].max() < limit
    assert np.abs(got - exact)[:16].max() < 3e-3  # in fp16


def test_constants_go_to_the_operator_and_back():
    for kind in KINDS:
        given = random_cache_tables(quantized(SHAPES[1], kind))
        again = constants_of(tables_of(given["key_table"], given.get("value_table")))
        assert same(again[0], given["key_table"])
        assert again[1] is None if kind[1] == 8 else same(again[1], given["value_table"])


def test_bytes():
    """Against the library; and a tile is its codes, 32 bits a head of values, 24 an outlier."""
    for s in SHAPES:
        for kind in KINDS:
            wanted = quantized(s, kind)
            for part in ("keys", "values"):
                layout = wanted.layout(part)
                numbers = (part == "values", s.head_dim, layout.bits, layout.outliers, 96)
                assert lib._load().edge_table_cache_bytes(*numbers) == wanted.empty_cache(96, part).shape[1]
    assert Layout("keys", 64, 3, 1).fields.itemsize == 16 * 64 * 3 // 8 + 16 * 3
    assert Layout("values", 64, 3, 1).fields.itemsize == 16 * 64 * 3 // 8 + 16 * 4 + 16 * 3
    good = (0, 64, 3, 1, 96)
    assert lib._load().edge_table_cache_bytes(*good) > 0
    for place, wrong in {1: (0, 257, -1), 2: (0, 5, 9, -3), 3: (-1, 5), 4: (0, 17, -16, 2**40)}.items():
        bad = [(*good[:place], number, *good[place + 1 :]) for number in wrong]
        assert not any(lib._load().edge_table_cache_bytes(*numbers) for numbers in bad)


def test_golden_bytes():
    """What is written today is what a saved cache has tomorrow: layouts of every width, hashed."""
    import hashlib

    digests = {}
    for kind in KINDS:
        s = quantized(SHAPES[0], kind)
        caches = [s.empty_cache(48, part) for part in ("keys", "values")]
        width = (s.heads + 2 * s.kv_heads) * s.head_dim
        qkv = (np.arange(40 * width).reshape(40, width) * 7919 % 257 - 128).astype(np.float32) / 64
        levels = with_bounds(np.linspace(-1.5, 1.5, 1 << s.key_bits))[:, None, None]
        given = {"key_table": np.broadcast_to(levels, (2, s.kv_heads, s.head_dim, 1 << s.key_bits)).copy()}
        if s.key_bits == 8:
            given["key_table"] = np.full((2, s.kv_heads, s.head_dim, 1), 0.015625, np.float32)
        if s.value_bits != 8:
            given["value_table"] = with_bounds(np.linspace(-1, 1, 1 << s.value_bits))
        lib.attention(replace(s, rotary_dim=0), qkv, *caches, 0, **given)
        digests[kind] = hashlib.sha256(b"".join(cache.tobytes() for cache in caches)).hexdigest()[:16]
    assert digests == GOLDEN


GOLDEN = {
    (2, 3, 2): "d393adc6e742d55c",
    (3, 2, 0): "dec9ea561b788a4b",
    (3, 3, 4): "3727d537ba4dad2a",
    (4, 4, 1): "903d40816f2f0173",
    (4, 8, 3): "61ae50b8d14aca30",
    (8, 4, 1): "831a9612a347b71f",
}


S = quantized(Attention(4, 2, 32, 0.2, rotary_dim=32), (3, 4, 1))
DAMAGE = [
    {"key_bits": 0},
    {"key_bits": 4},
    {"key_bits": 9},
    {"key_bits": -3},
    {"value_bits": 3},
    {"value_bits": 8},
    {"value_bits": 2**40},
    {"outliers": 0},
    {"outliers": 2},
    {"outliers": -1},
    {"outliers": 2**60},
    {"capacity": 32},
    {"capacity": 40},
    {"capacity": 2**62},
    {"head_dim": 512},
    {"cache": 0},
    {"cache": 4},
]


def status(damage: dict, counts: dict) -> int:
    caches = [S.empty_cache(48, part) for part in ("keys", "values")]
    arrays = {"qkv": tokens_of(S, 2), **arguments(S, 48), "keys": caches[0], "values": caches[1]}
    arrays |= {"q_norm": normal(1, 32), "k_norm": normal(2, 32), "out": np.zeros((2, 128), np.float32)}
    given = {name: lib._Array(a.ctypes.data, a.size + counts.get(name, 0)) for name, a in arrays.items()}
    task = lib._AttentionTask(**{**vars(S), "cache": 3}, position=16, capacity=48, **given)
    for name, value in damage.items():
        setattr(task, name, value)
    return int(lib._load().edge_attention(lib.ctypes.byref(task), None))


@pytest.mark.parametrize("damage", DAMAGE, ids=str)
def test_numbers_that_make_no_sense_are_refused(damage):
    assert status({}, {}) == 0
    assert status(damage, {}) == 1


@pytest.mark.parametrize("name", ["keys", "values", "key_table", "value_table"])
def test_arrays_of_the_wrong_size_are_refused(name):
    assert [status({}, {name: change}) for change in (-1, 1)] == [1, 1]
    assert status({name: lib._Array(None, 0)}, {}) == 1


def test_a_table_that_the_cache_has_no_use_for():
    plain = replace(S, cache="f32")
    caches = [plain.empty_cache(48) for _ in range(2)]
    with pytest.raises(EdgeError, match="wrong size"):
        lib.attention(plain, tokens_of(S, 1), *caches, 0, **arguments(S, 48))
