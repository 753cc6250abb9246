"""What `edge run` shows of models that run in one call."""

from __future__ import annotations

import math
import time
from pathlib import Path
from typing import Any

from edge.cli._output import print_json, print_table

SHOWN_VALUES = 8


def run_forward(model: Any, text: Any, image: Path | None, *, json: bool) -> None:
    """Print what a model says about a text, which `text()` gives, or about an image file.

    Raises `UsageError` for the kind of input that it doesn't take.
    """
    from edge.core.errors import UsageError
    from edge.models.forward import ImageModel

    sees = isinstance(model, ImageModel)
    if sees and image is None:
        raise UsageError("run.image", "this model takes an image, not text", "use --image FILE")
    if not sees and image is not None:
        raise UsageError("run.prompt", "this model takes text, not an image", "use --prompt TEXT")
    given = image if sees else text()
    start = time.perf_counter_ns()
    answer = model.answer(given)
    latency_ms = (time.perf_counter_ns() - start) / 1e6
    if json:
        print_json({"latency_ms": latency_ms, **_fields(answer)})
        return
    _show(answer)
    from edge.core.console import info

    info(f"{answer.tokens} tokens, {latency_ms:.1f} ms" if answer.tokens else f"{latency_ms:.1f} ms")


def _fields(answer: Any) -> dict[str, Any]:
    """The whole answer, by what it is."""
    found: dict[str, Any] = {"about": answer.about, "tokens": answer.tokens}
    if answer.labels:
        return found | {"labels": answer.labels}
    return found | {"dimension": len(answer.vector), "norm": _norm(answer.vector), "vector": answer.vector}


def _show(answer: Any) -> None:
    if not answer.labels:
        values = " ".join(f"{value:.4f}" for value in answer.vector[:SHOWN_VALUES])
        print(f"{answer.about}: {len(answer.vector)} values, norm {_norm(answer.vector):.4f}")
        print(f"{values} ..." if len(answer.vector) > SHOWN_VALUES else values)
        return
    placed = any(label.place is not None for label in answer.labels)
    rows = [
        (*([label.place or ""] if placed else []), label.label, f"{100 * label.probability:.2f} %")
        for label in answer.labels
    ]
    print_table((*(["token"] if placed else []), "label", "probability"), rows)


def _norm(vector: list[float]) -> float:
    return math.sqrt(math.fsum(value * value for value in vector))
