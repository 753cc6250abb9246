"""Weighted k-means in one dimension against the optimum by trying every partition."""

from itertools import combinations, pairwise

import pytest
import torch

from edge.compress.clustering.scalar_kmeans import scalar_kmeans


def cost(points, weights, centroids):
    return (weights * (points[..., None] - centroids[..., None, :]).square().amin(-1)).sum(-1)


def optimum(points, weights, clusters):
    """The least cost of one row, over all ways to cut the sorted points."""
    points, order = points.sort()
    weights = weights[order]
    best = float("inf")
    for cuts in combinations(range(1, len(points)), clusters - 1):
        ends = [0, *cuts, len(points)]
        total = 0.0
        for first, end in pairwise(ends):
            x, w = points[first:end], weights[first:end]
            total += float((w * (x - (w * x).sum() / w.sum()).square()).sum())
        best = min(best, total)
    return best


@pytest.mark.parametrize("clusters", [2, 3, 4])
def test_the_optimum_for_few_points(clusters):
    generator = torch.Generator().manual_seed(clusters)
    points = torch.randn(8, 11, generator=generator) * 3 + 50
    weights = torch.rand(8, 11, generator=generator) ** 3
    centroids = scalar_kmeans(points, weights, clusters)
    assert (centroids.diff(dim=-1) >= 0).all()
    for row in range(8):
        best = optimum(points[row].double(), weights[row].double(), clusters)
        assert cost(points[row], weights[row], centroids[row]) == pytest.approx(best, rel=1e-3, abs=1e-6)


def test_many_points_with_rare_large_ones_come_near_the_optimum():
    """Three bumps of very different sizes and four far points: the clusters are known."""
    generator = torch.Generator().manual_seed(0)
    bumps = [torch.randn(5000, generator=generator) * 0.1 + centre for centre in (-1.0, 0.0, 2.0)]
    points = torch.cat([*bumps, torch.tensor([100.0, 101, 100.5, 100.2])])[None]
    found = scalar_kmeans(points, torch.ones_like(points), 4)
    torch.testing.assert_close(found, torch.tensor([[-1.0, 0, 2, 100.425]]), atol=0.01, rtol=0)


def test_points_without_weight_do_not_count_and_equal_points_share():
    points = torch.tensor([[1.0, 2, 3, 1000, 1000], [5, 5, 5, 5, 5]])
    weights = torch.tensor([[1.0, 1, 1, 0, 0], [1, 1, 1, 1, 1]])
    found = scalar_kmeans(points, weights, 3)
    assert cost(points, weights, found).max() < 1e-3
    assert found[1].tolist() == [5, 5, 5]
