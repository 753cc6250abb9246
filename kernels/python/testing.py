"""Random compressed matrices and cache tables: what the kernels' tests run on, here and on devices."""

from __future__ import annotations

import numpy as np

from edge.core.encoding import Affine, Codebook, Compressed, GroupMixed, Sparse
from edge.core.weight import Array, CompressedTensor
from edge.kernels.packed_header import FORMAT, HEADER_BYTES, Bytes, Header, checksum
from edge.kernels.reference_ops import Attention

EVERY_LAYOUT: tuple[Compressed, ...] = (
    Affine(2, 128),
    Affine(3, 64),
    Affine(4, 32),
    Affine(4, 64, "zero_point"),
    Affine(8, 0),
    Affine(3, 32, "half_integer"),
    Codebook(1),
    Codebook(1, table_rows=1, group_size=32),
    Codebook(4),
    Codebook(3, group_size=0, scale="row"),
    Codebook(4, entry="int16"),
    Codebook(2, table_rows=20),
    Codebook(4, table_columns=128, scale="row"),
    Codebook(2, table_rows=1, group_size=32),
    Codebook(3, table_rows=1, entry="int16"),
    Codebook(4, table_rows=1, table_columns=64, group_size=32),
    Codebook(4, dim=2),
    Codebook(2, dim=2, group_size=0),
    Codebook(3, dim=2, table_rows=8, table_columns=128, scale="row"),
    Codebook(4, dim=4, group_size=128),
    Codebook(2, dim=4, group_size=0, scale="row"),
    Codebook(3, dim=4, table_rows=4, group_size=128),
    GroupMixed(64, 1),
    GroupMixed(32, 0, "zero_point"),
    GroupMixed(32, 3, scale="second_order"),
    GroupMixed(128, 2, "zero_point", "second_order"),
    GroupMixed(32, 2, bits=1),
    GroupMixed(64, 1, scale="second_order", bits=1),
    Sparse("16x8", 4, 64),
    Sparse("16x8", 8, 0),
    Sparse("16x4", 4, 32),
    Sparse("16x4", 8, 128),
    Sparse("2:4", 4, 64),
    Sparse("2:4", 8, 0),
)
"""One encoding for each way in which packed weights are laid out; all fit a matrix of 132 columns or more."""


def random_tensor(rows: int, columns: int, encoding: Compressed, seed: int = 0) -> CompressedTensor:
    """Codes and tables over their whole range, scales of both signs and 0, some blocks of 16 rows all pruned."""
    random = np.random.default_rng(seed)
    parts = {
        name: _scales(random, part.shape) if part.dtype == np.float16 else _integers(random, *part)
        for name, part in encoding.layout(rows, columns).items()
    }
    if isinstance(encoding, Codebook) and encoding.entry == "int8":
        parts["tables"] = np.maximum(parts["tables"], -127)
    if isinstance(encoding, GroupMixed):
        _limit_low_groups(random, encoding, parts)
    if isinstance(encoding, Sparse):
        _prune(random, encoding, parts)
    return CompressedTensor("w", (rows, columns), encoding, parts)


def random_cache_tables(s: Attention, seed: int = 0) -> dict[str, Array]:
    """key_table and value_table of a quantized cache: uneven levels, others for every channel; 8 bits linear."""
    random, channels = np.random.default_rng(seed), (s.kv_heads, s.head_dim)
    if s.key_bits == 8:
        scales = random.uniform(2.5 / 127, 3 / 127, channels)
        keys = np.stack([scales, random.normal(0, 0.25, channels)])[..., None].astype(np.float32)
    else:
        keys = with_bounds(np.sort(random.normal(0, 1.3, (*channels, 1 << s.key_bits))))
    values = {} if s.value_bits == 8 else {"value_table": with_bounds(np.linspace(-1, 1, 1 << s.value_bits) ** 3)}
    return {"key_table": keys, **values}


def with_bounds(levels: Array) -> Array:
    """Ascending levels [.., n] and the middles between them, as the operator has them: [2, .., n]."""
    end = np.full((*levels.shape[:-1], 1), np.inf)
    return np.stack([levels, np.append((levels[..., 1:] + levels[..., :-1]) / 2, end, axis=-1)]).astype(np.float32)


def with_header(blob: Bytes, **fields: int | bytes) -> Bytes:
    """A copy with these fields of the header changed, and the checksum that belongs to it: what deep checks get."""
    copy = blob.copy()
    header = Header(*FORMAT.unpack(copy[:HEADER_BYTES].tobytes()))._replace(**fields)
    copy[:HEADER_BYTES] = np.frombuffer(FORMAT.pack(*header), np.uint8)
    header = header._replace(checksum=checksum(copy))
    copy[:HEADER_BYTES] = np.frombuffer(FORMAT.pack(*header), np.uint8)
    return copy


def _scales(random: np.random.Generator, shape: tuple[int, ...]) -> Array:
    scales = random.standard_normal(shape) * np.exp2(random.integers(-14, 1, shape))
    scales[random.random(shape) < 0.05] = 0
    return scales.astype(np.float16)


def _integers(random: np.random.Generator, shape: tuple[int, ...], dtype: np.dtype[np.generic], bits: int) -> Array:
    limits = np.iinfo(dtype)
    top = 1 << bits if bits else int(limits.max) + 1
    return random.integers(limits.min, top, shape, dtype=dtype)


def _limit_low_groups(random: np.random.Generator, encoding: GroupMixed, parts: dict[str, Array]) -> None:
    """Choose the groups at more bits; elsewhere codes and zero points keep their low bits."""
    tiles, groups = parts["high"].shape
    order = random.permuted(np.tile(np.arange(groups), (tiles, 1)), axis=1)
    parts["high"] = (order < encoding.high_groups).astype(np.uint8)
    rows, columns = parts["codes"].shape
    keep = np.where(encoding.high_by_row(parts["high"], rows), 0xFF, (1 << encoding.bits) - 1).astype(np.uint8)
    parts["codes"] &= np.repeat(keep, encoding.group_size, axis=1)[:, :columns]
    if "zero_points" in parts:
        parts["zero_points"] &= keep


def _prune(random: np.random.Generator, encoding: Sparse, parts: dict[str, Array]) -> None:
    """Choose what is kept; pruned codes are the zero."""
    shape = parts["mask"].shape
    if encoding.pattern == "2:4":
        order = random.permuted(np.tile(np.arange(4), (parts["mask"].size // 4, 1)), axis=1)
        mask = (order < 2).reshape(shape)
    else:
        mask = random.random(shape) < random.random((shape[0], 1))  # from nearly empty to nearly full
        mask[random.random(shape[0]) < 0.1] = False
    parts["mask"] = mask.astype(np.uint8)
    parts["codes"][~encoding.kept(parts)] = encoding.symmetric_zero
