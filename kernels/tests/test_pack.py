"""Packed weights: nothing is lost, the bytes never change, and what can't be held is refused."""

from __future__ import annotations

import base64
import hashlib
import json
import zlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from edge.core.errors import EdgeError, UsageError
from edge.core.weight import Affine, Codebook, CompressedTensor, Dense, GroupMixed, Sparse
from edge.kernels import lib, pack, supported, unpack
from edge.kernels.testing import EVERY_LAYOUT

GROUPS = st.sampled_from([0, 32, 64, 128])
CODEBOOKS = {
    "bits": st.integers(1, 4),
    "entry": st.sampled_from(["int8", "int16"]),
    "table_rows": st.sampled_from([0, 1, 4, 12, 16, 64]),
    "table_columns": st.sampled_from([0, 64, 128, 256]),
    "group_size": GROUPS,
    "scale": st.sampled_from(["group", "row"]),
}
# Per layout: the hash of a 50 x 200 matrix, and a whole small blob with the values that it stands for. Files
# written by an earlier version stay readable, so these never change; new layouts are added.
GOLDEN = json.loads((Path(__file__).parent / "golden_blobs.json").read_text())
FIXED_LAYOUTS = (*EVERY_LAYOUT, Affine(2, 64, "half_integer"), Sparse("16x8", 4, 0))


@st.composite
def encodings(draw, kind):
    """Any encoding that the format holds."""
    if kind is Affine:
        grid = draw(st.sampled_from(["symmetric", "zero_point", "half_integer"]))
        return Affine(draw(st.sampled_from([2, 3, 4, 8])), draw(GROUPS), grid)
    if kind is Codebook:
        fields = {name: draw(values) for name, values in CODEBOOKS.items()}
        try:
            return Codebook(dim=draw(st.sampled_from([1, 2, 4])), **fields)
        except UsageError:
            assume(False)
    if kind is GroupMixed:
        grid, scale = (
            draw(st.sampled_from(["symmetric", "zero_point"])),
            draw(st.sampled_from(["group", "second_order"])),
        )
        bits = 2 if grid == "zero_point" else draw(st.integers(1, 2))
        return GroupMixed(draw(st.sampled_from([32, 64, 128])), draw(st.integers(0, 5)), grid, scale, bits)
    return Sparse(draw(st.sampled_from(["16x8", "16x4", "2:4"])), draw(st.sampled_from([4, 8])), draw(GROUPS))


def counted(shape: tuple[int, ...], count: int) -> np.ndarray:
    """Numbers below `count` from arithmetic alone, so that no random generator's version matters."""
    index = np.arange(np.prod(shape, dtype=np.int64), dtype=np.uint64).reshape(shape)
    return (index * 2654435761 >> 7) % count


