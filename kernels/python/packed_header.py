"""The first 64 bytes of packed weights: which encoding follows, at which size, and the checksum over all of it."""

from __future__ import annotations

import struct
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from edge.core.encoding import Affine, Codebook, Compressed, GroupMixed, Sparse
from edge.core.errors import EdgeError

MAGIC, VERSION, TILE16_STREAM = 0x4B474445, 1, 1
KINDS: dict[type[Compressed], int] = {Affine: 1, Codebook: 2, GroupMixed: 3, Sparse: 4}
GRIDS = ("symmetric", "zero_point", "half_integer")
SCALES = ("group", "row", "second_order")
ENTRIES = ("int8", "int16")
PATTERNS = ("", "16x8", "16x4", "2:4")
SERVED_BITS = (2, 3, 4, 8)  # of affine encodings
MAX_TABLE_BITS = 4  # 16 entries: what one byte shuffle looks up

ROWS, STEP, LINE = 16, 32, 64
MAX_SIDE, MAX_GROUP, MAX_INDEX = (1 << 31) - 1, 65536, 65536

Bytes = NDArray[np.uint8]


class Header(NamedTuple):
    """edge_packed_header, field by field. `layout` here is the number of the way in which tiles are laid out."""

    magic: int
    version: int
    encoding: int
    bits: int
    rows: int
    columns: int
    group_size: int
    grid: int
    layout: int
    tile_rows: int
    scale: int
    payload_bytes: int
    checksum: int
    table_rows: int
    table_columns: int
    high_groups: int
    dim: int
    entry: int
    pattern: int
    reserved: bytes


FORMAT = struct.Struct("<IHBBIIIBBBBQQIIIBBB9s")
HEADER_BYTES = FORMAT.size
CHECKSUM_WORD = 4


def damaged(what: str) -> EdgeError:
    """The error for bytes that are not what `pack` wrote."""
    return EdgeError("kernels.packed", what, "export the model again")


def header_of(rows: int, columns: int, encoding: Compressed, payload_bytes: int, check: int = 0) -> Header:
    """The header of a matrix; fields that its encoding has no use for are zero."""
    fields = dict.fromkeys(Header._fields, 0) | {
        "magic": MAGIC,
        "version": VERSION,
        "encoding": KINDS[type(encoding)],
        "rows": rows,
        "columns": columns,
        "group_size": encoding.group_size,
        "layout": TILE16_STREAM,
        "tile_rows": ROWS,
        "payload_bytes": payload_bytes,
        "checksum": check,
    }
    match encoding:
        case Affine():
            more = {"bits": encoding.bits, "grid": GRIDS.index(encoding.grid)}
        case Codebook():
            entry, scale = ENTRIES.index(encoding.entry), SCALES.index(encoding.scale)
            more = {"bits": encoding.bits, "dim": encoding.dim, "entry": entry, "scale": scale}
            more |= {"table_rows": encoding.table_rows, "table_columns": encoding.table_columns}
        case GroupMixed():
            grid, scale = GRIDS.index(encoding.grid), SCALES.index(encoding.scale)
            more = {"bits": encoding.bits, "high_groups": encoding.high_groups, "grid": grid, "scale": scale}
        case Sparse():
            more = {"bits": encoding.bits, "pattern": PATTERNS.index(encoding.pattern)}
    return Header(**{**fields, **more, "reserved": bytes(9)})


def write_header(blob: Bytes, rows: int, columns: int, encoding: Compressed) -> None:
    """Fill in the header of a blob whose payload stands."""
    for check in (0, 1):  # the checksum runs over the header as well, its own field taken as zero
        header = header_of(rows, columns, encoding, blob.size - HEADER_BYTES, checksum(blob) if check else 0)
        blob[:HEADER_BYTES] = np.frombuffer(FORMAT.pack(*header), np.uint8)


