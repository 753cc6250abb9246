"""Which rows of a study nothing else beats."""

from __future__ import annotations

from collections.abc import Sequence

Point = tuple[float, float]


def front(points: Sequence[Point]) -> list[int]:
    """Indices of the points that no other one is as good as in both and better in one, by the first number.

    Both numbers are the better the smaller they are. Of equal points all are on the front.
    """
    kept = []
    best = float("inf")
    for index in sorted(range(len(points)), key=lambda i: points[i]):
        second = points[index][1]
        equal = bool(kept) and points[kept[-1]] == points[index]
        if second < best or equal:
            kept.append(index)
            best = second
    return kept
