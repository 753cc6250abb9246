"""Weighted k-means in one dimension, for many rows at once: the optimum for few points, next to it for many.

In one dimension clusters are intervals of the sorted points, so that dynamic programming over their ends finds the
optimum. Many points are first put into bins, and Lloyd's iterations on all points follow: within a thousandth of the
optimum. Very many clusters start where their density says and end a few percent above it.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

BINS = 192
ROWS_AT_ONCE = 32  # bounds the memory: rows * BINS**2 costs
MANY = 32  # clusters from which on the dynamic programming gains nothing but time
LLOYD_ITERATIONS = 20


def scalar_kmeans(points: torch.Tensor, weights: torch.Tensor, clusters: int) -> torch.Tensor:
    """Centroids float32 [rows, clusters], ascending, of points [rows, n] with weights [rows, n] that are not negative.

    Minimises sum(weight * (point - nearest centroid)^2). Where a row has fewer different points than clusters, some
    centroids are equal.
    """
    found = [
        _clustered(some_points.double(), some_weights.double(), clusters)
        for some_points, some_weights in zip(points.split(ROWS_AT_ONCE), weights.split(ROWS_AT_ONCE), strict=True)
    ]
    return torch.cat(found)


def _clustered(points: torch.Tensor, weights: torch.Tensor, clusters: int) -> torch.Tensor:
    points, order = points.sort(-1)
    shift = points.mean(-1, keepdim=True)  # sums of squares stay small
    # A trace of weight for every point keeps means defined where a cluster has none.
    weights = weights.gather(-1, order) + 1e-12 * weights.mean(-1, keepdim=True) + 1e-30
    centred = (points - shift).contiguous()
    sums = [F.pad((weights * centred**power).cumsum(-1), (1, 0)) for power in (0, 1, 2)]
    many = clusters > MANY
    centroids = _companded(centred, sums, clusters) if many else _optimal(points, sums, clusters)
    for _ in range(LLOYD_ITERATIONS if many or points.shape[-1] > BINS else 0):
        middles = (centroids[:, 1:] + centroids[:, :-1]) / 2
        ends = torch.searchsorted(centred, middles.contiguous(), right=True)
        moved = _means(sums, F.pad(F.pad(ends, (1, 0)), (0, 1), value=points.shape[-1]))
        centroids = torch.where(moved.isnan(), centroids, moved)
    return (centroids + shift).float()


def _optimal(points: torch.Tensor, sums: list[torch.Tensor], clusters: int) -> torch.Tensor:
    """The best centroids [rows, clusters] for clusters that end at the bins' edges."""
    edges = _edges(points, BINS)
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


def _companded(points: torch.Tensor, sums: list[torch.Tensor], clusters: int) -> torch.Tensor:
    """Where very many centroids of sorted points would lie: as dense as the cube root of the points' density.

    Panter, Dite: "Quantization Distortion in Pulse-Count Modulation with Nonuniform Spacing of Levels", Proc. IRE 39,
    1951.
    """
    edges = _edges(points, 2 * clusters).contiguous()
    ends = F.pad(points, (0, 1), value=torch.inf).gather(-1, edges)
    ends[..., -1] = points[..., -1]
    mass = sums[0].gather(-1, edges).diff(dim=-1)
    share = F.pad((mass * ends.diff(dim=-1).square()).pow(1 / 3).cumsum(-1), (1, 0))
    wanted = (torch.arange(clusters, device=points.device, dtype=points.dtype) + 0.5) / clusters * share[..., -1:]
    above = torch.searchsorted(share, wanted).clamp_(1, share.shape[-1] - 1)
    (low, high), (start, end) = ((x.gather(-1, above - 1), x.gather(-1, above)) for x in (share, ends))
    return start + (end - start) * ((wanted - low) / (high - low).clamp_min(1e-300)).clamp_(0, 1)


def _means(sums: list[torch.Tensor], ends: torch.Tensor) -> torch.Tensor:
    """Mean of the points between every two ends, NaN where there is none."""
    weight, first = (s.gather(-1, ends).diff(dim=-1) for s in sums[:2])
    return torch.where(weight > 0, first / weight, torch.nan)


def _filled(centroids: torch.Tensor) -> torch.Tensor:
    """Empty clusters, NaN, on top of the one below (or of the first that isn't empty)."""
    filled = centroids.nan_to_num(nan=-torch.inf).cummax(-1)[0]
    first = centroids.nan_to_num(nan=torch.inf).amin(-1, keepdim=True)
    return torch.maximum(filled, first)
