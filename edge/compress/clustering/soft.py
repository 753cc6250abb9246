"""DKM: soft assignment of points to centroids that gradients flow through (differentiable k-means).

Cho, Alizadeh-Vahid, Adya, Rastegari: "DKM: Differentiable K-Means Clustering Layer for Neural Network Compression",
ICLR 2022, arXiv:2108.12659, section 3.2. The distance is the squared Euclidean one, which has a gradient where a point
lies on its centroid; `temperature` is then in units of squared points.
"""

from __future__ import annotations

import torch

# A centroid that draws less than this much of one point has no mean worth the name, and stays.
LEAST_ATTENTION = 1e-6


def soft_assign(
    points: torch.Tensor,
    centroids: torch.Tensor,
    temperature: float,
    *,
    iterations: int = 3,
    tolerance: float = 1e-4,
    pinned_zero: bool = False,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Points [blocks, n, dim] as mixtures of centroids [blocks, k, dim], and the centroids, moved to their points.

    Repeats `attention = softmax(-|point - centroid|^2 / temperature)` and `centroid = mean of points, weighted by
    attention` until no centroid moves further than `tolerance`, or `iterations` times (1 or more). Returns clustered
    [blocks, n, dim] = attention @ centroids, which has gradients to `points` through every iteration, and centroids
    [blocks, k, dim] without a gradient, where the next step of a training starts from. Arithmetic and results have the
    wider type of points and centroids; float16 alone is too narrow for the sums.

    pinned_zero: in each block the centroid next to zero is exactly zero and stays it. Points that are exactly zero
    belong to it alone: they stay zero, get no gradient, and pull no other centroid.
    """
    dtype = torch.promote_types(points.dtype, centroids.dtype)
    points, centroids = points.to(dtype), centroids.detach().to(dtype)
    pinned = nearest_to_zero(centroids) if pinned_zero else None
    attention, _, centroids = settle(points, centroids, temperature, iterations, tolerance, pinned)
    return mixtures(attention, centroids), centroids.detach()


def settle(
    points: torch.Tensor,
    centroids: torch.Tensor,
    temperature: float,
    iterations: int,
    tolerance: float,
    pinned: torch.Tensor | None,
    counts: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The last attention [blocks, n, k], the centroids [blocks, k, dim] that it attends to, and those it moved them to.

    counts [blocks, n, 1]: how often each point occurs; None is once.
    """
    if pinned is not None:
        centroids = centroids.masked_fill(pinned, 0)
    for _ in range(iterations):
        before = centroids
        attention = attend(points, before, temperature, pinned)
        weights = attention if counts is None else attention * counts
        centroids = _means(weights, points, before)
        if pinned is not None:
            centroids = centroids.masked_fill(pinned, 0)
        if (centroids.detach() - before.detach()).abs().max() <= tolerance:
            break
    return attention, before, centroids


def attend(
    points: torch.Tensor, centroids: torch.Tensor, temperature: float, pinned: torch.Tensor | None
) -> torch.Tensor:
    """Attention [blocks, n, k] of points [blocks, n, dim] to centroids [blocks, k, dim]; each point's sums to 1."""
    distances = (points[:, :, None] - centroids[:, None]).square().sum(-1)
    if pinned is not None:
        pruned = (points == 0).all(-1, keepdim=True)
        distances = distances.masked_fill(pruned & ~pinned.transpose(1, 2), torch.inf)
    return torch.softmax(-distances / temperature, -1)


def mixtures(attention: torch.Tensor, centroids: torch.Tensor) -> torch.Tensor:
    """attention [blocks, n, k] @ centroids [blocks, k, dim], [blocks, n, dim].

    Not a matrix product: in its gradient by centroids, as in means, that adds n numbers one by one where `sum` adds in
    pairs. With 200,000 points in float32 that makes 100 times the error in the gradients by points.
    """
    return (attention[..., None] * centroids[:, None]).sum(2)


def nearest_to_zero(centroids: torch.Tensor) -> torch.Tensor:
    """Which centroid [blocks, k, 1] of each block is next to zero: one True a block."""
    chosen = centroids.square().sum(-1, keepdim=True).argmin(1, keepdim=True)
    return torch.zeros_like(centroids[..., :1], dtype=torch.bool).scatter_(1, chosen, True)


def _means(weights: torch.Tensor, points: torch.Tensor, centroids: torch.Tensor) -> torch.Tensor:
    """Means [blocks, k, dim] of points by weights [blocks, n, k]; the centroid itself where nothing has a weight."""
    totals = weights.sum(1)[..., None]
    means = (weights[..., None] * points[:, :, None]).sum(1) / totals.clamp(min=LEAST_ATTENTION)
    return torch.where(totals > LEAST_ATTENTION, means, centroids)
