"""Random compressed matrices for the kernels' tests."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from edge.core.weight import Affine, CompressedTensor

MakeTensor = Callable[..., CompressedTensor]


@pytest.fixture(scope="session")
def make_tensor() -> MakeTensor:
    """make_tensor(rows, columns, Affine(...), seed=0): codes over the whole range, scales of both signs and 0."""

    def make(rows: int, columns: int, encoding: Affine, seed: int = 0) -> CompressedTensor:
        random = np.random.default_rng(seed)
        groups = (rows, encoding.groups(columns))
        scales = random.standard_normal(groups) * np.exp2(random.integers(-14, 1, groups))
        scales[random.random(groups) < 0.05] = 0
        parts = {
            "codes": random.integers(0, 1 << encoding.bits, (rows, columns), dtype=np.uint8),
            "scales": scales.astype(np.float16),
        }
        if encoding.grid == "zero_point":
            parts["zero_points"] = random.integers(0, 1 << encoding.bits, groups, dtype=np.uint8)
        return CompressedTensor("w", (rows, columns), encoding, parts)

    return make
