"""What the fused operators compute around the matrix products, in NumPy: the definition, bit by bit.

Everything is float32 and rounded once an operation. Sums over a row go to 16 partial sums (element k to sum k mod 16,
ascending), which are then added pairwise: (l, l + 8), (l, l + 4), (l, l + 2), (l, l + 1).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from edge.core import cache as coding
from edge.kernels import reference
from edge.kernels.pack import Bytes
from edge.kernels.reference import Activations, Floats
from edge.kernels.reference_cache import LANES, Layout, Part, tables_of

Norm = Literal["none", "rms", "layer"]
Cache = Literal["f32", "f16", "int8", "table"]
Epilogue = Literal["none", "gelu", "gelu_tanh", "silu_gated", "gelu_gated", "gelu_tanh_gated"]
F32 = np.float32
ERF = (
    *(7.853861353153693e-5, -8.010193625184903e-4, 5.188327685732524e-3, -2.685381193529856e-2),
    *(1.128358514861418e-1, -3.761262582423300e-1, 1.128379165726710),
)


def fused_linear(
    packed: Bytes,
    x: Floats,
    activations: Activations = "a8",
    bias: Floats | None = None,
    *,
    norm: Norm = "none",
    norm_weight: Floats | None = None,
    norm_bias: Floats | None = None,
    epsilon: float = 1e-5,
    skip: Floats | None = None,
    epilogue: Epilogue = "none",
) -> Floats:
    """epilogue(norm(x + skip) times the matrix transposed + bias): [tokens, rows], or half the rows when gated."""
    y = x if skip is None else x + skip
    if norm_weight is not None:
        y = rms_norm(y, norm_weight, epsilon) if norm == "rms" else layer_norm(y, norm_weight, norm_bias, epsilon)
    out = reference.linear(packed, y, activations, bias)
    if epilogue == "none":
        return out
    activation = {"silu": silu, "gelu": gelu, "gelu_tanh": gelu_tanh}[epilogue.removesuffix("_gated")]
    if not epilogue.endswith("_gated"):
        return activation(out)
    gate, up = np.split(out, 2, axis=-1)
    return activation(gate) * up


def lane_sum(x: Floats) -> Floats:
    """Sum over the last axis in the order that the module's text states; missing lanes add +0."""
    short = -x.shape[-1] % LANES
    padded = np.pad(x, [(0, 0)] * (x.ndim - 1) + [(0, short)]).reshape(*x.shape[:-1], -1, LANES)
    total = np.zeros((*x.shape[:-1], LANES), F32)
    for step in range(padded.shape[-2]):
        total = total + padded[..., step, :]
    for width in (8, 4, 2, 1):
        total = total[..., :width] + total[..., width:]
    return total[..., 0]


def rms_norm(x: Floats, weight: Floats, epsilon: float) -> Floats:
    """(x * inverse) * weight, inverse = 1 / sqrt(mean(x^2) + epsilon)."""
    return (x * _inverse_deviation(x, epsilon)) * weight


def layer_norm(x: Floats, weight: Floats, bias: Floats | None, epsilon: float) -> Floats:
    """(centred * inverse) * weight + bias, centred = x - mean(x), inverse = 1 / sqrt(mean(centred^2) + epsilon)."""
    centred = x - (lane_sum(x) / F32(x.shape[-1]))[..., None]
    y = (centred * _inverse_deviation(centred, epsilon)) * weight
    return y if bias is None else y + bias


def _inverse_deviation(x: Floats, epsilon: float) -> Floats:
    with np.errstate(over="ignore", invalid="ignore"):
        mean = lane_sum(x * x) / F32(x.shape[-1])
        inverse: Floats = F32(1) / np.sqrt(mean + F32(epsilon))
    return inverse[..., None]


