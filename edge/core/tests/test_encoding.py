"""Every encoding against its definition, weight by weight, and its compact form by property."""

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge.core.concatenate import concatenate_rows
from edge.core.encoding import Affine, Codebook, Compressed, Dense, GroupMixed, Sparse
from edge.core.errors import EdgeError, UsageError
from edge.core.weight import CompressedTensor
from edge.kernels.testing import EVERY_LAYOUT, random_tensor

encodings = st.sampled_from(EVERY_LAYOUT)


def columns_of(encoding, draw):
    """A number of columns near `draw` that the encoding serves."""
    least = max(1, getattr(encoding, "high_groups", 0) * encoding.group_size - encoding.group_size + 1)
    return -(-max(draw, least) // 4) * 4


def integer(tensor, row, column):
    """What the scale multiplies."""
    encoding, parts = tensor.encoding, tensor.parts
    group = column // (encoding.group_size or tensor.shape[1])
    if isinstance(encoding, Codebook):
        rows, columns = encoding.table_rows or tensor.shape[0], encoding.table_columns or tensor.shape[1]
        code = parts["codes"][row, column // encoding.dim]
        return int(parts["tables"][row // rows, column // columns, code, column % encoding.dim])
    code = int(parts["codes"][row, column])
    if isinstance(encoding, Affine) and encoding.grid == "half_integer":
        return 2 * code - (2**encoding.bits - 1)
    if isinstance(encoding, Sparse):
        at = (row, column) if encoding.pattern == "2:4" else (row // 16, column // int(encoding.pattern[-1]))
        return (code - 2 ** (encoding.bits - 1)) * int(parts["mask"][at])
    if encoding.grid == "zero_point":
        return code - int(parts["zero_points"][row, group])
    if isinstance(encoding, GroupMixed):
        high = parts["high"][row // 16, group]
        if encoding.bits == 1 and not high:
            code *= 64
        return code - ((128 if high else 32) if encoding.bits == 1 else (8 if high else 2))
    return code - 2 ** (encoding.bits - 1)


def scale(tensor, row, column):
    scales = tensor.parts["scales"]
    group = column // (tensor.encoding.group_size or tensor.shape[1])
    value = np.float32(scales[row, group if scales.shape[1] > 1 else 0])
    return value * np.float32(tensor.parts["row_scales"][row, 0]) if "row_scales" in tensor.parts else value


@pytest.mark.parametrize("encoding", EVERY_LAYOUT, ids=str)
def test_dequantize_is_the_definition(encoding):
    tensor = random_tensor(37, 140, encoding)
    expected = [[scale(tensor, r, c) * np.float32(integer(tensor, r, c)) for c in range(140)] for r in range(37)]
    assert tensor.dequantize().dtype == np.float32
    assert np.array_equal(tensor.dequantize(), np.array(expected))


def test_pruned_weights_are_plus_zero():
    tensor = random_tensor(32, 64, Sparse("2:4", 4, 32))
    assert (tensor.parts["scales"] < 0).any()
    assert not np.signbit(tensor.dequantize()[tensor.parts["mask"] == 0]).any()


@settings(deadline=None)
@given(encoding=encodings, rows=st.integers(1, 40), columns=st.integers(1, 300), seed=st.integers(0, 2**32 - 1))
def test_compact_parts_come_back(encoding, rows, columns, seed):
    shape = (rows, columns_of(encoding, columns))
    tensor = random_tensor(*shape, encoding, seed)
    tensor.check()
    compact, layout = encoding.compact(tensor.parts), encoding.compact_layout(*shape)
    assert compact.keys() == layout.keys()
    for name, part in layout.items():
        assert compact[name].dtype == part.dtype
        assert all(wanted in (size, -1) for size, wanted in zip(compact[name].shape, part.shape, strict=True))
        assert not part.bits or int(compact[name].max(initial=0)) < 1 << part.bits
    back = encoding.expand("w", shape, compact)
    assert back.keys() == tensor.parts.keys()
    assert all(np.array_equal(back[part], tensor.parts[part]) for part in back)


@pytest.mark.parametrize("encoding", [*EVERY_LAYOUT, Dense("float16")], ids=str)
def test_encodings_survive_json_under_one_name_each(encoding):
    assert msgspec.json.decode(msgspec.json.encode(encoding), type=Compressed | Dense) == encoding
    assert [str(other) for other in EVERY_LAYOUT].count(str(encoding)) == (not isinstance(encoding, Dense))


def test_names():
    names = {
        "affine4g64": Affine(4, 64),
        "affine4rowz": Affine(4, 0, "zero_point"),
        "affine2g128h": Affine(2, 128, "half_integer"),
        "codebook3g64": Codebook(3),
        "codebook4d2g64r": Codebook(4, dim=2, scale="row"),
        "codebook8d4row": Codebook(8, dim=4, group_size=0),
        "codebook4i16g64t16x128": Codebook(4, entry="int16", table_rows=16, table_columns=128),
        "mixed2g64+8": GroupMixed(64, 8),
        "mixed2g32zs+1": GroupMixed(32, 1, "zero_point", "second_order"),
        "mixed1g32s+2": GroupMixed(32, 2, scale="second_order", bits=1),
        "sparse4-16x8g64": Sparse("16x8", 4, 64),
        "sparse8-2of4row": Sparse("2:4", 8, 0),
    }
    assert {name: str(encoding) for name, encoding in names.items()} == {name: name for name in names}


@pytest.mark.parametrize(
    ("encoding", "rows", "columns", "stored"),
    [
        (Affine(4, 64, "half_integer"), 8, 128, 8 * (64 + 2 * 2)),
        (Codebook(3), 8, 128, 8 * (48 + 2 * 2) + 8),
        (Codebook(4, dim=2, scale="row"), 8, 128, 8 * (32 + 2) + 32),
        (Codebook(6, dim=4, group_size=128), 8, 128, 8 * (24 + 2) + 64 * 4),
        (Codebook(1, table_rows=1), 8, 128, 8 * (16 + 2 * 2) + 8 * 2),
        (Codebook(2, entry="int16", table_rows=1, table_columns=128), 8, 256, 8 * (64 + 2 * 4) + 8 * 2 * 4 * 2),
        (GroupMixed(64, 1), 32, 256, 32 * (64 + 16 + 2 * 4) + 2),
        (GroupMixed(64, 1, "zero_point", "second_order"), 32, 256, 32 * (64 + 16 + 4 + 2 + 2) + 2),
        (GroupMixed(32, 2, bits=1), 32, 256, 32 * (32 + 2 * 28 + 2 * 8) + 2),
        (GroupMixed(64, 1, scale="second_order", bits=1), 32, 256, 32 * (32 + 56 + 4 + 2) + 2),
        (Sparse("2:4", 4, 64), 8, 128, 8 * (32 + 16 + 2 * 2)),
    ],
    ids=str,
)
def test_stored_bytes(encoding, rows, columns, stored):
    tensor = random_tensor(rows, columns, encoding)
    assert tensor.stored_bytes == stored
    assert tensor.bits_per_weight == 8 * stored / (rows * columns)


def test_stored_bytes_of_blocks_follow_the_mask():
    tensor = random_tensor(40, 64, Sparse("16x8", 4, 64))
    assert tensor.stored_bytes == int(tensor.parts["mask"].sum()) * 64 + 3 + 40 * 2


WRONG = [
    lambda: Affine(4, 48),
    lambda: Codebook(5),
    lambda: Codebook(1, dim=2),
    lambda: Codebook(6, entry="int16"),
    lambda: Codebook(4, dim=3),
    lambda: Codebook(4, dim=4, group_size=64),
    lambda: Codebook(4, dim=2, group_size=32),
    lambda: Codebook(4, entry="int16", group_size=0),
    lambda: Codebook(4, dim=2, entry="int16"),
    lambda: Codebook(4, table_rows=6),
    lambda: Codebook(4, table_rows=-4),
    lambda: Codebook(4, dim=2, table_rows=1),
    lambda: Codebook(4, table_columns=64),
    lambda: Codebook(4, group_size=0, table_columns=64),
    lambda: GroupMixed(0, 1),
    lambda: GroupMixed(64, -1),
    lambda: GroupMixed(64, 1, bits=3),
    lambda: GroupMixed(64, 1, "zero_point", bits=1),
    lambda: Sparse("16x8", 3, 64),
    lambda: Sparse("2:4", 4, 16),
    lambda: GroupMixed(64, 3).layout(16, 128),
    lambda: Codebook(4, dim=2).layout(16, 63),
    lambda: Codebook(4, dim=4, group_size=0).layout(16, 66),
    lambda: Sparse("2:4", 4, 64).layout(16, 62),
]


@pytest.mark.parametrize("wrong", WRONG)
def test_what_is_not_served_is_refused_with_a_hint(wrong):
    with pytest.raises(UsageError) as caught:
        wrong()
    assert caught.value.hint


def damaged(encoding, part, change):
    tensor = random_tensor(32, 128, encoding)
    array = tensor.parts[part].copy()
    change(array)
    return CompressedTensor("w", tensor.shape, encoding, {**tensor.parts, part: array})


def put(value, *at):
    def change(array):
        array[at] = value

    return change


def low_group(array):
    """Give every weight a code of 3 bits: those at 2 bits can't have it."""
    array[:] = 4


DAMAGE = [
    (Affine(3, 64), "codes", put(8, 31, 127), "more than 3 bits"),
    (Affine(4, 64, "zero_point"), "zero_points", put(16, 0, 0), "more than 4 bits"),
    (Affine(8, 64), "scales", put(np.nan, 5, 1), "NaN"),
    (Codebook(3), "codes", put(8, 0, 0), "more than 3 bits"),
    (Codebook(3), "tables", put(-128, 0, 0, 7, 0), "-128"),
    (GroupMixed(32, 1), "high", put(1, 0), "more or fewer than 1"),
    (GroupMixed(32, 1), "high", put(2, 1, 1), "more than 1 bits"),
    (GroupMixed(32, 1), "codes", low_group, "2 bits needs more"),
    (GroupMixed(32, 1, "zero_point"), "zero_points", low_group, "2 bits needs more"),
    (GroupMixed(32, 1, bits=1), "codes", low_group, "1 bits needs more"),
    (GroupMixed(32, 1, scale="second_order"), "row_scales", put(np.inf, 3), "infinite"),
    (Sparse("2:4", 4, 64), "mask", put(1, 0, slice(4)), "exactly 2"),
    (Sparse("16x8", 4, 64), "mask", put(0, slice(None)), "pruned weight"),
    (Sparse("16x4", 8, 64), "mask", put(3, 0, 0), "more than 1 bits"),
]


@pytest.mark.parametrize(("encoding", "part", "change", "message"), DAMAGE)
def test_values_that_mean_nothing_are_refused(encoding, part, change, message):
    with pytest.raises(EdgeError, match=message) as caught:
        damaged(encoding, part, change).check()
    assert caught.value.message.startswith("w: ") and caught.value.hint


def concatenated(tensors):
    fused = concatenate_rows("fused", tensors)
    if fused is not None:
        fused.check()
        assert fused.name == "fused"
        assert np.array_equal(fused.dequantize(), np.concatenate([t.dequantize() for t in tensors]))
    return fused


@pytest.mark.parametrize("encoding", [*EVERY_LAYOUT, Dense("float16")], ids=str)
def test_rows_are_concatenated(encoding):
    """96, 48 and 37 rows: blocks of 16 and tables of 1, 8 and 12 end where the first two end."""
    make = dense if isinstance(encoding, Dense) else random_tensor
    fused = concatenated([make(rows, 256, encoding, seed) for seed, rows in enumerate((96, 48, 37))])
    assert fused.shape == (181, 256)
    if not isinstance(encoding, Codebook):
        assert fused.encoding == encoding
    elif encoding.table_rows == 0:
        assert fused.encoding.table_rows == 48
    else:
        assert fused.encoding.table_rows in (encoding.table_rows, 4, 12)


def dense(rows, columns, encoding, seed):
    values = np.random.default_rng(seed).standard_normal((rows, columns)).astype(np.float16)
    return CompressedTensor("w", (rows, columns), encoding, {"values": values})


def test_a_table_that_all_share_stays_one():
    first, other = (random_tensor(20, 128, Codebook(4), seed) for seed in (0, 1))
    second = CompressedTensor("w", other.shape, other.encoding, {**other.parts, "tables": first.parts["tables"]})
    assert concatenated([first, second]).encoding == first.encoding


@pytest.mark.parametrize("encoding", [GroupMixed(32, 1), Sparse("16x8", 4, 64), Codebook(4, table_rows=8)], ids=str)
def test_rows_that_would_split_a_block_are_not_concatenated(encoding):
    assert concatenated([random_tensor(rows, 128, encoding) for rows in (18, 16)]) is None
    assert concatenated([random_tensor(rows, 128, encoding) for rows in (16, 18)]) is not None


def test_what_differs_is_not_concatenated():
    tensor = random_tensor(16, 128, Affine(4, 64))
    assert concatenate_rows("fused", [tensor, random_tensor(16, 128, Affine(4, 32))]) is None
    assert concatenate_rows("fused", [tensor, random_tensor(16, 64, Affine(4, 64))]) is None
    assert concatenate_rows("fused", [tensor]) is tensor
    mixed = [random_tensor(16, 128, GroupMixed(32, high)) for high in (1, 2)]
    assert concatenate_rows("fused", mixed) is None
