"""KVQuant: the keys and values that a model remembers in 2, 3, 4 or 8 bits; the weights stay as they are.

Hooper, Kim, Mohammadzadeh, Mahoney, Shao, Keutzer, Gholami: "KVQuant: Towards 10 Million Context Length LLM Inference
with KV Cache Quantization", NeurIPS 2024, arXiv:2401.18079. `edge.core.cache` has the format.

- Keys are coded per channel and before RoPE (3.1, 3.2), values per token and head.
- Levels are not uniform (nuq, 3.3): k-means weighted by squared gradients, which are the diagonal of the Fisher
  information; here with the model's own predictions for labels. Keys get levels per channel, where the paper shares a
  table between all channels of a layer; values one table per layer, over their range by token and head.
- A share of each vector, the outliers, stays in half precision (3.4): here the same number for every token and head,
  of keys those that their level misses most, of values the largest.
- The first tokens stay in half precision (attention sinks, 3.5).
- Q-Norm (3.6): levels are stretched until mean and deviation of what they stand for are those of the original.

The gradients come from one walk forwards and one backwards with a layer in memory at a time. The step comes after all
others, has no rules, and sees the weights as they left them.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, cast

import msgspec
import numpy as np
import torch

from edge.compress.clustering.scalar_kmeans import scalar_kmeans
from edge.compress.finish import Finished
from edge.compress.methods._cache_walk import CacheWalk, Samples, Tensors
from edge.core.cache import (
    BITS,
    SINK_TOKENS,
    CacheFormat,
    CacheTables,
    bits_per_element,
    decode_keys,
    decode_values,
    encode_keys,
    encode_values,
    normalized_values,
)
from edge.core.console import Ticker, info, progress
from edge.core.errors import UsageError
from edge.models.checkpoint import Checkpoint
from edge.models.spec import DecoderSpec, Layer, cache_path

CALIBRATED = STANDS_ALONE = True
STATE = ".kv_cache"
MARGIN = 1.25  # of 8 bits over the range that was seen: they have levels to spare, and what lies outside is clipped
OUTLIER_ROUNDS = 3  # levels, then which elements they miss most, and again
Bits = Literal[2, 3, 4, 8]


class Options(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """bits: of keys and of values, unless key_bits or value_bits says otherwise. outliers: share of a head's elements.

    mixed: layers get 2, 3 or 4 bits, for keys and values apart, so that the estimated damage is least and the mean is
    at most `bits`. nuq: levels by k-means, else uniform ones. fisher: power of the squared gradients that weight the
    k-means: 1 is the paper's, 0 no weights; they are noisy, and their root did best. q_norm: by default at 2 bits.
    """

    bits: Bits = 3
    key_bits: Bits | None = None
    value_bits: Bits | None = None
    outliers: float = 0.01
    mixed: bool = False
    nuq: bool = True
    fisher: float = 0.5
    q_norm: bool | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.outliers <= 0.1:
            raise ValueError("`outliers` lies in [0, 0.1]")
        if not 0 <= self.fisher <= 1:
            raise ValueError("`fisher` lies in [0, 1]")
        if self.mixed and (self.bits == 8 or self.key_bits or self.value_bits):
            raise ValueError("`mixed` goes with `bits` of 2, 3 or 4 alone")

    def outlier_count(self, head_dim: int) -> int:
        """Outliers of a head: at least one unless none are asked for."""
        return max(1, round(self.outliers * head_dim)) if self.outliers else 0


@dataclass(frozen=True)
class Side:
    """Constants of a layer's keys or values at some bits, and what they cost: estimated nats per token."""

    levels: torch.Tensor
    bounds: torch.Tensor
    damage: float


def finish(finished: Finished, options: Options) -> None:
    """Find the constants of every layer and write them beside the weights."""
    if finished.has_cache:
        return
    checkpoint, folder = finished.compressed_checkpoint(), finished.folder / STATE
    folder.mkdir(exist_ok=True)
    spec = cast(DecoderSpec, checkpoint.spec)
    with progress("Calibrating the KV cache", 2 * len(spec.layers)) as tick:
        formats, tables = calibrate(checkpoint, options, finished.windows, folder, finished.seed, tick)
    width = spec.layers[0].attention.head_dim
    info(f"KV cache: {bits_per_element(formats, width, 1024):.2f} bits per element of 1024 tokens, all included")
    tensors = {}
    for layer, constants in zip(spec.layers, tables, strict=True):
        path = cache_path(layer.attention)
        tensors |= {f"{path}.{part}": torch.from_numpy(values) for part, values in vars(constants).items()}
    finished.add_cache(formats, tensors)
    shutil.rmtree(folder)


