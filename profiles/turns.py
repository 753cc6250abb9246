"""Two bundles profiled in turns, A B B A: what comes and goes over minutes hits both alike."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable
from typing import Any

import msgspec

from edge.core.bundle import Bundle
from edge.core.console import info
from edge.core.errors import EdgeError
from edge.core.files import cache_folder, read_json, write_json
from edge.core.measurement import Measurement

ORDER = "ABBA"
Measure = Callable[[Bundle], Measurement]


def take(
    a: Bundle, b: Bundle, measure: Measure, *, rounds: int, options: dict[str, Any]
) -> tuple[list[Measurement], list[Measurement]]:
    """Runs of both sides, two each a round, every one by `measure`. They end up neighbour by neighbour.

    Finished runs are kept until all are there, so that a comparison that was killed goes on where it stopped; `options`
    are what else decides whether runs belong together. Raises `EdgeError` where a run fails.
    """
    folder = cache_folder() / "compare" / _digest(a, b, options)
    sides: dict[str, list[Measurement]] = {"A": [], "B": []}
    order = ORDER * rounds
    for number, side in enumerate(order):
        path = folder / f"{number:03}-{side}.json"
        if path.exists():
            info(f"Run {number + 1} of {len(order)} is there from before")
            sides[side].append(read_json(path, Measurement))
            continue
        info(f"Run {number + 1} of {len(order)}: {side}")
        run = measure(a if side == "A" else b)
        if run.problem or not run.repetitions:
            message = f"run {number + 1}, of {side}, failed: {run.problem or 'nothing was measured'}"
            raise EdgeError("compare.run", message, "the same command goes on with this run")
        folder.mkdir(parents=True, exist_ok=True)
        write_json(path, run)
        sides[side].append(run)
    shutil.rmtree(folder, ignore_errors=True)
    return sides["A"], sides["B"]


def _digest(a: Bundle, b: Bundle, options: dict[str, Any]) -> str:
    said = msgspec.json.encode([a.hash, b.hash, options], order="sorted")
    return hashlib.sha256(said).hexdigest()[:16]
