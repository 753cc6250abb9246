"""How far a thing is from itself: one bundle compared with itself again and again, and how often the floor held.

Run as `python -m edge.profiles.peers.aa BUNDLE --output profiles/baselines`. Every pair is an `edge compare BUNDLE
BUNDLE` of its own, as a user types it. Finished pairs are kept and not repeated.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

from edge.core.console import info
from edge.core.files import read_json, write_json
from edge.profiles.compare import Change, Comparison, compare
from edge.profiles.fingerprint import fingerprint
from edge.profiles.peers.command import run_edge

OPTIONS = {"rounds": 2, "prompt-tokens": 64, "generated-tokens": 32, "repetitions": 5, "min-seconds": 0, "threads": 1}
ANY_LOSS = 1000  # percent that is allowed: a series goes on where noise looks like a regression, and counts it


def main() -> None:
    """Take the pairs that are missing, then count."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--work", type=Path, default=Path("out/aa"))
    parser.add_argument("--pairs", type=int, default=20)
    for name, default in OPTIONS.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    arguments = parser.parse_args()
    given = {name: getattr(arguments, name.replace("-", "_")) for name in OPTIONS}
    arguments.work.mkdir(parents=True, exist_ok=True)
    paths = [arguments.work / f"pair-{number:02}.json" for number in range(arguments.pairs)]
    for path in paths:
        if not path.exists():
            info(f"{path.stem} of {arguments.pairs}")
            flags = [str(part) for name, value in given.items() for part in (f"--{name}", value)]
            run_edge(
                "compare", *[str(arguments.bundle)] * 2, *flags, "--max-regression", str(ANY_LOSS), "-o", str(path)
            )
    write_json(arguments.output / "aa-smollm2.json", summary(paths, given))


def summary(paths: Sequence[Path], options: dict[str, Any]) -> dict[str, Any]:
    """By metric: in how many pairs the ratio was within the floor, and within the interval; every pair's numbers."""
    pairs = [compare(p.runs[::2], p.runs[1::2], interleaved=True) for p in (read_json(q, Comparison) for q in paths)]
    found: dict[str, list[Change]] = {}
    for pair in pairs:
        for change in pair.changes:
            if change.ratio is not None:
                found.setdefault(change.metric, []).append(change)
    first = pairs[0].runs[0]
    return {
        "schema": 1,
        "device": fingerprint(),
        "bundle": {"name": first.name, "recipe": first.recipe, "runtime": first.runtime, "kernels": first.kernels},
        "options": options,
        "pairs": len(pairs),
        "metrics": {name: _counted(changes) for name, changes in found.items()},
        "single_runs": _single(pairs),
    }


def _counted(changes: Sequence[Change]) -> dict[str, Any]:
    numbers = [(c.ratio or 1.0, c.low or 1.0, c.high or 1.0, c.floor or 0.0) for c in changes]
    return {
        "within_floor": sum(abs(math.log(ratio)) <= math.log1p(floor) for ratio, _, _, floor in numbers),
        "within_interval": sum(low <= 1 <= high for _, low, high, _ in numbers),
        "told_apart": sum(c.verdict in ("better", "worse") for c in changes),
        "of": len(changes),
        "floor_median": median(floor for *_, floor in numbers),
        "pairs": [{"ratio": r, "low": low, "high": high, "floor": floor} for r, low, high, floor in numbers],
    }


def _single(pairs: Sequence[Comparison]) -> dict[str, Any]:
    """What two single results would have said: the first run of A beside the first of B, as from files."""
    made = [compare([pair.runs[0]], [pair.runs[1]]) for pair in pairs]
    decode = [change for one in made for change in one.changes if change.metric == "decode" and change.ratio]
    return {"decode": {key: value for key, value in _counted(decode).items() if key != "pairs"}} if decode else {}


if __name__ == "__main__":
    main()
