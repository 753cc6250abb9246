"""Bytes are not to be trusted: no damage gets past Python or the library, and none makes either read astray."""

from __future__ import annotations

import numpy as np
import pytest

from edge.core.errors import EdgeError
from edge.core.weight import Affine, Codebook, GroupMixed, Sparse
from edge.kernels import lib, pack, unpack
from edge.kernels.testing import EVERY_LAYOUT, with_header

HEADER_FIELDS = {  # name: values that mean something somewhere, and some that never do
    "magic": (0, 0x4B474444),
    "version": (0, 2, 255),
    "encoding": (0, 1, 2, 3, 4, 5, 255),
    "bits": (0, 1, 2, 3, 4, 5, 8, 9, 255),
    "rows": (0, 1, 16, 33, 48, 49, 1 << 31, (1 << 32) - 1),
    "columns": (0, 1, 131, 133, 136, 160, 65537, 1 << 31, (1 << 32) - 1),
    "group_size": (0, 16, 32, 64, 128, 256, (1 << 32) - 1),
    "grid": (0, 1, 2, 3, 255),
    "layout": (0, 2, 255),
    "tile_rows": (0, 8, 32),
    "scale": (0, 1, 2, 3, 255),
    "payload_bytes": (0, 1, 63, 64, (1 << 63) + 64, (1 << 64) - 1),
    "table_rows": (0, 1, 2, 4, 20, (1 << 31) + 4, (1 << 32) - 4),
    "table_columns": (0, 1, 64, 128, 256, 320, (1 << 32) - 128),
    "high_groups": (0, 1, 2, 3, 4, 5, (1 << 32) - 1),
    "dim": (0, 1, 2, 3),
    "entry": (0, 1, 2),
    "pattern": (0, 1, 2, 3, 4),
    "reserved": (b"\1", bytes(8) + b"\1"),
}

UNTOLD = ("tensor.value", "tables contradict", "not in order", "not empty")  # harmless to kernels, which don't look


def refused(check, blob: np.ndarray) -> str:
    """Why a blob is refused; empty when it isn't."""
    try:
        check(blob)
    except EdgeError as error:
        return f"{error.code}: {error}"
    return ""


def judged_alike(blob: np.ndarray) -> bool:
    """Python refuses what the library refuses, and besides what only means something that no tensor can hold."""
    python, library = refused(unpack, blob), refused(lib.verify, blob)
    return bool(python) == bool(library) or any(reason in python for reason in UNTOLD)


def use(blob: np.ndarray) -> None:
    """Run everything on a blob; an error is fine, a crash is not."""
    columns = int(blob[12:16].view("<u4")[0])
    if columns > 1 << 12:
        return  # more memory than a test should ask for
    for isa in lib.isas():
        for activations in ("a8", "f32"):
            refused(
                lambda bad, isa=isa, mode=activations: lib.linear(
                    bad, np.ones((2, columns), np.float32), isa, activations=mode
                ),
                blob,
            )
    refused(lambda bad: lib.embedding(bad, np.arange(2)), blob)


@pytest.fixture(scope="module", params=EVERY_LAYOUT, ids=str)
def packed(request, make_tensor) -> np.ndarray:
    return pack(make_tensor(40, 132, request.param))


def test_every_changed_byte_is_noticed(packed):
    for position in (*range(64), *np.random.default_rng(0).integers(64, packed.size, 100)):
        damaged = packed.copy()
        damaged[position] ^= 1 << (position % 8)
        assert refused(unpack, damaged), position
        assert refused(lib.verify, damaged), position


def test_truncated_and_longer_bytes_are_refused(make_tensor, packed):
    for size in (*range(0, packed.size, 61), *range(65), packed.size - 1):
        cut = packed[:size].copy()
        for check in (unpack, lib.verify, lambda bad: lib.embedding(bad, np.zeros(1)), lib.kernel_name):
            assert refused(check, cut), size
    longer = np.concatenate([packed, np.zeros(64, np.uint8)])
    assert refused(unpack, longer)
    assert refused(lib.verify, longer)


