"""The kernels' tests get their matrices as a fixture."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from edge.core.weight import CompressedTensor
from edge.kernels.testing import random_tensor


@pytest.fixture(scope="session")
def make_tensor() -> Callable[..., CompressedTensor]:
    """make_tensor(rows, columns, Affine(...), seed=0)"""
    return random_tensor
