"""Rows of a packed matrix: the values that its encoding stands for, for every layout."""

from __future__ import annotations

import numpy as np
import pytest

from edge.core.encoding import Affine, Codebook, GroupMixed, Sparse
from edge.core.errors import EdgeError
from edge.kernels import lib, pack
from edge.kernels.testing import EVERY_LAYOUT, random_tensor

MORE = (
    Affine(2, 32),
    Affine(8, 128, "zero_point"),
    Affine(4, 0, "half_integer"),
    Codebook(3, dim=2, group_size=64),
    Codebook(2, entry="int16", group_size=32, table_columns=64),
    Codebook(4, table_rows=12, table_columns=128),
    GroupMixed(64, 3),
    Sparse("16x4", 4, 128),
    Sparse("2:4", 8, 32),
)


@pytest.mark.parametrize("encoding", [*EVERY_LAYOUT, *MORE], ids=str)
@pytest.mark.parametrize("shape", [(77, 132), (16, 576)], ids=str)
def test_embedding_is_dequantize(shape, encoding):
    tensor = random_tensor(*shape, encoding)
    ids = np.concatenate([np.arange(shape[0]), [shape[0] - 1, 0, 5]]).reshape(1, -1)
    assert np.array_equal(lib.embedding(pack(tensor), ids), tensor.dequantize()[ids])
    assert lib.embedding(pack(tensor), np.zeros((0, 3), np.int64)).shape == (0, 3, shape[1])


@pytest.mark.parametrize("bad", [-1, 77, 2**62, -(2**63)])
def test_ids_outside_the_table_are_refused(bad):
    with pytest.raises(EdgeError, match="row that is not there"):
        lib.embedding(pack(random_tensor(77, 100, Affine(4, 32))), np.array([1, bad]))