def calibrate(
    checkpoint: Checkpoint, options: Options, windows: torch.Tensor, folder: Path, seed: int, tick: Ticker
) -> tuple[list[CacheFormat], list[CacheTables]]:
    """Formats and constants of every layer, from token ids `windows` [samples, tokens]. `folder` keeps what is done."""
    if windows.shape[1] <= SINK_TOKENS:
        hint = f"windows need more than the {SINK_TOKENS} tokens that are not quantized: a longer `sequence_length`"
        raise UsageError("kv_cache.windows", f"windows of {windows.shape[1]} tokens are too short", hint)
    spec = cast(DecoderSpec, checkpoint.spec)
    for layer in spec.layers:
        _format(layer, options, options.bits, options.bits).layout(
            layer.attention.num_kv_heads, layer.attention.head_dim
        )
    walk = CacheWalk(checkpoint, windows, folder, seed)
    found = walk.run(lambda layer, samples: _fit(layer, samples, options), tick)
    chosen = _chosen_bits(found, options)
    formats = [_format(layer, options, *bits) for layer, bits in zip(spec.layers, chosen, strict=True)]
    return formats, [_tables(tensors, *bits) for tensors, bits in zip(found, chosen, strict=True)]


def _format(layer: Layer, options: Options, key_bits: int, value_bits: int) -> CacheFormat:
    return CacheFormat(key_bits, value_bits, options.outlier_count(layer.attention.head_dim))


def _widths(options: Options) -> list[tuple[int, int]]:
    """Bits of keys and values that are tried together."""
    if options.mixed:
        return [(bits, bits) for bits in BITS if bits != 8]
    return [(options.key_bits or options.bits, options.value_bits or options.bits)]


def _fit(layer: Layer, samples: Samples, options: Options) -> Tensors:
    """Constants of a layer for all widths: `keys.3.levels`, `keys.3.bounds`, `keys.3.damage` and so on."""
    tensors: Tensors = {}
    for key_bits, value_bits in _widths(options):
        format = _format(layer, options, key_bits, value_bits)
        for name, side in (
            ("keys", fit_keys(samples, format, options)),
            ("values", fit_values(samples, format, options)),
        ):
            stem = f"{name}.{key_bits if name == 'keys' else value_bits}"
            tensors |= {f"{stem}.levels": side.levels, f"{stem}.bounds": side.bounds}
            tensors[f"{stem}.damage"] = torch.tensor(side.damage, dtype=torch.float64)
    return tensors


def _tables(tensors: Tensors, key_bits: int, value_bits: int) -> CacheTables:
    parts = [tensors[f"{stem}.{part}"] for stem in (f"keys.{key_bits}", f"values.{value_bits}") for part in _PARTS]
    return CacheTables(*(part.numpy() for part in parts))


_PARTS = ("levels", "bounds")


def _chosen_bits(found: Sequence[Tensors], options: Options) -> list[tuple[int, int]]:
    """Bits of keys and values of every layer."""
    if not options.mixed:
        return _widths(options) * len(found)
    sides = [(layer, name) for layer in range(len(found)) for name in ("keys", "values")]
    chosen = dict.fromkeys(sides, 2)

    def gain(side: tuple[int, str]) -> float:
        layer, name = side
        now, more = (float(found[layer][f"{name}.{bits}.damage"]) for bits in (chosen[side], chosen[side] + 1))
        return now - more

    # A step costs one bit wherever it is taken, and each saves less than the one before: the greedy choice is the best.
    for _ in range((options.bits - 2) * len(sides)):
        open_sides = [side for side in sides if chosen[side] < 4]
        chosen[max(open_sides, key=gain)] += 1
    return [(chosen[layer, "keys"], chosen[layer, "values"]) for layer in range(len(found))]


def fit_keys(samples: Samples, format: CacheFormat, options: Options) -> Side:
    """Levels of every channel, from keys before RoPE."""
    keys = samples.keys.numpy()
    weights = _weights(samples.key_gradients, samples.key_gradients.square().mean(0), options.fisher)
    kept = torch.ones_like(samples.keys)
    for _ in range(OUTLIER_ROUNDS if format.outliers else 1):
        levels = _key_levels(samples.keys, weights, kept, format, options)
        bounds = levels[..., :0] if format.key_bits == 8 else _middles(levels)
        tables = CacheTables(levels.numpy(), bounds.numpy(), *_NO_VALUES)
        coded = encode_keys(format, tables, keys)
        kept = torch.ones_like(samples.keys).scatter_(-1, torch.from_numpy(coded.index).long(), 0.0)
    decoded = torch.from_numpy(decode_keys(format, tables, coded))
    if _normed(options, format.key_bits):
        levels = _stretched(levels, samples.keys, decoded, kept)
        tables = CacheTables(levels.numpy(), bounds.numpy(), *_NO_VALUES)
        decoded = torch.from_numpy(decode_keys(format, tables, encode_keys(format, tables, keys)))
    return Side(levels, bounds, _damage(samples.keys - decoded, samples.key_gradients))


