"""An encoder-decoder measured as a decoder is: its prefill is a source, read anew, and the first step of the answer."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import numpy as np

from edge.core.bundle import Bundle
from edge.core.session import EncoderDecoderSession, Inputs, Logits, OperatorTime, Session
from edge.profiles.calling import Calling


class Answering:
    """A session whose prompts are sources: text of these tokens, or sound of the length that the model takes.

    encode_ns: how long the encoder took in the last prefill, of which it is a part.
    """

    def __init__(self, session: EncoderDecoderSession, bundle: Bundle) -> None:
        self.context_length = session.context_length
        self.vocab_size = session.vocab_size
        self.encode_ns = 0
        self._session = session
        self._manifest = bundle.manifest

    def prefill(self, tokens: Sequence[int], *, all_logits: bool = False) -> Logits:
        """Logits [1, vocab] of the answer's first token."""
        source = self._source(tokens)
        start = time.perf_counter_ns()
        self._session.encode(source)
        self.encode_ns = time.perf_counter_ns() - start
        return self._session.prefill(self._manifest.start_token_ids, all_logits=all_logits)

    def decode(self, token: int) -> Logits:
        """Logits [1, vocab] after one more token."""
        return self._session.decode(token)

    def end_profile(self) -> list[OperatorTime]:
        """Rows of the decoder."""
        return self._session.end_profile()

    def close(self) -> None:
        self._session.close()

    def _source(self, tokens: Sequence[int]) -> Inputs:
        inputs = self._manifest.inputs
        if "input_ids" in inputs:
            longest = self._manifest.source_length or len(tokens)
            ids = np.array([tokens[:longest]], np.int64)
            return {"input_ids": ids, "attention_mask": np.ones_like(ids)}
        random = np.random.default_rng(0)
        return {name: random.uniform(-1, 1, wanted.shape).astype(np.float32) for name, wanted in inputs.items()}


def measurable(session: Any, bundle: Bundle) -> Session:
    """The session as the protocol measures it."""
    if bundle.manifest.task in ("encoder", "vision"):
        return Calling(session, bundle)
    return Answering(session, bundle) if bundle.manifest.task == "encoder_decoder" else session
