"""The multiple-choice knapsack, solved exactly: one choice of every class, least cost within a budget.

States (the undominated pairs of weight and cost of all selections of the first classes) are extended class by class:
Nemhauser, Ullmann: "Discrete Dynamic Programming and Capital Allocation", Management Science 15, 1969. A state goes
when the linear relaxation of the classes still to come shows that nothing better than a known selection comes of it:
Dyer, Riha, Walker: "A hybrid dynamic programming/branch-and-bound algorithm for the multiple-choice knapsack problem",
Journal of Computational and Applied Mathematics 58, 1995. The relaxation takes the edges of all classes' lower convex
hulls in the order of the savings per weight.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Weights = NDArray[np.int64]
Costs = NDArray[np.float64]


@dataclass(frozen=True)
class Class:
    """Choices of which one is taken: integer weights (bytes, nanoseconds) >= 0 and costs, both [choices]."""

    weights: Weights
    costs: Costs


def solve(classes: Sequence[Class], budget: int) -> list[int]:
    """The choice of every class: the least sum of costs with a sum of weights within `budget`.

    Raises `ValueError` where even the lightest choices weigh more. Exact up to the rounding of float64 sums.
    """
    if budget < sum(int(c.weights.min()) for c in classes):
        raise ValueError("the budget is too small")
    order = sorted(range(len(classes)), key=lambda i: -int(np.ptp(classes[i].weights)))
    ordered = [classes[i] for i in order]
    relaxations = _suffixes(ordered)
    weights, costs = np.zeros(1, np.int64), np.zeros(1)
    best = np.inf
    trail: list[tuple[NDArray[np.int32], NDArray[np.int32]]] = []
    for one, rest in zip(ordered, relaxations[1:], strict=True):
        new_weights = (weights[:, None] + one.weights).ravel()
        new_costs = (costs[:, None] + one.costs).ravel()
        index = _undominated(new_weights, new_costs)
        index = index[new_weights[index] + rest.weight <= budget]
        left = budget - new_weights[index]
        best = min(best, float((new_costs[index] + rest.reached(left)).min()))
        index = index[new_costs[index] + rest.bound(left) <= best * (1 + 1e-12) + 1e-300]
        weights, costs = new_weights[index], new_costs[index]
        trail.append(((index // len(one.weights)).astype(np.int32), (index % len(one.weights)).astype(np.int32)))
    state, picks = int(costs.argmin()), [0] * len(classes)
    for position, (parents, choices) in zip(reversed(order), reversed(trail), strict=True):
        picks[position], state = int(choices[state]), int(parents[state])
    return picks


def _undominated(weights: Weights, costs: Costs) -> NDArray[np.int64]:
    """Indices by rising weight of those that cost less than all that weigh as much or less."""
    order = np.lexsort((costs, weights))
    sorted_costs = costs[order]
    before = np.minimum.accumulate(np.concatenate(([np.inf], sorted_costs[:-1])))
    return order[sorted_costs < before]


class _Relaxation:
    """Some classes as one: what they cost at least, and what a selection of them costs, by the weight they may have.

    weight: of the lightest choices. steps: (weight, cost) that each edge of a hull adds, by falling savings.
    """

    def __init__(self, weight: int, cost: float, steps: NDArray[np.float64]) -> None:
        self.weight, self._cost, self._steps = weight, cost, steps
        self._weights = np.concatenate(([0.0], np.cumsum(steps[:, 0])))
        self._costs = cost + np.concatenate(([0.0], np.cumsum(steps[:, 1])))

    def bound(self, left: Weights) -> Costs:
        """The least cost with weights [states], fractions of choices allowed."""
        return np.interp(left - self.weight, self._weights, self._costs)

    def reached(self, left: Weights) -> Costs:
        """The cost of the selection of whole choices that the relaxation holds before its first fraction."""
        return self._costs[np.searchsorted(self._weights, left - self.weight, side="right") - 1]

    def with_class(self, one: Class) -> _Relaxation:
        start, cost, steps = _hull(one)
        merged = np.concatenate((self._steps, steps))
        merged = merged[np.argsort(merged[:, 1] / merged[:, 0], kind="stable")]
        return _Relaxation(self.weight + start, self._cost + cost, merged)


def _suffixes(classes: Sequence[Class]) -> list[_Relaxation]:
    """The relaxation of `classes[i:]` for every i, the empty one included."""
    found = [_Relaxation(0, 0.0, np.zeros((0, 2)))]
    for one in reversed(classes):
        found.append(found[-1].with_class(one))
    return found[::-1]


def _hull(one: Class) -> tuple[int, float, NDArray[np.float64]]:
    """Weight and cost of the lightest choice, and the edges (weight, cost) of the lower hull from there on."""
    hull: list[tuple[int, float]] = []
    for i in _undominated(one.weights, one.costs):
        point = (int(one.weights[i]), float(one.costs[i]))
        while len(hull) > 1 and _above(hull[-2], hull[-1], point):
            hull.pop()
        hull.append(point)
    return *hull[0], np.diff(np.array(hull, np.float64), axis=0).reshape(-1, 2)


def _above(first: tuple[int, float], middle: tuple[int, float], last: tuple[int, float]) -> bool:
    """Whether `middle` lies on or above the line from `first` to `last`."""
    return (middle[1] - first[1]) * (last[0] - first[0]) >= (last[1] - first[1]) * (middle[0] - first[0])
