"""The original's logits kept on disk, for many models that are held against the same one on the same text."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from edge.core.errors import EdgeError
from edge.core.files import full_disk_is_an_error
from edge.core.session import Logits, OperatorTime
from edge.models.checkpoint import open_checkpoint
from edge.runtimes.torch import open_folder


class RecordedOriginal:
    """A session of a decoder that computes each prompt once, in float32, and reads it from `folder` afterwards.

    The model is in memory only while something is new. Made for `evaluate`: it doesn't decode.
    """

    def __init__(self, source: str | Path, folder: Path) -> None:
        self._checkpoint = open_checkpoint(source)
        self._folder = folder
        self._session: Any = None
        self.context_length = self._checkpoint.spec.context_length
        self.vocab_size = self._checkpoint.spec.vocab_size

    def prefill(self, tokens: Sequence[int], *, all_logits: bool = False) -> Logits:
        """Logits [1, vocab] of the last token, or [len(tokens), vocab]."""
        said = f"{self._checkpoint.sha256} {list(tokens)}"
        path = self._folder / f"{hashlib.sha256(said.encode()).hexdigest()[:32]}.npy"
        if not path.is_file():
            self._record(tokens, path)
        logits = np.load(path, mmap_mode="r")
        return logits if all_logits else logits[-1:]

    def _record(self, tokens: Sequence[int], path: Path) -> None:
        if self._session is None:
            self._session = open_folder(self._checkpoint, self.context_length)
        logits = self._session.prefill(tokens, all_logits=True)
        with full_disk_is_an_error(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            partial = path.with_suffix(".partial")
            with partial.open("wb") as file:
                np.save(file, logits)
            partial.replace(path)

    def extend(self, tokens: Sequence[int], *, all_logits: bool = False) -> Logits:
        raise _prefills_only()

    def decode(self, token: int) -> Logits:
        raise _prefills_only()

    def end_profile(self) -> list[OperatorTime]:
        """No rows: nothing is timed."""
        return []

    def close(self) -> None:
        if self._session is not None:
            self._session.close()
        self._session = None


def _prefills_only() -> EdgeError:
    return EdgeError("evaluate.recorded", "recorded logits don't go on", "open the model itself")