def exp(x: Floats) -> Floats:
    """x = n ln 2 + r; a polynomial in r (Cephes' expf) times 2^n. 0 below -87, infinity above 88.73."""
    x = np.minimum(np.maximum(x, F32(-87)), F32(89))
    n = np.rint(x * F32(1.44269504))
    r: Floats = (x - n * F32(0.693359375)) - n * F32(-2.12194440e-4)
    y = polynomial(
        r, 1.9875691500e-4, 1.3981999507e-3, 8.3334519073e-3, 4.1665795894e-2, 1.6666665459e-1, 5.0000001201e-1
    )
    y = (y * (r * r) + r) + F32(1)
    half_power: Floats = np.where(n > -126, np.ldexp(F32(1), np.nan_to_num(n - 1).astype(np.int32)), F32(0))
    with np.errstate(over="ignore"):
        return (y + y) * half_power


def polynomial(x: Floats, *factors: float) -> Floats:
    """Horner's scheme, the highest power first; every product and sum rounded."""
    y = np.full_like(x, factors[0])
    for factor in factors[1:]:
        y = y * x + F32(factor)
    return y


def tanh(x: Floats) -> Floats:
    """Cephes' tanhf: an odd polynomial below 0.625, else 1 - 2 / (exp(2 |x|) + 1)."""
    size, square = np.abs(x), x * x
    y = polynomial(square, -5.70498872745e-3, 2.06390887954e-2, -5.37397155531e-2, 1.33314422036e-1, -3.33332819422e-1)
    near = (y * square) * x + x
    far = F32(1) - F32(2) / (exp(size + size) + F32(1))
    return np.where(size < F32(0.625), near, np.where(x < 0, F32(0) - far, far))


def silu(x: Floats) -> Floats:
    """x / (1 + exp(-x))."""
    return x / (F32(1) + exp(F32(0) - x))


def gelu_tanh(x: Floats) -> Floats:
    """0.5 x (1 + tanh(u)) = x / (1 + exp(-2 u)), u = sqrt(2 / pi) (x + 0.044715 x^3)."""
    u = x * polynomial(x * x, -0.0713548163, -1.59576912)  # -2 u
    return x / (F32(1) + exp(u))


def gelu(x: Floats) -> Floats:
    """0.5 x (1 + erf(z)), z = x / sqrt 2: Cephes' erff below |z| = 1, else max(x, 0) - |x| q with Abramowitz and
    Stegun's 7.1.26 for q = 0.5 (1 - erf(|z|))."""
    size, z, half = np.abs(x), x * F32(0.70710678), x * F32(0.5)
    with np.errstate(over="ignore", invalid="ignore"):  # not used where that happens
        near = half + half * (polynomial(z * z, *ERF) * z)
    t = F32(1) / (F32(1) + F32(0.231641888) * size)
    q = polynomial(t, 0.5307027145, -0.7265760135, 0.7107068705, -0.142248368, 0.127414796)
    q = (q * t) * exp((size * size) * F32(-0.5))
    far = np.maximum(x, F32(0)) - size * q
    return np.where(np.abs(z) < F32(1), near, far)


def fma(a: Floats, b: Floats, c: Floats) -> Floats:
    """a * b + c, rounded once.

    The product of two float32 is exact in float64. Their sum with c is rounded to odd there, so that the rounding to
    float32 can't fall on a tie that the first one made.
    """
    product = a.astype(np.float64) * b
    total = product + c
    with np.errstate(invalid="ignore"):
        rest = total - product
        error = (product - (total - rest)) + (c - rest)  # exactly what `total` lost
        move = (np.nan_to_num(error) != 0) & (total.view(np.int64) & 1 == 0)
        odd = np.where(move, np.nextafter(total, np.copysign(np.inf, error)), total)
    return odd.astype(F32)


CACHE_TYPES: dict[Cache, type[Any]] = {"f32": np.float32, "f16": np.float16, "int8": np.int8}


