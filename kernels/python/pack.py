"""Packed weights: a 64-byte header, maybe a prefix, and tiles of 16 rows (`edge_kernels.h` draws them). In NumPy."""

from __future__ import annotations

from types import ModuleType
from typing import NamedTuple, cast

import numpy as np

from edge.core.encoding import Affine, Codebook, Compressed, Dense, Encoding, GroupMixed, Sparse
from edge.core.errors import UsageError
from edge.core.weight import CompressedTensor
from edge.kernels import pack_mixed, pack_sparse, pack_steps
from edge.kernels.packed_header import (
    HEADER_BYTES,
    MAX_TABLE_BITS,
    SERVED_BITS,
    Bytes,
    check_limits,
    damaged,
    read_header,
    write_header,
)

__all__ = ["Bytes", "Layout", "as_packed", "pack", "read_layout", "supported", "unpack"]


class Layout(NamedTuple):
    """What a blob holds."""

    rows: int
    columns: int
    encoding: Compressed


def supported(encoding: Encoding) -> str:
    """Empty when edge's kernels serve `encoding`; else why they don't and what to use instead."""
    if isinstance(encoding, Dense):
        return f"edge's kernels serve compressed encodings, not {encoding}: leave this tensor to a standard operator"
    if isinstance(encoding, Affine) and encoding.bits not in SERVED_BITS:
        return f"no kernel serves {encoding.bits} bits: use {4 if encoding.bits == 5 else 8} bits"
    if isinstance(encoding, Codebook) and encoding.bits > MAX_TABLE_BITS and encoding.dim > 1:
        return f"no kernel looks up {1 << encoding.bits} vectors: use dim 1, or at most {MAX_TABLE_BITS} bits"
    return ""


def pack(tensor: CompressedTensor) -> Bytes:
    """The bytes that the kernels read, uint8 [64 + payload]: the same on every machine.

    A codebook of more than 16 entries becomes 8-bit codes of the same values.
    Raises `UsageError` for an encoding that no kernel serves, `EdgeError` for values that the format can't hold.
    """
    if reason := supported(tensor.encoding):
        raise UsageError("kernels.encoding", f"{tensor.name}: {reason}", "change the recipe for this tensor")
    tensor.check()
    tensor = as_packed(tensor)
    layout = Layout(*tensor.shape, cast(Compressed, tensor.encoding))
    check_limits(*layout)
    payload = _codec(layout.encoding).write(tensor.parts, *layout)
    blob = np.empty(HEADER_BYTES + payload.size, np.uint8)
    blob[HEADER_BYTES:] = payload
    write_header(blob, *layout)
    return blob


def unpack(packed: Bytes, name: str = "packed") -> CompressedTensor:
    """The tensor that was packed: its parts exactly as they were given, unless it was a codebook of over 16 entries.

    Raises `EdgeError` for bytes that are not packed weights, are damaged or come from a newer version.
    """
    layout = read_layout(packed)
    parts = _codec(layout.encoding).read(np.ascontiguousarray(packed[HEADER_BYTES:]), *layout)
    tensor = CompressedTensor(name, (layout.rows, layout.columns), layout.encoding, parts)
    tensor.check()
    return tensor


def read_layout(packed: Bytes) -> Layout:
    """Check header, size and checksum; what the header says."""
    header, encoding = read_header(packed)
    layout = Layout(header.rows, header.columns, encoding)
    codec = _codec(encoding)
    if codec is not pack_sparse and header.payload_bytes != codec.payload_bytes(*layout):
        raise damaged("the header of the packed weights is damaged")
    return layout


def as_packed(tensor: CompressedTensor) -> CompressedTensor:
    """What `unpack` makes of the packed tensor: itself, unless its table is too large to look up.

    Then it has the entries for codes: these fit 8 bits, as int8 entries have no -128.
    """
    book = tensor.encoding
    if not isinstance(book, Codebook) or book.bits <= MAX_TABLE_BITS:
        return tensor
    affine, scales = Affine(8, book.group_size), tensor.parts["scales"]
    entries = book.dequantize({**tensor.parts, "scales": np.ones_like(scales)})
    parts = {
        "codes": (entries + affine.symmetric_zero).astype(np.uint8),
        "scales": np.ascontiguousarray(np.broadcast_to(scales, (len(scales), affine.groups(tensor.shape[1])))),
    }
    return CompressedTensor(tensor.name, tensor.shape, affine, parts)


def _codec(encoding: Compressed) -> ModuleType:
    """The module that lays this encoding out."""
    if isinstance(encoding, GroupMixed):
        return pack_mixed
    return pack_sparse if isinstance(encoding, Sparse) and encoding.pattern != "2:4" else pack_steps