@pytest.mark.parametrize("encoding", [Affine(2, 32), Sparse("16x4", 4, 32)], ids=str)
def test_every_truncation_is_refused(make_tensor, encoding):
    packed = pack(make_tensor(5, 20, encoding))
    for size in range(packed.size):
        cut = packed[:size].copy()
        assert refused(unpack, cut)
        assert refused(lib.verify, cut)


def test_random_bytes_are_refused():
    random = np.random.default_rng(0)
    for size in (0, 1, 63, 64, 65, 4096):
        foreign = random.integers(0, 256, size, dtype=np.uint8)
        for check in (unpack, lib.verify, lambda bad: lib.linear(bad, np.zeros((1, 100))), lib.kernel_name):
            assert refused(check, foreign)


@pytest.mark.parametrize("field", HEADER_FIELDS)
def test_a_changed_field_is_judged_alike(packed, field):
    """With a valid checksum a header may still be wrong: Python and the library say the same, and never read astray."""
    for value in HEADER_FIELDS[field]:
        edited = with_header(packed, **{field: value})
        if np.array_equal(edited, packed):
            continue
        assert judged_alike(edited), value
        use(edited)


def halfwords(packed: np.ndarray, at: int) -> np.ndarray:
    return packed[at:].view("<u2")


def first_tile(packed: np.ndarray) -> int:
    """Byte at which a block-sparse matrix's first tile starts."""
    return 64 + 64 * int(packed[64:68].view("<u4")[0])


def test_offsets_that_lead_astray(make_tensor):
    packed = pack(make_tensor(70, 132, Sparse("16x8", 4, 32)))
    for entry in range(6):
        for value in (0, 1, 2, 3, 0x7FFFFFFF, 0xFFFFFFFF):
            edited = packed.copy()
            edited[64 + 4 * entry : 68 + 4 * entry].view("<u4")[0] = value
            if np.array_equal(edited, packed):
                continue
            edited = with_header(edited)
            assert refused(unpack, edited), (entry, value)
            assert refused(lib.verify, edited), (entry, value)
            use(edited)


@pytest.mark.parametrize("encoding", [Sparse("16x8", 8, 32), Sparse("16x4", 4, 64)], ids=str)
def test_counts_and_indices_that_lead_astray(make_tensor, encoding):
    tensor = make_tensor(16, 132, encoding, 3)
    tensor.parts["mask"][:] = np.arange(tensor.parts["mask"].shape[1]) % 3 > 0
    tensor.parts["codes"][~encoding.kept(tensor.parts)] = encoding.symmetric_zero
    packed = pack(tensor)
    groups = encoding.groups(132)
    total = int(halfwords(packed, first_tile(packed))[:groups].sum())
    for entry in range(groups + total):
        for value in (0, 1, 2, 5, 100, 0xFFFF):
            edited = packed.copy()
            halfwords(edited, first_tile(packed))[entry] = value
            if np.array_equal(edited, packed):
                continue
            edited = with_header(edited)
            assert judged_alike(edited), (entry, value)
            if entry < groups or value >= 100:
                assert refused(unpack, edited), (entry, value)
            use(edited)


def test_an_order_of_groups_that_is_none(make_tensor):
    packed = pack(make_tensor(20, 132, GroupMixed(32, 2)))
    for order in ([0, 0, 1, 2, 3], [1, 0, 2, 3, 4], [0, 1, 2, 4, 3], [0, 1, 2, 3, 5], [0, 1, 2, 3, 0xFFFF]):
        edited = packed.copy()
        halfwords(edited, 64)[:5] = order
        edited = with_header(edited)
        assert refused(unpack, edited), order
        assert refused(lib.verify, edited), order
        use(edited)


def test_rows_that_share_a_table_have_the_same(make_tensor):
    packed = pack(make_tensor(16, 64, Codebook(4, table_rows=16)))
    packed[64] ^= 1
    with pytest.raises(EdgeError, match="tables contradict"):
        unpack(with_header(packed))


def test_kept_columns_are_in_order(make_tensor):
    packed = pack(make_tensor(16, 32, Sparse("2:4", 4, 32)))
    packed[128:192] = 0
    with pytest.raises(EdgeError, match="not in order"):
        unpack(with_header(packed))
