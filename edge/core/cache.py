"""The quantized KV cache: which bits keys and values become, and what those stand for. The definition of truth.

After KVQuant (Hooper et al., NeurIPS 2024, arXiv:2401.18079). Keys are coded before RoPE, with levels of their own per
channel, constant from calibration. Values are coded with one table per layer and with an offset and a scale per token
and head, found when the token comes. A fixed number of outliers per token and head stays in half precision, and so do
the first tokens. A token is coded by itself: coding a text at once or token by token gives the same bits.

All arithmetic is float32, rounded after every operation. H: key and value heads, D: head_dim, n: 2**bits.
Stored per token and head: keys D * key_bits, values D * value_bits + 32, and 24 bits per outlier of each.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from edge.core.errors import EdgeError, UsageError
from edge.core.parts import Floats

F32 = np.float32
BITS = (2, 3, 4, 8)
SINK_TOKENS = 16
"""Positions that keep keys and values as float16: the first tile of the kernels' caches, attention sinks among them."""
MAX_HEAD_DIM = 256  # an outlier's index has 8 bits
MAX_OUTLIERS = 4
OUTLIER_BITS, SCALE_BITS = 8 + 16, 16 + 16
SMALLEST_SCALE = F32(2**-14)  # float16's smallest normal number


class CacheFormat(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """key_bits, value_bits: 2, 3, 4 or 8 per code. outliers: per token and head, of keys and of values, 0 to 4."""

    key_bits: int = 3
    value_bits: int = 3
    outliers: int = 1

    def __post_init__(self) -> None:
        for bits in (self.key_bits, self.value_bits):
            if bits not in BITS:
                raise UsageError("cache.bits", f"a cache of {bits} bits is not served", "use 2, 3, 4 or 8 bits")
        if not 0 <= self.outliers <= MAX_OUTLIERS:
            hint = f"use 0 to {MAX_OUTLIERS} per token and head"
            raise UsageError("cache.outliers", f"{self.outliers} outliers are not served", hint)

    def token_bits(self, head_dim: int) -> int:
        """Stored bits of one token's key and value of one head."""
        return head_dim * (self.key_bits + self.value_bits) + SCALE_BITS + 2 * OUTLIER_BITS * self.outliers

    def layout(self, heads: int, head_dim: int) -> dict[str, tuple[int, ...]]:
        """Shapes of the constants of a layer. Raises `UsageError` for heads that are too wide."""
        if not MAX_OUTLIERS < head_dim <= MAX_HEAD_DIM:
            hint = f"up to {MAX_HEAD_DIM} are; this model's cache stays in float, half or int8"
            raise UsageError("cache.head_dim", f"heads of {head_dim} columns are not served", hint)
        levels, bounds = (2, 0) if self.key_bits == 8 else (1 << self.key_bits, (1 << self.key_bits) - 1)
        table = 0 if self.value_bits == 8 else 1 << self.value_bits
        return {
            "key_levels": (heads, head_dim, levels),
            "key_bounds": (heads, head_dim, bounds),
            "value_levels": (table,),
            "value_bounds": (max(0, table - 1),),
        }


def bits_per_element(formats: list[CacheFormat], head_dim: int, tokens: int) -> float:
    """Stored bits per element of a cache that holds `tokens` positions, outliers, scales and first tokens included."""
    coded = sum(layer.token_bits(head_dim) for layer in formats) / (2 * head_dim * len(formats))
    sinks = min(SINK_TOKENS, tokens)
    return (coded * (tokens - sinks) + 16 * sinks) / tokens


@dataclass(frozen=True)
class CacheTables:
    """A layer's constants, float32.

    key_levels [H, D, n], key_bounds [H, D, n - 1]: what codes stand for, and above which x a code begins, ascending.
    At 8 bits key_levels [H, D, 2] are scale and offset, without bounds.
    value_levels [n], value_bounds [n - 1]: the same in half ranges of a token's head, empty at 8 bits.
    """

    key_levels: Floats
    key_bounds: Floats
    value_levels: Floats
    value_bounds: Floats

    def check(self, name: str, format: CacheFormat) -> None:
        """Raise `EdgeError` unless shapes and values are what `format` asks for."""
        heads, head_dim = self.key_levels.shape[:2] if self.key_levels.ndim == 3 else (0, 0)
        for part, shape in format.layout(heads, head_dim).items():
            values: Floats = getattr(self, part)
            if values.shape != shape or values.dtype != F32:
                raise _damaged(f"{name}: {part} is {values.dtype}{list(values.shape)}, not float32{list(shape)}")
            if not np.isfinite(values).all():
                raise _damaged(f"{name}: {part} holds NaN or infinite values")
            scales = part == "key_levels" and format.key_bits == 8
            if (values[..., 0] <= 0).any() if scales else (np.diff(values) < 0).any():
                raise _damaged(
                    f"{name}: {part} {'has a scale that is not above zero' if scales else 'does not ascend'}"
                )


@dataclass(frozen=True)
class CodedKeys:
    """Keys of tokens: codes uint8 [tokens, H, D]; outliers' index uint8 and value float16 [tokens, H, outliers]."""

    codes: NDArray[np.uint8]
    index: NDArray[np.uint8]
    outliers: NDArray[np.float16]


@dataclass(frozen=True)
class CodedValues(CodedKeys):
    """Values of tokens, and their float16 scale and offset [tokens, H]."""

    scales: NDArray[np.float16]
    offsets: NDArray[np.float16]


@dataclass(frozen=True)
class NormalizedValues:
    """Values as y float32 [tokens, H, D]: offset + scale * y. index: outliers, [tokens, H, outliers]."""

    y: Floats
    index: NDArray[np.uint8]
    scales: NDArray[np.float16]
    offsets: NDArray[np.float16]


def encode_keys(format: CacheFormat, tables: CacheTables, keys: Floats) -> CodedKeys:
    """Keys before RoPE (after a norm per head) [tokens, H, D] as codes: how many bounds lie below x.

    At 8 bits: the nearest integer, half to even, to (x - offset) * (1 / scale), within +-127, plus 128. Outliers are
    the largest |x - level|, the largest first; of equal ones the first.
    """
    if format.key_bits == 8:
        scale, offset = tables.key_levels[..., 0], tables.key_levels[..., 1]
        codes = _integers((keys - offset) * (F32(1) / scale))
    else:
        codes = _count_below(keys, tables.key_bounds)
    index = _largest(np.abs(keys - _key_levels(format, tables, codes)), format.outliers)
    return CodedKeys(codes, index, _half(np.take_along_axis(keys, index.astype(np.intp), -1)))


def decode_keys(format: CacheFormat, tables: CacheTables, coded: CodedKeys) -> Floats:
    """Keys before RoPE [tokens, H, D]: the codes' levels (8 bits: scale * (code - 128) + offset), and the outliers."""
    return _with_outliers(_key_levels(format, tables, coded.codes), coded)


def normalized_values(format: CacheFormat, values: Floats) -> NormalizedValues:
    """Values [tokens, H, D] in half ranges of their head.

    Outliers are the largest |x|. Of the rest, low and high are the extremes: offset = half(high + low), scale =
    half(high - low), both times 0.5, the scale at least 2**-14 (8 bits: divided by 127 before it is rounded).
    y = (x - offset) * (1 / scale).
    """
    index = _largest(np.abs(values), format.outliers)
    low, high = _extremes(values, index)
    offsets, half_range = _half((high + low) * F32(0.5)), (high - low) * F32(0.5)
    if format.value_bits == 8:
        half_range = half_range * F32(1 / 127)
    scales = np.maximum(_half(half_range), SMALLEST_SCALE.astype(np.float16))
    y = (values - offsets.astype(F32)[..., None]) * (F32(1) / scales.astype(F32))[..., None]
    return NormalizedValues(y, index, scales, offsets)


def encode_values(format: CacheFormat, tables: CacheTables, values: Floats) -> CodedValues:
    """Values [tokens, H, D] as codes: how many bounds lie below y, see `normalized_values`.

    At 8 bits: the nearest integer to y within +-127, plus 128. An outlier is y as float16.
    """
    n = normalized_values(format, values)
    codes = _integers(n.y) if format.value_bits == 8 else _count_below(n.y, tables.value_bounds)
    outliers = _half(np.take_along_axis(n.y, n.index.astype(np.intp), -1))
    return CodedValues(codes, n.index, outliers, n.scales, n.offsets)


def decode_values(format: CacheFormat, tables: CacheTables, coded: CodedValues) -> Floats:
    """Values [tokens, H, D]: scale * y + offset."""
    y = value_levels(format, tables, coded)
    return coded.scales.astype(F32)[..., None] * y + coded.offsets.astype(F32)[..., None]


def value_levels(format: CacheFormat, tables: CacheTables, coded: CodedValues) -> Floats:
    """y [tokens, H, D]: values before their scale and offset, the outliers among them."""
    y = coded.codes.astype(F32) - F32(128) if format.value_bits == 8 else tables.value_levels[coded.codes]
    return _with_outliers(y, coded)


def _key_levels(format: CacheFormat, tables: CacheTables, codes: NDArray[np.uint8]) -> Floats:
    """What codes [tokens, H, D] stand for."""
    levels = tables.key_levels
    if format.key_bits == 8:
        out: Floats = levels[..., 0] * (codes.astype(F32) - F32(128)) + levels[..., 1]
        return out
    first = np.arange(levels[..., 0].size).reshape(levels.shape[:2]) * levels.shape[2]
    looked_up: Floats = levels.reshape(-1)[first + codes]
    return looked_up


def _count_below(x: Floats, bounds: Floats) -> NDArray[np.uint8]:
    """How many of the bounds [.., n - 1] lie below each x [tokens, ..]."""
    codes = np.zeros(x.shape, np.uint8)
    for place in range(bounds.shape[-1]):
        codes += x > bounds[..., place]
    return codes


def _integers(x: Floats) -> NDArray[np.uint8]:
    """The nearest integers within +-127, plus 128."""
    return (np.clip(np.rint(x), -127, 127) + 128).astype(np.uint8)


def _largest(x: Floats, count: int) -> NDArray[np.uint8]:
    """Indices of the `count` largest along the last axis, the largest first; of equal ones the first."""
    index = np.empty((*x.shape[:-1], count), np.uint8)
    left = x.copy() if count > 1 else x
    for place in range(count):
        index[..., place] = left.argmax(-1)
        if place + 1 < count:
            np.put_along_axis(left, index[..., place, None].astype(np.intp), F32(-1), -1)
    return index


def _extremes(x: Floats, without: NDArray[np.uint8]) -> tuple[Floats, Floats]:
    """The least and the greatest element of every head, those at `without` left out."""
    left_out = without.astype(np.intp)
    low, high = x.copy(), x.copy()
    np.put_along_axis(low, left_out, F32(np.inf), -1)
    np.put_along_axis(high, left_out, F32(-np.inf), -1)
    return low.min(-1), high.max(-1)


def _with_outliers(x: Floats, coded: CodedKeys) -> Floats:
    np.put_along_axis(x, coded.index.astype(np.intp), coded.outliers.astype(F32), -1)
    return x


def _half(x: Any) -> NDArray[np.float16]:
    """Rounded to float16, what is too large to its largest numbers."""
    half: NDArray[np.float16] = np.clip(x, F32(-65504), F32(65504)).astype(np.float16)
    return half


def _damaged(message: str) -> EdgeError:
    return EdgeError("cache.tables", message, "the file is damaged or was written by another program")