@dataclass(frozen=True)
class Attention:
    """What stays the same from call to call: heads, cache, rotation, window (0: all positions), softcap (0: none).

    key_bits, value_bits, outliers (of every head and token): of the cache `table` alone.
    """

    heads: int
    kv_heads: int
    head_dim: int
    scale: float
    cache: Cache = "f32"
    rotary_dim: int = 0
    window: int = 0
    softcap: float = 0.0
    epsilon: float = 1e-5
    key_bits: int = 0
    value_bits: int = 0
    outliers: int = 0

    @property
    def width(self) -> int:
        return -(-self.head_dim // LANES) * LANES

    @property
    def tile_bytes(self) -> int:
        scales = LANES * 4 if self.cache == "int8" else 0
        return LANES * self.width * np.dtype(CACHE_TYPES[self.cache]).itemsize + scales

    def layout(self, part: Part) -> Layout:
        """Of the cache `table`."""
        return Layout(part, self.head_dim, self.key_bits if part == "keys" else self.value_bits, self.outliers)

    def cache_shape(self, capacity: int, part: Part = "keys") -> tuple[int, ...]:
        """Of the bytes for `capacity` positions (a multiple of 16): [kv_heads, tiles, tile_bytes], or of the cache
        `table` [kv_heads, bytes]."""
        if self.cache == "table":
            return self.kv_heads, self.layout(part).head_bytes(capacity)
        return self.kv_heads, capacity // LANES, self.tile_bytes

    def capacity(self, keys: Bytes) -> int:
        """Positions for which a cache of keys has room."""
        if self.cache != "table":
            return keys.shape[1] * LANES
        layout = self.layout("keys")
        return LANES + (keys.shape[1] - layout.first_bytes) // layout.fields.itemsize * LANES

    def empty_cache(self, capacity: int, part: Part = "keys") -> Bytes:
        """Room for `capacity` positions of keys, or of values."""
        return np.zeros(self.cache_shape(capacity, part), np.uint8)


def attention(
    settings: Attention,
    qkv: Floats,
    keys: Bytes,
    values: Bytes,
    position: int,
    *,
    cos: Floats | None = None,
    sin: Floats | None = None,
    q_norm: Floats | None = None,
    k_norm: Floats | None = None,
    key_table: Floats | None = None,
    value_table: Floats | None = None,
) -> Floats:
    """Attention of the tokens qkv [tokens, (heads + 2 kv_heads) head_dim] from `position` on: [tokens, heads head_dim].

    Their keys and values go into the cache, in place. cos, sin: [positions, rotary_dim / 2]. key_table, value_table: of
    the cache `table`, as `reference_cache` has them.
    """
    s, tokens = settings, qkv.shape[0]
    parts = qkv.reshape(tokens, s.heads + 2 * s.kv_heads, s.head_dim)
    queries, new_keys, new_values = np.split(parts, [s.heads, s.heads + s.kv_heads], axis=1)
    positions = np.arange(position, position + tokens)
    queries, new_keys = _normed(s, queries, q_norm), _normed(s, new_keys, k_norm)
    rope = _Rope(s.rotary_dim, cos, sin)
    first = np.maximum(0, positions - s.window + 1) if s.window else np.zeros_like(positions)
    everything = np.arange(position + tokens)
    seen = (everything >= first[:, None]) & (everything <= positions[:, None])
    if key_table is not None:
        cache: _Cache = _TableCache(s, keys, values, tables_of(key_table, value_table), rope)
    else:
        cache = _TileCache(s, keys, values, rope)
    cache.write(positions, new_keys, new_values)
    out = np.empty((tokens, s.heads, s.head_dim), F32)
    for head in range(s.heads):
        kv_head = head * s.kv_heads // s.heads
        scores = cache.scores(kv_head, queries[:, head], positions, len(everything)) * F32(s.scale)
        if s.softcap:
            scores = F32(s.softcap) * tanh(scores / F32(s.softcap))
        scores = np.where(seen, scores, F32(-np.inf))
        weights = np.where(seen, exp(scores - scores.max(axis=1, keepdims=True)), F32(0))
        total = lane_sum(weights)
        out[:, head] = cache.weighted(kv_head, weights, seen) * (F32(1) / total)[:, None]
    return out.reshape(tokens, -1)


def _normed(s: Attention, heads: Floats, weight: Floats | None) -> Floats:
    return heads if weight is None else rms_norm(heads, weight, s.epsilon)


class _Rope(NamedTuple):
    """Rotation of the halves of the leading rotary_dim elements: (x1, x2) -> (x1 cos - x2 sin, x2 cos + x1 sin)."""

    rotary_dim: int
    cos: Floats | None
    sin: Floats | None

    def __call__(self, heads: Floats, positions: NDArray[Any]) -> Floats:
        """heads [tokens, .., head_dim]."""
        if self.cos is None or self.sin is None:
            return heads
        half = self.rotary_dim // 2
        x1, x2, rest = np.split(heads, [half, 2 * half], axis=-1)
        shape = (-1, *[1] * (heads.ndim - 2), half)
        c, n = self.cos[positions].reshape(shape), self.sin[positions].reshape(shape)
        return np.concatenate([x1 * c - x2 * n, x2 * c + x1 * n, rest], axis=-1)


class _TileCache(NamedTuple):
    """Rotated keys, and values, as elements; those of int8 with a scale for each position."""

    s: Attention
    keys: Bytes
    values: Bytes
    rope: _Rope

    def write(self, positions: NDArray[Any], keys: Floats, values: Floats) -> None:
        for part, heads in (("keys", self.rope(keys, positions)), ("values", values)):
            elements, scales = self._elements(part)
            padded = np.pad(heads, [(0, 0), (0, 0), (0, self.s.width - self.s.head_dim)])
            for position, token in zip(positions, padded, strict=True):
                place = (slice(None), position // LANES, position % LANES)
                if scales is None:
                    elements[place] = token
                else:
                    elements[place], scales[place] = reference.quantize_activations(token)

    def scores(self, kv_head: int, queries: Floats, positions: NDArray[Any], count: int) -> Floats:
        keys, scales = self._read(kv_head, "keys", count)
        queries, scores = self.rope(queries, positions), np.zeros((len(queries), count), F32)
        for d in range(self.s.head_dim):
            scores = fma(queries[:, d, None], keys[None, :, d], scores)
        return scores if scales is None else scores * scales

    def weighted(self, kv_head: int, weights: Floats, seen: NDArray[np.bool_]) -> Floats:
        values, scales = self._read(kv_head, "values", seen.shape[1])
        return _weighted_sum(weights if scales is None else weights * scales, values, seen)

    def _elements(self, part: str) -> tuple[NDArray[Any], Floats | None]:
        """Views of a cache: elements [kv_heads, tiles, 16 positions, width], scales [kv_heads, tiles, 16] of int8."""
        s, cache = self.s, self.keys if part == "keys" else self.values
        element = np.dtype(CACHE_TYPES[s.cache])
        split = LANES * s.width * element.itemsize
        shape = (s.width, LANES) if part == "keys" else (LANES, s.width)
        elements = cache[:, :, :split].view(element).reshape(*cache.shape[:2], *shape)
        scales = cache[:, :, split:].view(F32) if s.cache == "int8" else None
        return elements.swapaxes(2, 3) if part == "keys" else elements, scales

    def _read(self, kv_head: int, part: str, count: int) -> tuple[Floats, Floats | None]:
        """The first positions of one head: elements [count, head_dim] as float32, and their scales."""
        elements, scales = self._elements(part)
        heads = elements[kv_head].reshape(-1, self.s.width)[:count, : self.s.head_dim].astype(F32)
        return heads, None if scales is None else scales[kv_head].reshape(-1)[:count]


class _TableCache:
    """Keys that are rotated when they are read, by their place in the tile; the query is by what is left."""

    def __init__(self, s: Attention, keys: Bytes, values: Bytes, tables: coding.CacheTables, rope: _Rope) -> None:
        self.s, self.rope, self.tables = s, rope, tables
        self.format = coding.CacheFormat(s.key_bits, s.value_bits, s.outliers)
        self.keys, self.values = (s.layout("keys"), keys), (s.layout("values"), values)

    def write(self, positions: NDArray[Any], keys: Floats, values: Floats) -> None:
        coded_keys = coding.encode_keys(self.format, self.tables, keys)
        coded_values = coding.encode_values(self.format, self.tables, values)
        parts = ((self.keys, coded_keys, self.rope(keys, positions)), (self.values, coded_values, values))
        for (layout, cache), coded, heads in parts:
            first = layout.first_tile(cache)
            padded = np.pad(heads, [(0, 0), (0, 0), (0, self.s.width - self.s.head_dim)])
            for at, position in enumerate(positions):
                if position < LANES:
                    first[:, position] = padded[at]
                else:
                    layout.write(cache, position, coded, at)

    def scores(self, kv_head: int, queries: Floats, positions: NDArray[Any], count: int) -> Floats:
        """Sums over the second elements of the pairs that are rotated together, plus sums over all others."""
        layout, cache = self.keys
        found = coding.decode_keys(self.format, self.tables, layout.read(cache))
        keys = np.concatenate([self._first(*self.keys), self.rope(found, np.arange(len(found)) % LANES)])[:, kv_head]
        scores, half = np.zeros((len(queries), len(keys)), F32), (self.s.rotary_dim or self.s.head_dim) // 2
        for start in range(0, count, LANES):
            tile = slice(start, start + LANES)
            turned = self.rope(queries, np.maximum(positions - start, 0))
            sums = [np.zeros((len(queries), LANES), F32) for _ in range(2)]
            for d in range(self.s.head_dim):
                second = half <= d < 2 * half
                sums[second] = fma(turned[:, d, None], keys[None, tile, d], sums[second])
            scores[:, tile] = sums[0] + sums[1]
        return scores[:, :count]

    def weighted(self, kv_head: int, weights: Floats, seen: NDArray[np.bool_]) -> Floats:
        """Weights take up the scales; the offsets, the same for all elements, are summed by themselves in 16 lanes."""
        count, (layout, cache) = seen.shape[1], self.values
        coded = layout.read(cache)
        levels = coding.value_levels(self.format, self.tables, coded)
        values = np.concatenate([self._first(*self.values), levels])[:count, kv_head]
        scales, offsets = np.ones(count, F32), np.zeros(count, F32)
        scales[LANES:] = coded.scales[: max(0, count - LANES), kv_head]
        offsets[LANES:] = coded.offsets[: max(0, count - LANES), kv_head]
        lanes = np.zeros((len(weights), LANES), F32)
        for start in range(LANES, count, LANES):
            tile = slice(start, min(start + LANES, count))
            width = tile.stop - start
            offset = np.where(seen[:, tile], offsets[None, tile], F32(0))
            lanes[:, :width] = fma(weights[:, tile], offset, lanes[:, :width])
        return _weighted_sum(weights * scales, values, seen) + lane_sum(lanes)[:, None]

    def _first(self, layout: Layout, cache: Bytes) -> Floats:
        """[16, kv_heads, head_dim]"""
        return layout.first_tile(cache)[..., : self.s.head_dim].swapaxes(0, 1).astype(F32)


_Cache = _TileCache | _TableCache


def _weighted_sum(weights: Floats, values: Floats, seen: NDArray[np.bool_]) -> Floats:
    """Sum of weights [tokens, positions] times values [positions, head_dim] over the positions that each token sees."""
    out = np.zeros((len(weights), values.shape[1]), F32)
    for position in range(seen.shape[1]):
        sums = fma(weights[:, position, None], values[None, position], out)
        out = np.where(seen[:, position, None], sums, out)
    return out
