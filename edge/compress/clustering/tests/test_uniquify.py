"""eDKM's uniquification has DKM's results and gradients, and saves 2 bytes a point."""

from functools import partial

import pytest
import torch

from edge.compress.clustering.soft import soft_assign
from edge.compress.clustering.uniquify import BLOCKS_AT_ONCE, soft_assign_unique
from edge.core.errors import UsageError


def assert_equal(points, centroids, narrow=torch.bfloat16, **options):
    """Clustered, centroids and gradient are those of DKM on the same 16-bit points, from the same arriving gradient.

    Float32 may be further off: DKM in it is itself up to 7e-6 from float64, where terms cancel.
    """
    unique = run(partial(soft_assign_unique, narrow=narrow), points, centroids, narrow, torch.float32, **options)
    for dtype, bound in ((torch.float32, 1e-5), (torch.float64, 1e-6)):
        for expected, got in zip(run(soft_assign, points, centroids, narrow, dtype, **options), unique, strict=True):
            assert got.dtype == torch.float32
            assert (got - expected).abs().max() <= bound * expected.abs().max()


def run(assign, points, centroids, narrow, dtype, **options):
    leaf = points.to(narrow).to(dtype).requires_grad_()
    clustered, moved = assign(leaf, centroids.to(dtype), 0.1, **options)
    clustered.backward(torch.randn(clustered.shape, generator=torch.Generator().manual_seed(1)).to(dtype))
    return clustered.detach(), moved, leaf.grad


def random(blocks, n, k=8, seed=0):
    """Normal points, and centroids spread over them."""
    points = torch.randn(blocks, n, 1, generator=torch.Generator().manual_seed(seed))
    return points, torch.linspace(-2, 2.2, k).reshape(1, k, 1).repeat(blocks, 1, 1)


@pytest.mark.parametrize("narrow", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("pinned_zero", [False, True])
@pytest.mark.parametrize("blocks", [1, 3, BLOCKS_AT_ONCE + 1])
def test_gradients_are_those_of_dkm(narrow, pinned_zero, blocks):
    points, centroids = random(blocks, 2000)
    points[:, ::3] = points[:, 1:2]  # repeated, and blocks with different numbers of patterns
    points[0, ::2] = 0
    points[0, 2] = -0.0
    assert_equal(points, centroids, narrow, pinned_zero=pinned_zero, tolerance=0.0)


def test_points_beyond_one_piece(monkeypatch):
    monkeypatch.setattr("edge.compress.clustering.uniquify.POINTS_AT_ONCE", 300)
    assert_equal(*random(2, 1000))


def test_weights_that_are_all_equal():
    points, centroids = random(1, 100)
    assert_equal(torch.full_like(points, 0.3), centroids)
    assert_equal(torch.zeros_like(points), centroids, pinned_zero=True)


def test_it_stops_where_dkm_does():
    points, centroids = random(2, 500)
    for tolerance in (1e-2, 1e-1, 1.0):
        assert_equal(points, centroids, iterations=6, tolerance=tolerance)


def test_only_the_16_bit_points_are_saved():
    points, centroids = random(1, 5000)
    weight = points.bfloat16().requires_grad_()
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        clustered, _ = soft_assign_unique(weight, centroids, 0.02)
    assert saved[0].untyped_storage().data_ptr() == weight.untyped_storage().data_ptr()  # not even a copy
    assert sum(t.numel() for t in saved[1:]) == centroids.numel()
    clustered.sum().backward()
    assert weight.grad.dtype == torch.bfloat16


def test_vectors_are_refused():
    with pytest.raises(UsageError, match="vectors of 2"):
        soft_assign_unique(torch.zeros(1, 4, 2), torch.zeros(1, 4, 2), 0.1)
