"""How much faster: a ratio with its interval, and the noise floor below which a ratio says nothing.

A run is a process, its samples are that run's repetitions. Repetitions of a run share its memory layout, its clock and
whatever else was going on, so they are correlated, and it is runs that count as independent (Georges et al., OOPSLA
2007; Kalibera and Jones, "Rigorous benchmarking in reasonable time", ISMM 2013). Therefore:

- A run is summarised by its median. The ratio is the geometric mean of B's medians over that of A's.
- The interval (95 %) is Student's t with the standard error of a hierarchical bootstrap: runs are drawn first, then
  repetitions within each. Percentiles of so few runs are too close together: of four, one time in eight all lie on one
  side (Hesterberg, "What teachers should know about the bootstrap", 2015).
- The floor is how far the ratio of a thing to itself gets, in 99 of 100 comparisons like this one: from the differences
  between runs of the same side, where by construction nothing else than noise differs.

All on logarithms, so that a ratio and its inverse are as far from 1.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray

Runs = Sequence[Sequence[float]]
RESAMPLES = 4000
CONFIDENCE, FLOOR_CONFIDENCE = 0.95, 0.99
LEAST_FLOOR = 0.005
"""What differs between two builds in layout alone (Mytkowicz et al., ASPLOS 2009, found more): no floor is below."""
MOST_BLOCKS = 5
MOST_DRAWN = 64  # samples of a run; of more, stretches are drawn, as what is near in time is alike
ONE_RUN_FLOOR = 0.05
"""Where there is one run a side: what differs between runs can't be seen in it, so a few percent are taken for it."""


@dataclass(frozen=True)
class Ratio:
    """Of B to A, with the interval's ends. floor: the share by which noise alone moves it, 0.02 for 2 %."""

    value: float
    low: float
    high: float
    floor: float


def paired(a: Runs, b: Runs, *, seed: int = 0) -> Ratio:
    """Of runs in ABBA order: run i of A and of B are neighbours in time, runs 2k and 2k + 1 of a side one foursome's.

    Two neighbours are drawn together, so that what comes and goes over minutes cancels. The floor's differences are
    those within foursomes: A's two runs lie further apart than neighbours do, which makes it rather too high than too
    low where the machine drifts. Needs as many runs of A as of B, an even number of them, and 4 or more: of 2 there is
    nothing to draw that would show how far they scatter. Samples are above 0.
    """
    differences = _medians(b) - _medians(a)
    drawn = _resampled(a, b, seed)
    same = np.concatenate([np.diff(_medians(side).reshape(-1, 2)) for side in (a, b)]).ravel()
    # Under no difference a neighbours' difference varies as one within a side does; the ratio is the mean of as many.
    floor = student(FLOOR_CONFIDENCE, same.size) * math.sqrt(float(np.mean(same**2)) / same.size)
    return _ratio(float(differences.mean()), drawn, len(a), len(a) - 1, floor)


def unpaired(a: Runs, b: Runs, *, least_floor: float = LEAST_FLOOR, seed: int = 0) -> Ratio:
    """Of runs that were not taken in turns, two or more a side: each side is drawn by itself."""
    center_a, center_b = _medians(a), _medians(b)
    random = np.random.default_rng(seed)
    drawn = _side(b, random).mean(axis=1) - _side(a, random).mean(axis=1)
    freedom = len(a) + len(b) - 2
    variance = sum(float(np.square(side - side.mean()).sum()) for side in (center_a, center_b)) / freedom
    floor = student(FLOOR_CONFIDENCE, freedom) * math.sqrt(variance * (1 / len(a) + 1 / len(b)))
    return _ratio(float(center_b.mean() - center_a.mean()), drawn, min(len(a), len(b)), freedom, floor, least_floor)


def blocks(samples: Sequence[float]) -> list[list[float]]:
    """One run's repetitions cut into 2 to 5 stretches, which stand for runs where there is one a side.

    They show how the run drifted, and nothing of what differs between runs: a floor from them is a lower bound. No
    stretch for fewer than 4 repetitions.
    """
    if len(samples) < 4:
        return []
    count = min(MOST_BLOCKS, len(samples) // 2)
    return [list(block) for block in np.array_split(np.asarray(samples, np.float64), count)]


@cache
def student(confidence: float, freedom: int) -> float:
    """Student's t, both sides: 12.7 for 95 % and 1 degree of freedom. By t = sqrt(n) tan(u) and the density of u."""
    grid = np.linspace(0, math.pi / 2, 200_001)
    density = np.cos(grid) ** (freedom - 1)
    area = np.concatenate([[0.0], np.cumsum((density[1:] + density[:-1]) / 2)])
    return math.sqrt(freedom) * math.tan(float(np.interp(confidence, area / area[-1], grid)))


def _ratio(
    center: float,
    drawn: NDArray[np.float64],
    runs: int,
    freedom: int,
    floor: float,
    least_floor: float = LEAST_FLOOR,
) -> Ratio:
    """freedom: degrees of it in the standard error of `drawn`, which of n runs is too small by the root of 1 - 1/n."""
    half = student(CONFIDENCE, freedom) * math.sqrt(runs / (runs - 1)) * float(drawn.std())
    low, high = math.exp(center - half), math.exp(center + half)
    return Ratio(math.exp(center), low, high, max(math.expm1(floor), least_floor))


def _medians(runs: Runs) -> NDArray[np.float64]:
    return np.array([np.median(np.log(run)) for run in runs])


def _resampled(a: Runs, b: Runs, seed: int) -> NDArray[np.float64]:
    """Ratios [RESAMPLES] over pairs drawn with replacement, and repetitions in each."""
    random = np.random.default_rng(seed)
    chosen = random.integers(0, len(a), (RESAMPLES, len(a)))
    return (_side(b, random, chosen) - _side(a, random, chosen)).mean(axis=1)


def _side(runs: Runs, random: np.random.Generator, chosen: NDArray[np.int64] | None = None) -> NDArray[np.float64]:
    """Medians [RESAMPLES, runs] of the drawn runs, each of its repetitions drawn anew."""
    if chosen is None:
        chosen = random.integers(0, len(runs), (RESAMPLES, len(runs)))
    medians = np.stack([_drawn_medians(np.log(run), random) for run in runs])
    return medians[chosen, random.integers(0, RESAMPLES, chosen.shape)]


def _drawn_medians(samples: NDArray[np.float64], random: np.random.Generator) -> NDArray[np.float64]:
    """[RESAMPLES]"""
    if len(samples) > MOST_DRAWN:
        samples = np.array([np.median(stretch) for stretch in np.array_split(samples, MOST_DRAWN)])
    chosen = random.integers(0, len(samples), (RESAMPLES, len(samples)))
    return np.median(samples[chosen], axis=1)
