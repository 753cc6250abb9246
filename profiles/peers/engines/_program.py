"""An ExecuTorch program that is given tokens call by call and keeps its own cache."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from edge.profiles.peers.engines import not_installed

PIECE = 128


class Program:
    """A conversation with a program. What a call takes and gives is each export's own: `_call`."""

    def __init__(self, path: Path, threads: int) -> None:
        api = bindings()
        api._unsafe_reset_threadpool(threads)
        self._module = api._load_for_executorch(str(path))

    def prefill(self, tokens: Sequence[int]) -> None:
        self._position = 0
        for start in range(0, len(tokens), PIECE):
            self._run(tokens[start : start + PIECE])

    def decode(self) -> None:
        self._run([self._next])

    def _run(self, tokens: Sequence[int]) -> None:
        self._next = self._call(tokens, self._position)
        self._position += len(tokens)

    def _call(self, tokens: Sequence[int], position: int) -> int:
        """The next token after `tokens`, the first of which stands at `position`."""
        raise NotImplementedError


def bindings() -> Any:
    """ExecuTorch's own. Raises `EdgeError` where it isn't installed."""
    try:
        import torch  # noqa: F401 (its libraries first)
        from executorch.extension.pybindings import _C
        from executorch.kernels import quantized  # noqa: F401 (embeddings)
    except ImportError as error:
        raise not_installed("executorch", error) from error
    return _C
