"""Packed weights: nothing is lost, the bytes never change, and no damaged byte gets through."""

from __future__ import annotations

import hashlib
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge.core.errors import EdgeError, UsageError
from edge.core.weight import Affine, CompressedTensor, Dense
from edge.kernels import lib, pack, supported, unpack

GRIDS = ("symmetric", "zero_point")
ENCODINGS = st.builds(Affine, st.sampled_from([2, 3, 4, 8]), st.sampled_from([0, 32, 64, 128]), st.sampled_from(GRIDS))
# sha256 of the blob of a fixed 50 x 200 matrix: files written by an earlier version stay readable
GOLDEN = {
    Affine(2, 128): "2a8ec974b073d4f6",
    Affine(3, 64): "af507acf64b3faf7",
    Affine(4, 32): "dd7a7f4a6301c0b9",
    Affine(4, 64, "zero_point"): "b830d6ddd3983b39",
    Affine(8, 0): "3e32e2d30b93218f",
}


def fixed_tensor(encoding: Affine) -> CompressedTensor:
    """A matrix from arithmetic alone, so that no random generator's version matters."""
    rows, columns = 50, 200
    groups = encoding.groups(columns)
    count = np.arange(rows * columns, dtype=np.uint64).reshape(rows, columns)
    parts = {
        "codes": ((count * 2654435761 >> 7) % (1 << encoding.bits)).astype(np.uint8),
        "scales": (np.arange(1, rows * groups + 1).reshape(rows, groups) / 1024).astype(np.float16),
    }
    if encoding.grid == "zero_point":
        zeros = np.arange(rows * groups).reshape(rows, groups) % (1 << encoding.bits)
        parts["zero_points"] = zeros.astype(np.uint8)
    return CompressedTensor("fixed", (rows, columns), encoding, parts)


@settings(max_examples=150, deadline=None)
@given(encoding=ENCODINGS, rows=st.integers(1, 70), columns=st.integers(1, 330), seed=st.integers(0, 99))
def test_unpack_returns_what_was_packed(make_tensor, encoding, rows, columns, seed):
    tensor = make_tensor(rows, columns, encoding, seed)
    packed = pack(tensor)
    back = unpack(packed)
    assert (back.shape, back.encoding) == (tensor.shape, encoding)
    for part, values in tensor.parts.items():
        assert back.parts[part].dtype == values.dtype
        assert back.parts[part].tobytes() == values.tobytes(), part
    lib.verify(packed)


@pytest.mark.parametrize("encoding", GOLDEN, ids=str)
def test_golden_bytes(encoding):
    assert hashlib.sha256(pack(fixed_tensor(encoding)).tobytes()).hexdigest()[:16] == GOLDEN[encoding]


def test_bits_per_weight_are_those_of_the_header_file(make_tensor):
    for encoding, bits in ((Affine(4, 64), 4.25), (Affine(3, 64), 3.25), (Affine(2, 128), 2.125)):
        assert (pack(make_tensor(64, 4096, encoding)).size - 64) * 8 / (64 * 4096) == bits
    zero_points = pack(make_tensor(64, 4096, Affine(4, 64, "zero_point")))
    assert (zero_points.size - 64) * 8 / (64 * 4096) == 4.25 + 8 / 64


@pytest.mark.parametrize("encoding", [Affine(3, 32), Affine(4, 64, "zero_point")], ids=str)
def test_every_changed_byte_is_noticed(make_tensor, encoding):
    packed = pack(make_tensor(17, 70, encoding))
    positions = [*range(64), *np.random.default_rng(0).integers(64, packed.size, 200)]
    for position in positions:
        damaged = packed.copy()
        damaged[position] ^= 1 << (position % 8)
        with pytest.raises(EdgeError):
            unpack(damaged)
        with pytest.raises(EdgeError):
            lib.verify(damaged)


def test_truncated_and_random_bytes_are_refused(make_tensor):
    packed = pack(make_tensor(40, 100, Affine(4, 32)))
    random = np.random.default_rng(0)
    longer = np.concatenate([packed, np.zeros(64, np.uint8)])
    foreign = [random.integers(0, 256, size, dtype=np.uint8) for size in (0, 1, 63, 64, 65, 4096)]
    x = np.zeros((1, 100), np.float32)
    for wrong in (packed[:0], packed[:63], packed[:64], packed[:-1], longer, *foreign):
        for use in (unpack, lib.verify, lambda bad: lib.linear(bad, x), lambda bad: lib.embedding(bad, np.zeros(1))):
            with pytest.raises(EdgeError):
                use(np.ascontiguousarray(wrong))


@pytest.mark.parametrize("value", [0, 1, 2, 5, 16, 128, 255])
@pytest.mark.parametrize("position", range(4, 32))
def test_any_header_is_refused_or_safe(make_tensor, position, value):
    """No header makes the library read outside the buffer: an edited one is refused, or means what it meant before."""
    packed = pack(make_tensor(40, 100, Affine(4, 32)))
    edited = packed.copy()
    edited[position] = value
    if (edited == packed).all():
        return
    with pytest.raises(EdgeError):
        lib.verify(edited)
    with pytest.raises(EdgeError):
        unpack(edited)
    x = np.zeros((2, 100), np.float32)
    try:
        lib.linear(edited, x)
        lib.embedding(edited, np.zeros(1, np.int64))
    except EdgeError as error:
        assert error.code in {"kernels.status", "kernels.shape"}


def test_what_the_format_cannot_hold(make_tensor):
    tensor = make_tensor(4, 64, Affine(4, 32))
    codes = tensor.parts["codes"] + np.uint8(16)
    with pytest.raises(EdgeError, match="more than 4 bits"):
        pack(replace(tensor, parts={**tensor.parts, "codes": codes}))
    scales = tensor.parts["scales"].copy()
    scales[1, 1] = np.inf
    with pytest.raises(EdgeError, match="infinite or NaN"):
        pack(replace(tensor, parts={**tensor.parts, "scales": scales}))
    with pytest.raises(EdgeError, match="overflows"):
        pack(make_tensor(1, 65537, Affine(8, 0)))


@pytest.mark.parametrize(("bits", "instead"), [(5, "4 bits"), (6, "8 bits"), (7, "8 bits")])
def test_unserved_bits_say_what_to_use(make_tensor, bits, instead):
    encoding = Affine(bits, 64)
    assert f"no kernel serves {bits} bits" in supported(encoding)
    assert instead in supported(encoding)
    with pytest.raises(UsageError, match=f"no kernel serves {bits} bits"):
        pack(make_tensor(2, 64, encoding))


def test_supported():
    assert all(supported(Affine(bits, 64)) == "" for bits in (2, 3, 4, 8))
    assert "not float32" in supported(Dense("float32"))
