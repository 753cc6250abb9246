"""The quantized cache of the attention operator: where `edge.core.cache`'s codes are in its bytes.

The first tile of 16 positions is fp16, keys rotated, as in the cache of type f16. Every other tile of one head has

    codes     keys: head_dim streams of 16 positions; values: 16 positions of ceil(head_dim / 16) streams. A stream is
              16 codes one after the other, the lowest bits first; 8 bits as int8
    scale     fp16 [16], values only
    offset    fp16 [16], values only
    outlier   fp16 [16, outliers]
    index     u8 [16, outliers]
    padding   to a multiple of 4 bytes, and at least 4 bytes after the codes
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from edge.core.cache import SINK_TOKENS, CacheTables, CodedKeys, CodedValues
from edge.core.parts import Floats

LANES = 16
Bytes = NDArray[np.uint8]
Part = Literal["keys", "values"]
Constants = tuple[Floats, Floats | None]


def constants_of(tables: CacheTables) -> Constants:
    """The operator's inputs key_table [2, kv_heads, head_dim, levels] and value_table [2, levels]: levels, then the
    bounds between them with one more that isn't used; of 8 bits [2, kv_heads, head_dim, 1], scale and offset, and None.
    """
    if tables.key_bounds.shape[-1] == 0:
        keys = np.ascontiguousarray(np.moveaxis(tables.key_levels, -1, 0)[..., None])
    else:
        keys = np.stack([tables.key_levels, _filled(tables.key_bounds)])
    if tables.value_levels.size == 0:
        return keys, None
    return keys, np.stack([tables.value_levels, _filled(tables.value_bounds)])


def tables_of(key_table: Floats, value_table: Floats | None) -> CacheTables:
    """The other way round."""
    none = np.empty(0, np.float32)
    levels, bounds = key_table[0], key_table[1, ..., :-1]
    if key_table.shape[-1] == 1:
        levels = np.moveaxis(key_table[..., 0], 0, -1)
    values = (none, none) if value_table is None else (value_table[0], value_table[1, :-1])
    return CacheTables(levels, bounds, *values)


def _filled(bounds: Floats) -> Floats:
    return np.concatenate([bounds, np.full((*bounds.shape[:-1], 1), np.inf, np.float32)], axis=-1)


@dataclass(frozen=True)
class Layout:
    """Where everything is in the tiles of keys, or of values."""

    part: Part
    head_dim: int
    bits: int
    outliers: int

    @property
    def streams(self) -> tuple[int, int]:
        """How the codes of a tile are arranged: [rows, streams of 16 codes a row]."""
        return (self.head_dim, 1) if self.part == "keys" else (LANES, -(-self.head_dim // LANES))

    @property
    def fields(self) -> np.dtype[Any]:
        """A tile as a record."""
        scales = [("scale", "<f2", LANES), ("offset", "<f2", LANES)] if self.part == "values" else []
        kept = [("outlier", "<f2", (LANES, self.outliers)), ("index", "u1", (LANES, self.outliers))]
        record = np.dtype([("codes", "u1", (*self.streams, 2 * self.bits)), *scales, *kept])
        used = max(record.itemsize, 4 + 2 * self.bits * self.streams[0] * self.streams[1])
        return np.dtype([*record.descr, ("padding", "u1", -(-used // 4) * 4 - record.itemsize)])

    @property
    def first_bytes(self) -> int:
        """Of the first tile, in fp16."""
        return SINK_TOKENS * -(-self.head_dim // LANES) * LANES * 2

    def head_bytes(self, capacity: int) -> int:
        """Bytes that hold `capacity` positions (a multiple of 16) of one head."""
        return self.first_bytes + (capacity // LANES - 1) * self.fields.itemsize

    def first_tile(self, cache: Bytes) -> NDArray[np.float16]:
        """The first 16 positions of a cache [kv_heads, head_bytes]: a view [kv_heads, 16, width]."""
        width = -(-self.head_dim // LANES) * LANES
        halves = cache[:, : self.first_bytes].view(np.float16)
        if self.part == "values":
            return halves.reshape(-1, LANES, width)
        return halves.reshape(-1, width, LANES).swapaxes(1, 2)

    def tiles(self, cache: Bytes) -> Any:
        """The others: a view [kv_heads, tiles] of records."""
        return cache[:, self.first_bytes :].view(self.fields)

    def write(self, cache: Bytes, position: int, coded: CodedKeys, at: int) -> None:
        """Put token `at` of what was coded to a position of 16 or more."""
        tiles, lane = self.tiles(cache)[:, position // LANES - 1], position % LANES
        codes = coded.codes[at] ^ self._sign
        if self.part == "keys":
            stream = np.unpackbits(tiles["codes"], axis=-1, bitorder="little").reshape(*codes.shape, LANES, self.bits)
            stream[:, :, lane] = _bits(codes, self.bits)
            tiles["codes"] = _packed(stream)[:, :, None]
        else:
            padded = np.pad(codes, [(0, 0), (0, -self.head_dim % LANES)])
            stream = _bits(padded, self.bits).reshape(len(codes), -1, LANES, self.bits)
            tiles["codes"][:, lane] = _packed(stream)
        if isinstance(coded, CodedValues):
            tiles["scale"][:, lane], tiles["offset"][:, lane] = coded.scales[at], coded.offsets[at]
        tiles["outlier"][:, lane], tiles["index"][:, lane] = coded.outliers[at], coded.index[at]

    def read(self, cache: Bytes) -> CodedValues:
        """All positions from 16 on; what was never written may be anything. Scales and offsets of values only."""
        tiles = self.tiles(cache)
        bits = np.unpackbits(tiles["codes"], axis=-1, bitorder="little")
        bits = bits.reshape(*tiles.shape, *self.streams, LANES, self.bits)
        codes = np.sum(bits << np.arange(self.bits, dtype=np.uint8), axis=-1, dtype=np.uint8)
        if self.part == "keys":
            codes = codes[:, :, :, 0].swapaxes(2, 3)
        codes = codes.reshape(*tiles.shape, LANES, -1)[..., : self.head_dim] ^ self._sign
        index = np.minimum(tiles["index"], self.head_dim - 1)
        scales = [tiles[name] if self.part == "values" else np.empty(index.shape[:3]) for name in ("scale", "offset")]
        fields = [codes, index, tiles["outlier"], *scales]
        positions = tiles.shape[1] * LANES
        return CodedValues(*(np.moveaxis(f, 0, 2).reshape(positions, len(tiles), *f.shape[3:]) for f in fields))

    @property
    def _sign(self) -> int:
        return 128 if self.bits == 8 else 0


def _bits(codes: NDArray[np.uint8], count: int) -> NDArray[np.uint8]:
    return codes[..., None] >> np.arange(count, dtype=np.uint8) & 1


def _packed(stream: NDArray[np.uint8]) -> Bytes:
    """Streams [.., 16 codes, bits] as bytes [.., 2 * bits]."""
    return np.packbits(stream.reshape(*stream.shape[:-2], -1), axis=-1, bitorder="little")
