import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge.core.errors import EdgeError, UsageError
from edge.core.weight import Affine, CompressedTensor, Dense, pack_bits, unpack_bits


@given(bits=st.integers(2, 8), rows=st.integers(1, 5), columns=st.integers(0, 70), seed=st.integers(0, 2**32 - 1))
def test_packed_bits_come_back(bits, rows, columns, seed):
    codes = np.random.default_rng(seed).integers(0, 1 << bits, (rows, columns)).astype(np.uint8)
    packed = pack_bits(codes, bits)
    assert packed.shape == (rows, -(-columns * bits // 8))
    assert np.array_equal(unpack_bits(packed, bits, columns), codes)


def test_bit_stream_has_its_documented_order():
    codes = np.array([[1, 2, 3, 4, 5, 6, 7, 0]], np.uint8)
    value = sum(int(code) << (3 * i) for i, code in enumerate(codes[0]))
    assert pack_bits(codes, 3).tobytes() == value.to_bytes(3, "little")


def test_wrong_size_of_packed_codes_is_an_error():
    with pytest.raises(EdgeError, match="packed codes"):
        unpack_bits(np.zeros((2, 3), np.uint8), 4, 7)


def affine(grid: str, columns: int = 70) -> CompressedTensor:
    random = np.random.default_rng(0)
    encoding = Affine(4, 32, grid)
    groups = encoding.groups(columns)
    parts = {
        "codes": random.integers(0, 16, (3, columns)).astype(np.uint8),
        "scales": random.random((3, groups)).astype(np.float16),
    }
    if grid == "zero_point":
        parts["zero_points"] = random.integers(0, 16, (3, groups)).astype(np.uint8)
    return CompressedTensor("w", (3, columns), encoding, parts)


@pytest.mark.parametrize("grid", ["symmetric", "zero_point"])
def test_dequantize_is_scale_times_code_minus_zero(grid):
    tensor = affine(grid)
    values = tensor.dequantize()
    for row in range(3):
        for column in range(70):
            group = column // 32
            zero = 8 if grid == "symmetric" else int(tensor.parts["zero_points"][row, group])
            scale = np.float32(tensor.parts["scales"][row, group])
            assert values[row, column] == scale * np.float32(int(tensor.parts["codes"][row, column]) - zero)


def test_stored_bytes_count_codes_scales_and_zero_points():
    assert affine("symmetric").stored_bytes == 3 * (35 + 2 * 3)
    assert affine("zero_point").stored_bytes == 3 * (35 + 2 * 3 + 2)


def test_bfloat16_bits_are_the_upper_half_of_float32():
    bits = np.array([[0x3F80, 0xC040]], np.uint16)
    tensor = CompressedTensor("w", (1, 2), Dense("bfloat16"), {"values": bits})
    assert tensor.dequantize().tolist() == [[1.0, -3.0]]


@pytest.mark.parametrize(("bits", "group"), [(1, 64), (9, 64), (4, 48), (4, -1)])
def test_unserved_bits_and_groups_are_refused_with_a_hint(bits, group):
    with pytest.raises(UsageError) as error:
        Affine(bits, group)
    assert error.value.hint


def test_a_part_of_the_wrong_shape_is_refused():
    tensor = affine("symmetric")
    with pytest.raises(EdgeError, match="scales"):
        CompressedTensor("w", tensor.shape, tensor.encoding, {**tensor.parts, "scales": np.zeros((3, 1), np.float16)})