def read_header(blob: Bytes) -> tuple[Header, Compressed]:
    """Check the header's fields and the checksum, but for `payload_bytes`: that is up to the encoding's layout."""
    if blob.ndim != 1 or blob.dtype != np.uint8 or blob.size < HEADER_BYTES:
        raise damaged(f"packed weights are one run of bytes, not {blob.dtype}{list(blob.shape)}")
    header = Header(*FORMAT.unpack(blob[:HEADER_BYTES].tobytes()))
    if header.magic != MAGIC:
        raise damaged("these bytes are not packed weights")
    if header.version > VERSION:
        message = f"the weights have packed format {header.version}, newer than {VERSION}"
        raise EdgeError("kernels.newer", message, "upgrade edge")
    try:
        encoding = _encoding_of(header)
        encoding.layout(header.rows, header.columns)
        check_limits(header.rows, header.columns, encoding)
    except (EdgeError, IndexError) as error:
        raise damaged("the header of the packed weights is damaged") from error
    if header != header_of(header.rows, header.columns, encoding, header.payload_bytes, header.checksum):
        raise damaged("the header of the packed weights is damaged")
    if header.payload_bytes != blob.size - HEADER_BYTES:
        expected = HEADER_BYTES + header.payload_bytes
        raise damaged(f"the packed weights have {blob.size} bytes, their header says {expected}")
    if checksum(blob) != header.checksum:
        raise damaged("the packed weights are damaged: their checksum differs")
    return header, encoding


def _encoding_of(header: Header) -> Compressed:
    """Raises `EdgeError` or `IndexError` for fields that name no encoding."""
    bits, group_size, grid, scale = header.bits, header.group_size, GRIDS[header.grid], SCALES[header.scale]
    if header.encoding == KINDS[Affine]:
        return Affine(bits, group_size, grid)
    if header.encoding == KINDS[Codebook] and scale != "second_order":
        tables = (header.table_rows, header.table_columns)
        return Codebook(bits, header.dim, ENTRIES[header.entry], *tables, group_size, scale)
    if header.encoding == KINDS[GroupMixed] and grid != "half_integer" and scale != "row":
        return GroupMixed(group_size, header.high_groups, grid, scale, bits)
    if header.encoding == KINDS[Sparse] and header.pattern:
        return Sparse(PATTERNS[header.pattern], bits, group_size)
    raise damaged("no such encoding")


def check_limits(rows: int, columns: int, encoding: Compressed) -> None:
    """Raise `EdgeError` for a matrix that the format can't hold."""
    shape = f"a matrix [{rows}, {columns}]"
    if not (0 < rows <= MAX_SIDE and 0 < columns <= MAX_SIDE):
        hint = "leave this tensor to a standard operator"
        raise EdgeError("kernels.shape", f"{shape} can't be packed", hint)
    if isinstance(encoding, Affine) and encoding.bits not in SERVED_BITS:
        raise EdgeError("kernels.encoding", f"no kernel serves {encoding.bits} bits", "use 2, 3, 4 or 8 bits")
    if isinstance(encoding, Codebook) and encoding.bits > MAX_TABLE_BITS:
        raise EdgeError("kernels.encoding", f"no kernel looks up {1 << encoding.bits} entries", "use at most 4 bits")
    if encoding.group_size == 0 and columns > MAX_GROUP:
        raise EdgeError("kernels.group", f"{shape}: one group for the whole row overflows", "use groups of 32 to 128")
    if isinstance(encoding, Codebook) and max(encoding.table_rows, encoding.table_columns) > MAX_SIDE:
        raise EdgeError("kernels.tables", f"{encoding}: tables span more than a matrix can", "use 0 for all of it")
    blocked = isinstance(encoding, GroupMixed) or (isinstance(encoding, Sparse) and encoding.pattern != "2:4")
    width = encoding.width if isinstance(encoding, Sparse) else encoding.group_size
    if blocked and -(-columns // width) > MAX_INDEX:
        hint = "leave this tensor to a standard operator"
        raise EdgeError("kernels.shape", f"{shape} has more than {MAX_INDEX} blocks in a row", hint)


def checksum(blob: Bytes) -> int:
    """Sum of (2i + 1) * word i modulo 2^64 over the 64-bit words of a blob, its checksum field taken as zero."""
    words = np.frombuffer(blob.tobytes() if not blob.flags.c_contiguous else blob, "<u8", blob.size // 8)
    total = -(2 * CHECKSUM_WORD + 1) * int(words[CHECKSUM_WORD])
    block = 1 << 20
    for start in range(0, words.size, block):
        part = words[start : start + block]
        factors = np.arange(2 * start + 1, 2 * (start + part.size) + 1, 2, dtype=np.uint64)
        total += int((part * factors).sum(dtype=np.uint64))
    return total % (1 << 64)
