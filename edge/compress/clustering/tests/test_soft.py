"""DKM's soft assignment: it finds clusters, has the gradients of its formula, and keeps zeros zero."""

import pytest
import torch

from edge.compress.clustering.soft import soft_assign


def points_and_centroids(blocks=2, n=40, k=4, dim=1, seed=0):
    generator = torch.Generator().manual_seed(seed)
    points = torch.randn(blocks, n, dim, generator=generator, dtype=torch.float64)
    return points, points[:, :k].clone()


@pytest.mark.parametrize("dim", [1, 2])
@pytest.mark.parametrize("pinned_zero", [False, True])
def test_gradients_are_those_of_the_formula(dim, pinned_zero):
    points, centroids = points_and_centroids(n=12, dim=dim)
    points.requires_grad_()
    options = {"iterations": 2, "tolerance": 0.0, "pinned_zero": pinned_zero}
    assert torch.autograd.gradcheck(lambda x: soft_assign(x, centroids, 0.5, **options)[0], points)


def test_a_cold_assignment_is_k_means():
    """Near zero temperature every point is its nearest centroid, and centroids are their points' means."""
    points = torch.tensor([0.0, 0.1, 0.2, 5.0, 5.2, 9.0]).reshape(1, -1, 1)
    clustered, centroids = soft_assign(points, torch.tensor([1.0, 4.0, 8.0]).reshape(1, -1, 1), 1e-3)
    assert centroids.flatten().tolist() == pytest.approx([0.1, 5.1, 9.0])
    assert clustered.flatten().tolist() == pytest.approx([0.1, 0.1, 0.1, 5.1, 5.1, 9.0])
    assert not centroids.requires_grad


def test_blocks_do_not_mix():
    points, centroids = points_and_centroids()
    together, _ = soft_assign(points, centroids, 0.3, tolerance=0.0)
    for block in range(2):
        alone, _ = soft_assign(points[block : block + 1], centroids[block : block + 1], 0.3, tolerance=0.0)
        torch.testing.assert_close(together[block : block + 1], alone)


def test_stops_when_nothing_moves():
    points, centroids = points_and_centroids()
    once = soft_assign(points, centroids, 0.3, iterations=1)[1]
    assert torch.equal(soft_assign(points, centroids, 0.3, iterations=5, tolerance=1e9)[1], once)
    assert not torch.equal(soft_assign(points, centroids, 0.3, iterations=5)[1], once)


def test_pruned_zeros_stay_zero():
    points, centroids = points_and_centroids(blocks=1, n=200)
    points[:, ::2] = 0
    points.requires_grad_()
    clustered, moved = soft_assign(points, centroids, 1.0, pinned_zero=True)
    clustered.square().sum().backward()
    assert (moved == 0).sum() == 1
    assert (clustered[:, ::2] == 0).all()
    assert (points.grad[:, ::2] == 0).all()
    assert (points.grad[:, 1::2] != 0).all()
    # other centroids are where they would be without the zeros
    alone = soft_assign(points[:, 1::2], centroids, 1.0, pinned_zero=True)[1]
    torch.testing.assert_close(moved, alone)


def test_a_centroid_that_nobody_wants_stays():
    points = torch.linspace(-1, 1, 50).reshape(1, -1, 1).requires_grad_()
    clustered, centroids = soft_assign(points, torch.tensor([-1.0, 1.0, 1e4]).reshape(1, -1, 1), 0.1)
    clustered.sum().backward()
    assert centroids[0, 2, 0] == 1e4
    assert points.grad.isfinite().all()


def test_bfloat16_is_near_float32():
    points, centroids = (t.float() for t in points_and_centroids(n=500, k=8))
    exact, _ = soft_assign(points, centroids, 0.05)
    narrow, moved = soft_assign(points.bfloat16(), centroids.bfloat16(), 0.05)
    assert narrow.dtype == moved.dtype == torch.bfloat16
    assert soft_assign(points.bfloat16(), centroids, 0.05)[0].dtype == torch.float32
    assert (narrow.float() - exact).square().mean() < 1e-3 * exact.square().mean()


def test_sums_over_many_points_keep_their_precision():
    points = torch.randn(1, 50_000, 1, generator=torch.Generator().manual_seed(0))
    gradients = []
    for dtype in (torch.float64, torch.float32):
        x = points.to(dtype).requires_grad_()
        soft_assign(x, torch.linspace(-2, 2, 8, dtype=dtype).reshape(1, 8, 1), 0.1)[0].square().sum().backward()
        gradients.append(x.grad)
    assert (gradients[1] - gradients[0]).abs().max() < 1e-5 * gradients[0].abs().max()