_NO_VALUES = (np.zeros(0, np.float32), np.zeros(0, np.float32))


def _key_levels(
    keys: torch.Tensor, weights: torch.Tensor, kept: torch.Tensor, format: CacheFormat, options: Options
) -> torch.Tensor:
    """[heads, head_dim, n] of keys [tokens, heads, head_dim]; `kept` is 0 for outliers. 8 bits: scales and offsets."""
    heads, width = keys.shape[1:]
    if format.key_bits == 8 or not options.nuq:
        outside = torch.where(kept > 0, keys, torch.nan)
        low, high = outside.nan_to_num(nan=torch.inf).amin(0), outside.nan_to_num(nan=-torch.inf).amax(0)
        if format.key_bits == 8:
            return torch.stack([((high - low) * (MARGIN / 254)).clamp_min(2**-24), (high + low) / 2], -1)
        return low[..., None] + (high - low)[..., None] * torch.linspace(0, 1, 1 << format.key_bits)
    points, weighted = (x.permute(1, 2, 0).flatten(0, 1) for x in (keys, weights * kept))
    return scalar_kmeans(points, weighted, 1 << format.key_bits).view(heads, width, -1)


def fit_values(samples: Samples, format: CacheFormat, options: Options) -> Side:
    """One table of a layer, over the half range of every token and head."""
    values = samples.values.numpy()
    if format.value_bits == 8:
        levels = bounds = torch.zeros(0)
    else:
        normalized = normalized_values(format, values)
        y, scales = torch.from_numpy(normalized.y), torch.from_numpy(normalized.scales.astype(np.float32))
        kept = torch.ones_like(y).scatter_(-1, torch.from_numpy(normalized.index).long(), 0.0)
        weights = _weights(samples.value_gradients, samples.value_gradients.square().mean(), options.fisher)
        weights = weights * scales[..., None].square() * kept
        if options.nuq:
            levels = scalar_kmeans(y.flatten()[None], weights.flatten()[None], 1 << format.value_bits)[0]
        else:
            levels = torch.linspace(-1, 1, 1 << format.value_bits)
        bounds = _middles(levels)
        if _normed(options, format.value_bits):
            decoded = levels[torch.bucketize(y, bounds)]
            everything = (x.reshape(-1, 1) for x in (y, decoded, kept))
            levels = _stretched(levels[None], *everything)[0]
    tables = CacheTables(*_NO_KEYS, levels.numpy(), bounds.numpy())
    decoded = torch.from_numpy(decode_values(format, tables, encode_values(format, tables, values)))
    return Side(levels, bounds, _damage(samples.values - decoded, samples.value_gradients))


_NO_KEYS = (np.zeros((0, 0, 0), np.float32), np.zeros((0, 0, 0), np.float32))


def _weights(gradients: torch.Tensor, mean: torch.Tensor, power: float) -> torch.Tensor:
    """Squared gradients in units of their mean, to a power; a trace for all, as a channel may have none."""
    return (gradients.square() / mean.clamp_min(1e-30)).pow(power) + 1e-6


def _middles(levels: torch.Tensor) -> torch.Tensor:
    return (levels[..., 1:] + levels[..., :-1]) / 2


def _normed(options: Options, bits: int) -> bool:
    return bits == 2 if options.q_norm is None else options.q_norm and bits < 8


def _stretched(levels: torch.Tensor, x: torch.Tensor, decoded: torch.Tensor, kept: torch.Tensor) -> torch.Tensor:
    """Q-Norm: levels [.., n] such that decoded [tokens, ..] gets mean and deviation of x over what is kept."""
    count = kept.sum(0)
    means = [(part * kept).sum(0) / count for part in (x, decoded)]
    spreads = [
        ((part - mean).square() * kept).sum(0).div(count).sqrt() for part, mean in zip((x, decoded), means, strict=True)
    ]
    stretch = torch.where(spreads[1] > 0, spreads[0] / spreads[1], 1.0)
    return (levels - means[1][..., None]) * stretch[..., None] + means[0][..., None]


def _damage(error: torch.Tensor, gradients: torch.Tensor) -> float:
    """Half the expected squared change of the log likelihood, in nats per token, errors taken for independent."""
    return 0.5 * float((error * gradients).square().sum(dtype=torch.float64)) / len(error)