def fixed_tensor(encoding, rows: int, columns: int) -> CompressedTensor:
    parts = {}
    for name, (shape, dtype, bits) in encoding.layout(rows, columns).items():
        ordinal = np.arange(np.prod(shape, dtype=np.int64)).reshape(shape)
        if dtype == np.float16:
            parts[name] = ((ordinal + 1) / 1024).astype(np.float16)
        elif name == "zero_points":
            narrow = encoding.bits if isinstance(encoding, GroupMixed) else bits
            parts[name] = (ordinal % (1 << narrow)).astype(np.uint8)
        elif name == "tables":
            top = int(np.iinfo(dtype).max)
            parts[name] = (counted(shape, 2 * top + 1).astype(np.int64) - top).astype(dtype)
        else:
            parts[name] = counted(shape, 1 << (bits or 8)).astype(np.uint8)
    if isinstance(encoding, GroupMixed):
        tile, group = np.indices(parts["high"].shape)
        parts["high"] = ((group + tile) % parts["high"].shape[1] < encoding.high_groups).astype(np.uint8)
        low = ~np.repeat(encoding.high_by_row(parts["high"], rows), encoding.group_size, axis=1)[:, :columns]
        parts["codes"][low] &= (1 << encoding.bits) - 1
    if isinstance(encoding, Sparse):
        if encoding.pattern == "2:4":
            kept = counted((rows, columns // 4), 6)
            choices = np.array([[1, 1, 0, 0], [1, 0, 1, 0], [1, 0, 0, 1], [0, 1, 1, 0], [0, 1, 0, 1], [0, 0, 1, 1]])
            parts["mask"] = choices[kept].reshape(rows, columns).astype(np.uint8)
        parts["codes"][~encoding.kept(parts)] = encoding.symmetric_zero
    return CompressedTensor("fixed", (rows, columns), encoding, parts)


@pytest.mark.parametrize("kind", [Affine, Codebook, GroupMixed, Sparse])
def test_unpack_returns_what_was_packed(make_tensor, kind):
    @settings(max_examples=150, deadline=None)
    @given(encoding=encodings(kind), rows=st.integers(1, 70), columns=st.integers(1, 330), seed=st.integers(0, 99))
    def check(encoding, rows, columns, seed):
        try:
            tensor = make_tensor(rows, columns, encoding, seed)
        except UsageError:
            assume(False)  # too few groups, or an odd number of columns
        packed = pack(tensor)
        back = unpack(packed)
        assert (back.shape, back.encoding) == (tensor.shape, encoding)
        assert set(back.parts) == set(tensor.parts)
        for part, values in tensor.parts.items():
            assert back.parts[part].dtype == values.dtype
            assert back.parts[part].tobytes() == values.tobytes(), part
        lib.verify(packed)

    check()


@pytest.mark.parametrize("encoding", FIXED_LAYOUTS, ids=str)
def test_golden_bytes(encoding):
    golden = GOLDEN[str(encoding)]
    assert hashlib.sha256(pack(fixed_tensor(encoding, 50, 200)).tobytes()).hexdigest() == golden["sha256"]


@pytest.mark.parametrize("name", GOLDEN)
def test_golden_blobs_load(name):
    golden = GOLDEN[name]
    blob = np.frombuffer(zlib.decompress(base64.b64decode(golden["blob"])), np.uint8)
    values = np.array(golden["values"], np.float32)
    lib.verify(blob)
    tensor = unpack(blob)
    assert str(tensor.encoding) == name
    assert np.array_equal(tensor.dequantize(), values)
    assert np.array_equal(lib.embedding(blob, np.arange(len(values))), values)


@pytest.mark.parametrize(
    ("encoding", "bits"),
    [
        (Affine(4, 64), 4.25),
        (Affine(3, 64), 3.25),
        (Affine(2, 128), 2.125),
        (Affine(4, 64, "zero_point"), 4.25 + 8 / 64),
        (Affine(2, 64, "half_integer"), 2.25),
        (Codebook(4, table_rows=16), 4.25 + 32 / 4096),
        (Codebook(3, dim=2, scale="row"), 1.5 + 32 / 4096),
        (Codebook(4, dim=4, scale="row", group_size=128), 1 + 32 / 4096),
        (Codebook(1), 1.25),
        (Codebook(4, table_rows=1, table_columns=128), 4.25 + 4 * 32 / 128),
        (GroupMixed(64, 16), 2 + 2 * 16 / 64 + 16 / 64),
        (GroupMixed(128, 8, "zero_point", "second_order"), 2 + 2 * 8 / 32 + 16 / 128),
        (GroupMixed(32, 12, scale="second_order", bits=1), 1 + 7 * 12 / 128 + 8 / 32),
        (Sparse("2:4", 4, 64), 4 / 2 + 1 + 16 / 64),
    ],
    ids=str,
)
def test_bits_per_weight_are_those_of_the_header_file(make_tensor, encoding, bits):
    found = (pack(make_tensor(64, 4096, encoding)).size - 64) * 8 / (64 * 4096)
    assert bits <= found < bits + 0.05  # order, prefix and the second line of row scales


@pytest.mark.parametrize(("pattern", "width"), [("16x8", 8), ("16x4", 4)])
def test_blocks_cost_what_is_kept(pattern, width):
    encoding = Sparse(pattern, 4, 64)
    mask = np.tile([1, 0, 0, 0], (64, 4096 // width // 4)).astype(np.uint8)
    codes = np.where(np.repeat(np.repeat(mask, 16, axis=0), width, axis=1), 3, 8).astype(np.uint8)
    parts = {"codes": codes, "mask": mask, "scales": np.ones((1024, 64), np.float16)}
    packed = pack(CompressedTensor("w", (1024, 4096), encoding, parts))
    bits = (packed.size - 64) * 8 / codes.size
    assert 0 <= bits - (0.25 * 4 + 16 / 64 + 16 * 0.25 / (16 * width)) < 0.05


def changed(tensor: CompressedTensor, part: str, index, value) -> CompressedTensor:
    values = tensor.parts[part].copy()
    values[index] = value
    return replace(tensor, parts={**tensor.parts, part: values})


@pytest.mark.parametrize(
    ("encoding", "part", "value", "message"),
    [
        (Affine(4, 32), "codes", 16, "more than 4 bits"),
        (Affine(4, 32), "scales", np.inf, "infinite"),
        (Affine(2, 32, "zero_point"), "zero_points", 4, "more than 2 bits"),
        (Codebook(1), "codes", 2, "more than 1 bits"),
        (Codebook(2), "codes", 4, "more than 2 bits"),
        (Codebook(2), "tables", -128, "-128"),
        (GroupMixed(32, 0), "codes", 4, "at 2 bits needs more"),
        (GroupMixed(32, 0, bits=1), "codes", 2, "at 1 bits needs more"),
        (GroupMixed(32, 1), "high", 1, "more or fewer than 1 groups"),
        (GroupMixed(32, 1, scale="second_order"), "row_scales", np.nan, "NaN"),
        (Sparse("16x8", 4, 0), "mask", 2, "more than 1 bits"),
        (Sparse("2:4", 4, 0), "mask", 1, "exactly 2 weights"),
    ],
    ids=str,
)
def test_values_that_the_format_cannot_hold(make_tensor, encoding, part, value, message):
    tensor = make_tensor(20, 64, encoding)
    with pytest.raises(EdgeError, match=message):
        pack(changed(tensor, part, Ellipsis if part in {"high", "mask"} else (0, 0), value))


def test_shapes_that_the_format_cannot_hold(make_tensor):
    for encoding in (Affine(8, 0), Codebook(4, group_size=0), Sparse("2:4", 4, 0)):
        with pytest.raises(EdgeError, match="overflows") as caught:
            pack(make_tensor(1, 65540, encoding))
        assert "groups of 32" in caught.value.hint
    with pytest.raises(EdgeError, match="more than 65536 blocks"):
        pack(make_tensor(1, 65536 * 4 + 1, Sparse("16x4", 4, 128)))
    parts = {"codes": np.zeros((0, 32), np.uint8), "scales": np.zeros((0, 1), np.float16)}
    with pytest.raises(EdgeError, match="can't be packed"):
        pack(CompressedTensor("empty", (0, 32), Affine(4, 32), parts))


@pytest.mark.parametrize(("bits", "instead"), [(5, "4 bits"), (6, "8 bits"), (7, "8 bits")])
def test_unserved_bits_say_what_to_use(make_tensor, bits, instead):
    encoding = Affine(bits, 64)
    assert f"no kernel serves {bits} bits" in supported(encoding)
    assert instead in supported(encoding)
    with pytest.raises(UsageError, match=f"no kernel serves {bits} bits"):
        pack(make_tensor(2, 64, encoding))


LARGE = [
    Codebook(8),
    Codebook(6, group_size=0, scale="row"),
    Codebook(8, scale="row", table_rows=12, group_size=32),
    Codebook(6, table_rows=1, table_columns=128),
]


@pytest.mark.parametrize("encoding", LARGE, ids=str)
def test_tables_too_large_to_look_up_become_8_bit_codes_of_the_same_values(make_tensor, encoding):
    tensor = make_tensor(40, 200, encoding)
    back = unpack(pack(tensor))
    assert back.encoding == Affine(8, encoding.group_size)
    assert np.array_equal(back.dequantize(), tensor.dequantize())


@pytest.mark.parametrize("encoding", [Codebook(8, dim=2), Codebook(6, dim=4, group_size=128)], ids=str)
def test_large_tables_of_vectors_are_refused(make_tensor, encoding):
    assert "use dim 1, or at most 4 bits" in supported(encoding)
    with pytest.raises(UsageError, match="no kernel looks up"):
        pack(make_tensor(4, 256, encoding))


def test_supported():
    assert all(supported(encoding) == "" for encoding in EVERY_LAYOUT)
    assert "not float32" in supported(Dense("float32"))
