"""What the fused operators compute around the matrix products, in NumPy: the definition, bit by bit.

Everything is float32 and rounded once an operation. Sums over a row go to 16 partial sums (element k to sum k mod 16,
ascending), which are then added pairwise: (l, l + 8), (l, l + 4), (l, l + 2), (l, l + 1).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from edge.kernels import reference
from edge.kernels.pack import Bytes
from edge.kernels.reference import Activations, Floats

LANES = 16
Norm = Literal["none", "rms", "layer"]
Cache = Literal["f32", "f16", "int8"]
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
    """What stays the same from call to call: heads, cache, rotation, window (0: all positions), softcap (0: none)."""

    heads: int
    kv_heads: int
    head_dim: int
    scale: float
    cache: Cache = "f32"
    rotary_dim: int = 0
    window: int = 0
    softcap: float = 0.0
    epsilon: float = 1e-5

    @property
    def width(self) -> int:
        return -(-self.head_dim // LANES) * LANES

    @property
    def tile_bytes(self) -> int:
        scales = LANES * 4 if self.cache == "int8" else 0
        return LANES * self.width * np.dtype(CACHE_TYPES[self.cache]).itemsize + scales

    def empty_cache(self, capacity: int) -> Bytes:
        """Room for `capacity` positions (a multiple of 16) of keys, or of values: [kv_heads, tiles, tile_bytes]."""
        return np.zeros((self.kv_heads, capacity // LANES, self.tile_bytes), np.uint8)


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
) -> Floats:
    """Attention of the tokens qkv [tokens, (heads + 2 kv_heads) head_dim] from `position` on: [tokens, heads head_dim].

    Their keys and values go into the cache, in place. cos, sin: [positions, rotary_dim / 2].
    """
    s, tokens = settings, qkv.shape[0]
    parts = qkv.reshape(tokens, s.heads + 2 * s.kv_heads, s.head_dim)
    queries, new_keys, new_values = np.split(parts, [s.heads, s.heads + s.kv_heads], axis=1)
    positions = np.arange(position, position + tokens)
    queries = _rotated(s, _normed(s, queries, q_norm), cos, sin, positions)
    new_keys = _rotated(s, _normed(s, new_keys, k_norm), cos, sin, positions)
    _write(s, keys, positions, new_keys, "keys")
    _write(s, values, positions, new_values, "values")
    first = np.maximum(0, positions - s.window + 1) if s.window else np.zeros_like(positions)
    everything = np.arange(position + tokens)
    seen = (everything >= first[:, None]) & (everything <= positions[:, None])
    out = np.empty((tokens, s.heads, s.head_dim), F32)
    for head in range(s.heads):
        kv_head = head * s.kv_heads // s.heads
        cached = _read(s, keys, kv_head, "keys"), _read(s, values, kv_head, "values")
        out[:, head] = _attend(s, queries[:, head], *cached, seen)
    return out.reshape(tokens, -1)


def _normed(s: Attention, heads: Floats, weight: Floats | None) -> Floats:
    return heads if weight is None else rms_norm(heads, weight, s.epsilon)


def _rotated(s: Attention, heads: Floats, cos: Floats | None, sin: Floats | None, positions: NDArray[Any]) -> Floats:
    """Halves of the leading rotary_dim elements: (x1, x2) -> (x1 cos - x2 sin, x2 cos + x1 sin)."""
    if cos is None or sin is None:
        return heads
    half = s.rotary_dim // 2
    x1, x2, rest = np.split(heads, [half, 2 * half], axis=-1)
    c, n = cos[positions, None], sin[positions, None]
    return np.concatenate([x1 * c - x2 * n, x2 * c + x1 * n, rest], axis=-1)


def _elements(s: Attention, cache: Bytes, kind: str) -> tuple[NDArray[Any], Floats | None]:
    """Views of a cache: elements [kv_heads, tiles, 16 positions, width], scales [kv_heads, tiles, 16] of int8."""
    element = np.dtype(CACHE_TYPES[s.cache])
    split = LANES * s.width * element.itemsize
    shape = (s.width, LANES) if kind == "keys" else (LANES, s.width)
    elements = cache[:, :, :split].view(element).reshape(*cache.shape[:2], *shape)
    scales = cache[:, :, split:].view(F32) if s.cache == "int8" else None
    return elements.swapaxes(2, 3) if kind == "keys" else elements, scales


def _write(s: Attention, cache: Bytes, positions: NDArray[Any], heads: Floats, kind: str) -> None:
    elements, scales = _elements(s, cache, kind)
    padded = np.pad(heads, [(0, 0), (0, 0), (0, s.width - s.head_dim)])
    for position, token in zip(positions, padded, strict=True):
        place = (slice(None), position // LANES, position % LANES)
        if scales is None:
            elements[place] = token
        else:
            elements[place], scales[place] = reference.quantize_activations(token)


def _read(s: Attention, cache: Bytes, kv_head: int, kind: str) -> tuple[Floats, Floats | None]:
    """All positions of one head: elements [positions, head_dim] as float32, and their scales."""
    elements, scales = _elements(s, cache, kind)
    heads = elements[kv_head].reshape(-1, s.width)[:, : s.head_dim].astype(F32)
    return heads, None if scales is None else scales[kv_head].reshape(-1)


def _attend(
    s: Attention,
    queries: Floats,
    keys: tuple[Floats, Floats | None],
    values: tuple[Floats, Floats | None],
    seen: NDArray[np.bool_],
) -> Floats:
    """One head: queries [tokens, head_dim] over the positions that `seen` [tokens, positions] says."""
    count = seen.shape[1]
    scores = np.zeros(seen.shape, F32)
    for d in range(s.head_dim):
        scores = fma(queries[:, d, None], keys[0][None, :count, d], scores)
    if keys[1] is not None:
        scores = scores * keys[1][:count]
    scores = scores * F32(s.scale)
    if s.softcap:
        scores = F32(s.softcap) * tanh(scores / F32(s.softcap))
    scores = np.where(seen, scores, F32(-np.inf))
    weights = np.where(seen, exp(scores - scores.max(axis=1, keepdims=True)), F32(0))
    total = lane_sum(weights)
    if values[1] is not None:
        weights = weights * values[1][:count]
    out = np.zeros(queries.shape, F32)
    for position in range(count):
        sums = fma(weights[:, position, None], values[0][None, position], out)
        out = np.where(seen[:, position, None], sums, out)
    return out * (F32(1) / total)[:, None]
