"""Whole language models in other engines and in edge's, in turns: one process each, kept alive between its turns.

One file adds one engine. It has `FORMATS`, the names of what it runs; `prepare(model, format)` that makes the files for
one of them and returns their path; and `start(path, format, threads, context)` that opens them as a `Conversation`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from edge.core.errors import EdgeError

ENGINES = ("edge", "llama_cpp", "onnxruntime", "onnxruntime_genai", "executorch", "executorch_llm")
OURS = "edge"


class Conversation(Protocol):
    """One sequence, greedy."""

    def prefill(self, tokens: Sequence[int]) -> None:
        """Start anew with a prompt; the logits after it are ready when this returns."""

    def decode(self) -> None:
        """Pick the next token and run it."""


@dataclass(frozen=True)
class Model:
    """A Hugging Face folder, and the folder for what is made from it."""

    name: str
    folder: Path
    work: Path


def made_once(path: Path, make: Callable[[Path], object]) -> Path:
    """`path`, made by `make` under a temporary name unless it is there: a killed run leaves nothing half done."""
    if path.exists():
        return path
    partial = path.with_name(f".{path.name}.partial")
    partial.parent.mkdir(parents=True, exist_ok=True)
    make(partial)
    return partial.rename(path)


def not_installed(package: str, error: ImportError) -> EdgeError:
    """What a missing engine raises."""
    return EdgeError("bench.peer", f"{package} can't be imported: {error}", "pip install 'edge-deploy[bench]'")
