"""The kernels of group-mixed and sparse matrices against NumPy, bit for bit, and on blobs that lie about themselves."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest

from edge.core.encoding import GroupMixed, Sparse
from edge.core.errors import EdgeError
from edge.kernels import lib, pack, reference
from edge.kernels.packed_header import HEADER_BYTES
from edge.kernels.testing import random_tensor, with_header

SHAPES = [(1, 4), (16, 32), (33, 100), (50, 576), (130, 260)]  # (rows, columns)
TOKENS = [1, 2, 3, 5, 8, 17]
KERNELS = [row for row in lib.kernels() if row.encoding in ("group_mixed", "sparse")]


def random_x(tokens: int, columns: int) -> np.ndarray:
    return np.random.default_rng(tokens * 1000 + columns).standard_normal((tokens, columns)).astype(np.float32)


def encodings(kernel: lib.Kernel) -> list[GroupMixed | Sparse]:
    if kernel.encoding == "sparse":
        return [Sparse(kernel.pattern, kernel.bits, group_size) for group_size in (0, 32, 64, 128)]
    grids, scales = ("symmetric", "zero_point")[: kernel.bits], ("group", "second_order")
    forms = [(size, grid, scale) for size in (32, 64, 128) for grid in grids for scale in scales]
    return [GroupMixed(size, 1, grid, scale, kernel.bits) for size, grid, scale in forms]


CASES = [(kernel, encoding) for kernel in KERNELS for encoding in encodings(kernel)]


@cache
def packed_matrix(rows: int, columns: int, encoding: GroupMixed | Sparse) -> np.ndarray:
    return pack(random_tensor(rows, columns, encoding, seed=rows))


@cache
def expected(rows: int, columns: int, encoding: GroupMixed | Sparse, tokens: int, activations: str) -> np.ndarray:
    bias = random_x(1, rows)[0]
    return reference.linear(packed_matrix(rows, columns, encoding), random_x(tokens, columns), activations, bias)


def test_every_pattern_has_kernels():
    patterns = [f"sparse{bits}_{pattern}" for bits in (4, 8) for pattern in ("16x8", "16x4", "2of4")]
    kinds = (*patterns, "mixed1", "mixed2")
    wanted = {f"{kind}_{mode}_{isa}" for kind in kinds for mode in ("a8", "f32") for isa in lib.isas()}
    assert {row.name for row in KERNELS} >= wanted - {name for name in wanted if "i8mm" in name}


@pytest.mark.parametrize(("kernel", "encoding"), CASES, ids=lambda value: getattr(value, "name", str(value)))
def test_kernel_equals_numpy(kernel, encoding):
    if not kernel.available:
        pytest.skip(f"this CPU has no {kernel.isa}")
    for rows, columns in SHAPES:
        packed = packed_matrix(rows, columns, encoding)
        assert lib.kernel_name(packed, kernel.isa, kernel.activations) == kernel.name
        bias = random_x(1, rows)[0]
        for tokens in TOKENS:
            got = lib.linear(packed, random_x(tokens, columns), kernel.isa, activations=kernel.activations, bias=bias)
            assert np.array_equal(got, expected(rows, columns, encoding, tokens, kernel.activations)), (rows, tokens)


@pytest.mark.parametrize("grid_and_bits", [("zero_point", 2), ("symmetric", 1)])
@pytest.mark.parametrize("high_groups", [0, 2, 5])
@pytest.mark.parametrize("isa", lib.isas())
def test_any_number_of_groups_at_more_bits(isa, high_groups, grid_and_bits):
    grid, bits = grid_and_bits
    packed = packed_matrix(40, 150, GroupMixed(32, high_groups, grid, bits=bits))
    assert np.array_equal(lib.linear(packed, random_x(3, 150), isa), reference.linear(packed, random_x(3, 150)))


@pytest.mark.parametrize("density", [0.0, 0.1, 0.25, 0.5, 1.0])
@pytest.mark.parametrize("pattern", ["16x8", "16x4"])
@pytest.mark.parametrize("isa", lib.isas())
def test_any_density(isa, pattern, density):
    """A few tokens go several blocks ahead: as many as most groups of the tile have."""
    tensor = random_tensor(64, 512, Sparse(pattern, 4, 64))
    tensor.parts["mask"][:] = np.random.default_rng(0).random(tensor.parts["mask"].shape) < density
    kept = tensor.encoding.kept(tensor.parts)
    tensor.parts["codes"][:] = np.where(kept, np.random.default_rng(1).integers(0, 16, kept.shape), 8)
    packed = pack(tensor)
    for tokens in (1, 2, 3):
        x = random_x(tokens, 512)
        assert np.array_equal(lib.linear(packed, x, isa), reference.linear(packed, x))


@pytest.mark.parametrize("isa", lib.isas())
@pytest.mark.parametrize("pattern", ["16x8", "16x4", "2:4"])
def test_extremes_do_not_overflow(pattern, isa):
    """The lowest and highest code of 8 bits meet the strongest activations."""
    for code in (0, 255):
        tensor = random_tensor(16, 8192, Sparse(pattern, 8, 0))
        tensor.parts["scales"][:] = 1
        if pattern != "2:4":
            tensor.parts["mask"][:] = 1
        tensor.parts["codes"][tensor.encoding.kept(tensor.parts)] = code
        packed = pack(tensor)
        for sign in (1, -1):
            x = np.full((9, 8192), sign, np.float32)
            assert np.array_equal(lib.linear(packed, x, isa), reference.linear(packed, x))


@pytest.mark.parametrize("encoding", [Sparse("16x8", 4, 64), Sparse("2:4", 8, 64), GroupMixed(64, 2)], ids=str)
def test_a_token_with_nan_is_nan_and_threads_change_nothing(encoding):
    packed = packed_matrix(700, 576, encoding)
    x = random_x(9, 576)
    x[3, 100] = np.nan
    got = lib.linear(packed, x)
    assert np.isnan(got[3]).all()
    assert np.isfinite(np.delete(got, 3, axis=0)).all()
    assert np.array_equal(lib.linear(packed, x, threads=3), got, equal_nan=True)


def run_everything(packed: np.ndarray, columns: int) -> None:
    """On a blob whose numbers are wrong no kernel may read outside of it; what comes out means nothing."""
    for isa in lib.isas():
        for activations in ("a8", "f32"):
            for tokens in (1, 2, 9):
                assert lib.linear(packed, random_x(tokens, columns), isa, activations=activations).shape[0] == tokens
    lib.embedding(packed, np.arange(40))


def blob_with_words(packed: np.ndarray, at: int, values: list[int], dtype: str) -> np.ndarray:
    """A copy with these numbers at byte `at` of the payload, and the checksum that belongs to it."""
    copy = packed.copy()
    written = np.array(values, dtype).view(np.uint8)
    copy[HEADER_BYTES + at : HEADER_BYTES + at + written.size] = written
    return with_header(copy)


@pytest.mark.parametrize("index", range(4))
@pytest.mark.parametrize("offset", [0, 1, 2**20, 2**32 - 1, -1])
@pytest.mark.parametrize("pattern", ["16x8", "16x4"])
def test_wrong_offsets(pattern, offset, index):
    packed = packed_matrix(40, 260, Sparse(pattern, 4, 64))
    offsets = packed[HEADER_BYTES:][:16].view("<u4")
    wrong = int(offsets[index]) - 1 if offset == -1 else offset
    if wrong == offsets[index]:
        wrong += 1
    damaged = blob_with_words(packed, 4 * index, [wrong], "<u4")
    with pytest.raises(EdgeError, match="damaged"):
        lib.verify(damaged)
    run_everything(damaged, 260)


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("pattern", ["16x8", "16x4"])
def test_wrong_counts_and_indices(pattern, bits):
    """Of the last tile: behind it the blob ends."""
    tensor = random_tensor(40, 260, Sparse(pattern, bits, 64))
    tensor.parts["mask"][2] = 1
    tensor.parts["codes"][32:] = 3
    packed = pack(tensor)
    lib.verify(packed)
    start = int(packed[HEADER_BYTES:][:16].view("<u4")[2]) * 64
    counts = packed[HEADER_BYTES + start :][:10].view("<u2")
    blocks = int(counts[0])
    cases = [(group, int(counts[group]) ^ wrong) for group in range(5) for wrong in (1, 2, 64, 65535)]
    cases += [(5, 1), (5, blocks), (6, 0), (5 + blocks, blocks - 1), (4 + int(counts.sum()), 65535)]
    for word, wrong in cases:
        damaged = blob_with_words(packed, start + 2 * word, [wrong], "<u2")
        with pytest.raises(EdgeError, match="damaged"):
            lib.verify(damaged)
        run_everything(damaged, 260)


@pytest.mark.parametrize("order", [[0, 1, 2, 4, 4], [1, 0, 2, 3, 4], [0, 1, 2, 4, 3], [0, 1, 2, 3, 5], [65535] * 5])
def test_wrong_orders(order):
    packed = packed_matrix(40, 260, GroupMixed(64, 2, "zero_point", "second_order"))
    lib.verify(packed)
    damaged = blob_with_words(packed, 0, order, "<u2")
    with pytest.raises(EdgeError, match="damaged"):
        lib.verify(damaged)
    run_everything(damaged, 260)
