"""Every kind of compressed operator timed against its float32 twin: none may be slower unnoticed.

Runtimes fall off cliffs at some block sizes and bit widths, ONNX Runtime up to a thousandfold, and say nothing.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

PHASES = {"decode": 1, "prefill": 64}  # tokens at once
MARGIN = 1.1
REPETITIONS = 7
TWIN_BYTES = 32 << 20  # a larger twin is cut: its time grows with its rows
CACHE_BYTES = 48 << 20  # read between two runs, so that weights come from memory as they do in a whole model
Run = Callable[[NDArray[Any]], object]


@dataclass(frozen=True)
class Operator:
    """What stands for all of the same kind: `layers` are theirs. Its product is [tokens, rows] or a lookup.

    node: what the runtime makes it of.
    """

    kind: str
    layers: list[str]
    rows: int
    columns: int
    is_linear: bool
    node: Any

    @property
    def twin_rows(self) -> int:
        return min(self.rows, max(1, TWIN_BYTES // (4 * self.columns)))

    def slack_ns(self, tokens: int) -> int:
        """What the clock can't tell apart, and what a lookup may add to a plain copy of a row."""
        return 2_000 + 200 * tokens if self.is_linear else 5_000 + 1_000 * tokens

    def feed(self, tokens: int) -> NDArray[Any]:
        """Token ids [1, tokens], or activations [1, tokens, columns]."""
        if not self.is_linear:
            return np.arange(tokens, dtype=np.int64).reshape(1, tokens)
        return np.random.default_rng(0).standard_normal((1, tokens, self.columns), np.float32)

    def twin_weights(self) -> NDArray[np.float32]:
        """Of the float32 twin: [twin_rows, columns]."""
        return np.random.default_rng(0).random((self.twin_rows, self.columns), np.float32)


def slow(operators: Iterable[Operator], prepare: Callable[[Operator], tuple[Run, Run]]) -> list[str]:
    """Layers whose operator takes longer than its float32 twin, in decode or in prefill, with how much longer.

    `prepare` makes an operator and its twin, which has `twin_rows` rows.
    """
    found = []
    for operator in operators:
        ratios = _slower_phases(operator, prepare(operator))
        if ratios:
            alike = f" and {len(operator.layers) - 1} alike" if len(operator.layers) > 1 else ""
            times = " and ".join(f"{ratio:.1f}x (at {phase})" for phase, ratio in ratios.items())
            name = f"{operator.kind} {operator.rows}x{operator.columns}"
            found.append(f"{operator.layers[0]}{alike}: {name} takes {times} as long as float32")
    return found


def _slower_phases(operator: Operator, runs: tuple[Run, Run]) -> dict[str, float]:
    """Ratio of the operator's time to its twin's, for the phases in which it is slower beyond noise."""
    slower = {}
    for phase, tokens in PHASES.items():
        feed = operator.feed(tokens)
        own, twin = _best_ns([partial(run, feed) for run in runs])
        twin = twin * operator.rows // operator.twin_rows
        if own > MARGIN * twin + operator.slack_ns(tokens):
            slower[phase] = own / twin
    return slower


def _best_ns(runs: list[Callable[[], object]]) -> list[int]:
    """The fastest of some cold runs of each, interleaved so that a disturbance meets all alike."""
    cache = np.zeros(CACHE_BYTES // 8)
    best = [1 << 62] * len(runs)
    for repetition in range(REPETITIONS + 1):
        for index, run in enumerate(runs):
            cache.sum()
            start = time.perf_counter_ns()
            run()
            if repetition:  # the first one allocates
                best[index] = min(best[index], time.perf_counter_ns() - start)
    return best
