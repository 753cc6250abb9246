"""The optimum of weighted k-means in one dimension, over all points, by dynamic programming.

Clusters are intervals of the sorted points, and the best last cut of the first i points rises with i (the cost has the
quadrangle inequality: Wu, "Optimal Quantization by Matrix Searching", J. Algorithms 12, 1991). So the cut of the point
in the middle bounds those of both halves: divide and conquer finds all of them in O(n log n) per cluster, and all
points of a level of the recursion are worked on at once.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

Doubles = NDArray[np.float64]
Indices = NDArray[np.int64]
PAIRS_AT_ONCE = 1 << 20  # bounds the memory


def exact_kmeans(points: torch.Tensor, weights: torch.Tensor, clusters: int) -> torch.Tensor:
    """Centroids float32 [rows, clusters], ascending, of points [rows, n] with weights [rows, n] that are not negative.

    Least sum(weight * (point - nearest centroid)^2) that there is. Where a row has fewer different points of weight
    than clusters, the last centroids are equal. Memory: 4 bytes per cluster and different point, 60 per point.
    """
    found = [
        _centroids(x.double().cpu().numpy(), w.double().cpu().numpy(), clusters)
        for x, w in zip(points, weights, strict=True)
    ]
    return torch.from_numpy(np.stack(found)).float().to(points.device)


def _centroids(points: Doubles, weights: Doubles, clusters: int) -> Doubles:
    values, place = np.unique(points[weights > 0], return_inverse=True)
    if not len(values):
        return np.zeros(clusters)
    weight = np.bincount(place, weights[weights > 0])
    sums = _Sums(values, weight)
    cuts = np.arange(len(values) + 1) if len(values) <= clusters else _best_cuts(sums, clusters)
    means = sums.means(cuts)
    return np.pad(means, (0, clusters - len(means)), mode="edge")


class _Sums:
    """Sums over the first i values, i from 0, of weight, weight * value and weight * value^2."""

    def __init__(self, values: Doubles, weights: Doubles) -> None:
        self.shift = float((weights * values).sum() / weights.sum())  # sums of squares stay small
        centred = values - self.shift
        self.sums = np.zeros((3, len(values) + 1))
        for power in range(3):
            np.cumsum(weights * centred**power, out=self.sums[power, 1:])

    def cost(self, first: Indices | int, end: Indices) -> Doubles:
        """Squared error of clusters of values first .. end - 1 about their means; there is one at least."""
        weight, moment, square = (s[end] - s[first] for s in self.sums)
        return np.asarray(square - moment * moment / weight)

    def means(self, ends: Indices) -> Doubles:
        weight, moment = (np.diff(s[ends]) for s in self.sums[:2])
        return np.asarray(moment / weight + self.shift)


def _best_cuts(sums: _Sums, clusters: int) -> Indices:
    """Ends [clusters + 1] of the best clusters, 0 first; there are more values than clusters."""
    n = sums.sums.shape[1] - 1
    best = np.full(n + 1, np.inf)
    best[1:] = sums.cost(0, np.arange(1, n + 1))
    chosen = []
    for count in range(2, clusters + 1):
        best, last = _add_cluster(sums, best, count)
        chosen.append(last)
    cuts = [n]
    for last in reversed(chosen):
        cuts.append(int(last[cuts[-1]]))
    return np.array([0, *cuts[::-1]])


def _add_cluster(sums: _Sums, before: Doubles, count: int) -> tuple[Doubles, NDArray[np.int32]]:
    """Least costs of the first i values in `count` clusters from those in one less, and where the last one begins.

    Values i = count .. n at equal distances first, then those halfway between, and so on: the cuts of the neighbours,
    which are known by then, bound a value's own.
    """
    n = len(before) - 1
    best, last = np.full(n + 1, np.inf), np.full(n + 1, count - 1, np.int32)
    step = 1 << (n - count + 1).bit_length()
    while step > 1:
        step //= 2
        ends = np.arange(count - 1 + step, n + 1, 2 * step)
        low = last[ends - step]  # the one before the first is no value: its cut is the least there can be
        after = np.minimum(ends + step, n + 1)
        high = np.where(after <= n, last[np.minimum(after, n)], n)
        _cut(sums, before, ends, low.astype(np.int64), np.minimum(high, ends - 1).astype(np.int64), best, last)
    return best, last


def _cut(
    sums: _Sums,
    before: Doubles,
    ends: Indices,
    low: Indices,
    high: Indices,
    best: Doubles,
    last: NDArray[np.int32],
) -> None:
    """Fill `best` and `last` at `ends`, whose cuts lie in low .. high."""
    pairs = np.concatenate([[0], np.cumsum(high - low + 1)])
    start = 0
    while start < len(ends):
        stop = max(start + 1, int(np.searchsorted(pairs, pairs[start] + PAIRS_AT_ONCE, side="right")) - 1)
        some = slice(start, stop)
        counts, offsets = high[some] - low[some] + 1, pairs[start:stop] - pairs[start]
        owner = np.repeat(np.arange(stop - start), counts)
        cut = np.arange(len(owner)) + (low[some] - offsets)[owner]
        total = before[cut] + sums.cost(cut, ends[some][owner])
        least = np.minimum.reduceat(total, offsets)
        at = np.flatnonzero(total == least[owner])
        first = at[np.searchsorted(at, offsets)]
        best[ends[some]], last[ends[some]] = least, cut[first]
        start = stop
