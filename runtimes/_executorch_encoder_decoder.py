"""Encoder-decoders in ExecuTorch: two programs. What the encoder leaves is read by the decoder where it lies."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge.core.bundle import Manifest
from edge.core.errors import EdgeError
from edge.core.session import Inputs, Logits, OperatorTime, SessionOptions
from edge.runtimes import _etdump
from edge.runtimes._context import advance, check_encoded, check_source

ENCODER = "encoder.pte"


class ExecutorchEncoderDecoderSession:
    """A source, then its answer in caches inside the program.

    encoder, decoder: a program and its method each, loaded. reason: what ExecuTorch says about an error. sessions:
    those that are open, by identity.
    """

    def __init__(
        self,
        encoder: tuple[Any, Any],
        decoder: tuple[Any, Any],
        manifest: Manifest,
        options: SessionOptions,
        reason: Callable[[Exception], str],
        sessions: set[int],
    ) -> None:
        self.context_length = manifest.context_length
        self.vocab_size = manifest.vocab_size
        self._programs = (encoder[0], decoder[0])
        self._encoder, self._decoder = encoder[1], decoder[1]
        self._manifest = manifest
        self._profile_path = options.profile_path
        self._reason = reason
        self._sessions = sessions
        self._most_tokens = self._decoder.method_meta().input_tensor_meta(0).sizes()[1]
        self._cross: list[Any] = []
        self._position = 0
        sessions.add(id(self))

    def encode(self, inputs: Inputs) -> None:
        """Read the source. Raises `UsageError` for other inputs than the model's."""
        fed = check_source(self._manifest, inputs)
        found = self._call(self._encoder, [fed[name] for name in self._order()], clone=True)
        self._cross, self._position = found, 0

    def prefill(self, tokens: Sequence[int], *, all_logits: bool = False) -> Logits:
        """Logits [1, vocab] of the last token, or [len(tokens), vocab]. Starts the answer anew."""
        return self._read(0, tokens, all_logits)

    def extend(self, tokens: Sequence[int], *, all_logits: bool = False) -> Logits:
        """As `prefill`, after what was answered before."""
        return self._read(self._position, tokens, all_logits)

    def decode(self, token: int) -> Logits:
        """Logits [1, vocab] after one more token."""
        check_encoded(bool(self._cross))
        end = advance(self, self._position, (token,))
        return self._run(np.array([token], np.int64), end).copy()

    def end_profile(self) -> list[OperatorTime]:
        """Time per instruction of the decoder since the session was opened, longest first; the encoder runs once."""
        if self._profile_path is None:
            return []
        self._programs[1].write_etdump_result_to_file(self._profile_path)
        trace, self._profile_path = Path(self._profile_path), None
        return _etdump.operator_times(trace, self._manifest.layer_of_node)

    def close(self) -> None:
        """Give the memory back. The session can't be used afterwards."""
        self._sessions.discard(id(self))
        self._encoder = self._decoder = None
        self._programs, self._cross = (None, None), []

    def __del__(self) -> None:
        self._sessions.discard(id(self))

    def _read(self, seen: int, tokens: Sequence[int], all_logits: bool) -> Logits:
        check_encoded(bool(self._cross))
        advance(self, seen, tokens)
        ids = np.array(tokens, np.int64)
        logits = np.empty((len(tokens), self.vocab_size), np.float32)
        for start in range(0, len(tokens), self._most_tokens):
            end = min(start + self._most_tokens, len(tokens))
            logits[start:end] = self._run(ids[start:end], seen + end)
        return logits if all_logits else logits[-1:]

    def _order(self) -> list[str]:
        return sorted(self._manifest.inputs, key=lambda name: name == "attention_mask")

    def _run(self, ids: NDArray[np.int64], end: int) -> Logits:
        """Logits [len(ids), vocab] in the program's own memory: the next call overwrites them."""
        (logits,) = self._call(self._decoder, [ids[None], np.array([end], np.int32), *self._cross], clone=False)
        self._position = end
        found: Logits = logits[0].numpy()
        return found

    def _call(self, method: Any, inputs: Sequence[Any], *, clone: bool) -> list[Any]:
        import torch

        tensors = [torch.from_numpy(value) if isinstance(value, np.ndarray) else value for value in inputs]
        try:
            return list(method.call(tensors, clone_outputs=clone))
        except RuntimeError as error:
            hint = "export the model again; if it stays, this is a defect of edge"
            raise EdgeError("runtime.run", f"ExecuTorch failed: {self._reason(error)}", hint) from error
