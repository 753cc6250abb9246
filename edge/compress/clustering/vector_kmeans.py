"""Weighted k-means of many small sets of points at once: the tables of vector quantization.

The weights count alike where the means start and where points are assigned (van Baalen et al. 2024, arXiv:2402.15319,
sections 3.1 and 3.2). Nothing is drawn at random.
"""

from __future__ import annotations

import torch

from edge.compress.clustering.scalar_kmeans import scalar_kmeans

DISTANCES_AT_ONCE = 1 << 22  # bounds the memory


def weighted_means(points: torch.Tensor, weights: torch.Tensor, count: int, iterations: int) -> torch.Tensor:
    """Means [sets, count, dim] of points [sets, points, dim] with weights >= 0 of the same shape, by dimension.

    They lower sum of w_d (x_d - c_d)^2 over points and dimensions d: in one dimension, where they rise, to (about) the
    least that there is, in several by EM from the paper's start.
    """
    if points.shape[2] == 1:
        return scalar_kmeans(points[..., 0], weights[..., 0], count)[..., None]
    means = _spread_by_distance(points, weights, count)
    moments = weights * points
    features = torch.cat([weights, moments], 2)
    for _ in range(iterations):
        codes = nearest(features, means)[..., None].expand_as(points)
        mass = torch.zeros_like(means).scatter_add_(1, codes, weights)
        moment = torch.zeros_like(means).scatter_add_(1, codes, moments)
        means = torch.where(mass > 0, moment / mass, means)
    return means


def _spread_by_distance(points: torch.Tensor, weights: torch.Tensor, count: int) -> torch.Tensor:
    """The paper's start: points at even shares of the weight, sorted by their Mahalanobis distance to the mean."""
    mass = weights.sum(1, keepdim=True).clamp_min(1e-30)
    centred = points - (weights * points).sum(1, keepdim=True) / mass
    whole = weights.sum(2)
    covariance = torch.einsum("tni,tnj,tn->tij", centred, centred, whole / whole.sum(1, keepdim=True).clamp_min(1e-30))
    ridge = covariance.diagonal(dim1=1, dim2=2).mean(1).mul(1e-6).clamp_min(1e-20)
    inverse = torch.linalg.inv(covariance + ridge[:, None, None] * torch.eye(points.shape[2], device=points.device))
    order = torch.einsum("tni,tij,tnj->tn", centred, inverse, centred).argsort(dim=1, stable=True)
    running = whole.gather(1, order).double().cumsum(1)
    shares = (torch.arange(count, dtype=torch.float64, device=points.device) + 0.5) / count
    at = torch.searchsorted(running, running[:, -1:] * shares).clamp_(max=points.shape[1] - 1)
    return points.gather(1, order.gather(1, at)[..., None].expand(-1, -1, points.shape[2]))


def nearest(features: torch.Tensor, means: torch.Tensor) -> torch.Tensor:
    """The index of the mean that every point is nearest to, int64 [sets, points].

    features: weights beside weights * points, so that distances, but for a constant, are one product.
    """
    codes = torch.empty(features.shape[:2], dtype=torch.int64, device=features.device)
    against = torch.cat([means.square(), -2 * means], 2).mT.contiguous()
    step = max(1, DISTANCES_AT_ONCE // (means.shape[0] * means.shape[1]))
    for start in range(0, features.shape[1], step):
        part = slice(start, start + step)
        codes[:, part] = (features[:, part] @ against).argmin(2)
    return codes
