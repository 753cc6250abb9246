"""Random compressed matrices: what the kernels' tests run on, here and on devices."""

from __future__ import annotations

import numpy as np

from edge.core.weight import Affine, CompressedTensor


def random_tensor(rows: int, columns: int, encoding: Affine, seed: int = 0) -> CompressedTensor:
    """Codes over the whole range, scales of both signs and 0."""
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
