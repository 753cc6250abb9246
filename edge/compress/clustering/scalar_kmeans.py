"""Weighted k-means in one dimension, for many rows at once: the optimum for few points, next to it for many.

In one dimension clusters are intervals of the sorted points, so that dynamic programming over their ends finds the
optimum. Many points are first put into bins, and Lloyd's iterations on all points follow.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

BINS = 192  # at least, and twice as many as clusters
COSTS_AT_ONCE = 32 * BINS**2  # bounds the memory: rows * bins**2
LLOYD_ITERATIONS = 20


def scalar_kmeans(points: torch.Tensor, weights: torch.Tensor, clusters: int) -> torch.Tensor:
    """Centroids float32 [rows, clusters], ascending, of points [rows, n] with weights [rows, n] that are not negative.

    Minimises sum(weight * (point - nearest centroid)^2). Where a row has fewer different points than clusters, some
    centroids are equal.
    """
    rows = max(1, COSTS_AT_ONCE // max(BINS, 2 * clusters) ** 2)
    found = [
        _clustered(some_points.double(), some_weights.double(), clusters)
        for some_points, some_weights in zip(points.split(rows), weights.split(rows), strict=True)
    ]
    return torch.cat(found)


def _clustered(points: torch.Tensor, weights: torch.Tensor, clusters: int) -> torch.Tensor:
    points, order = points.sort(-1)
    bins = max(BINS, 2 * clusters)
    shift = points.mean(-1, keepdim=True)  # sums of squares stay small
    # A trace of weight for every point keeps means defined where a cluster has none.
    weights = weights.gather(-1, order) + 1e-12 * weights.mean(-1, keepdim=True) + 1e-30
    centred = (points - shift).contiguous()
    sums = [F.pad((weights * centred**power).cumsum(-1), (1, 0)) for power in (0, 1, 2)]
    centroids = _optimal(points, sums, clusters, bins)
    for _ in range(LLOYD_ITERATIONS if points.shape[-1] > bins else 0):
        middles = (centroids[:, 1:] + centroids[:, :-1]) / 2
        ends = torch.searchsorted(centred, middles.contiguous(), right=True)
        moved = _means(sums, F.pad(F.pad(ends, (1, 0)), (0, 1), value=points.shape[-1]))
        centroids = torch.where(moved.isnan(), centroids, moved)
    return (centroids + shift).float()


def _optimal(points: torch.Tensor, sums: list[torch.Tensor], clusters: int, bins: int) -> torch.Tensor:
    """The best centroids [rows, clusters] for clusters that end at the bins' edges."""
    edges = _edges(points, bins)
    weight, first, second = (s.gather(-1, edges) for s in sums)
    # cost[i, j] of a cluster from edge i to edge j
    spans = [s[:, None, :] - s[:, :, None] for s in (weight, first, second)]
    cost = spans[2] - torch.where(spans[0] > 0, spans[1].square() / spans[0], 0)
    above = torch.ones(cost.shape[-2:], dtype=torch.bool, device=cost.device).triu()
    cost = torch.where(above, cost.clamp(min=0), torch.inf)
    best, choices = cost[:, 0], []
    for _ in range(clusters - 1):
        best, chosen = (best[:, :, None] + cost).min(1)
        choices.append(chosen)
    end = torch.full((len(points), 1), edges.shape[-1] - 1, device=points.device)
    ends = [end]
    for chosen in reversed(choices):
        ends.append(chosen.gather(-1, ends[-1]))
    ends.append(torch.zeros_like(end))
    means = _means(sums, edges.gather(-1, torch.cat(ends[::-1], -1)))
    return _filled(means)


def _edges(points: torch.Tensor, bins: int) -> torch.Tensor:
    """Where bins begin and end among n sorted points, [rows, edges]: half of them after equal counts of points, half
    after equal steps, so that tails get bins too.
    """
    rows, n = points.shape
    if n <= bins:
        return torch.arange(n + 1, device=points.device).expand(rows, -1)
    counts = torch.linspace(0, n, bins // 2 + 1, device=points.device, dtype=points.dtype).long().expand(rows, -1)
    low, high = points[:, :1], points[:, -1:]
    shares = torch.linspace(0, 1, bins // 2 + 1, dtype=points.dtype, device=points.device)[1:-1]
    steps = low + (high - low) * shares
    return torch.cat([counts, torch.searchsorted(points.contiguous(), steps.contiguous())], -1).sort(-1)[0]


def _means(sums: list[torch.Tensor], ends: torch.Tensor) -> torch.Tensor:
    """Mean of the points between every two ends, NaN where there is none."""
    weight, first = (s.gather(-1, ends).diff(dim=-1) for s in sums[:2])
    return torch.where(weight > 0, first / weight, torch.nan)


def _filled(centroids: torch.Tensor) -> torch.Tensor:
    """Empty clusters, NaN, on top of the one below (or of the first that isn't empty)."""
    filled = centroids.nan_to_num(nan=-torch.inf).cummax(-1)[0]
    first = centroids.nan_to_num(nan=torch.inf).amin(-1, keepdim=True)
    return torch.maximum(filled, first)
