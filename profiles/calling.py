"""A model that runs in one call measured as a decoder is: its prefill is the call, and there is nothing to decode."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from edge.core.bundle import Bundle
from edge.core.errors import UsageError
from edge.core.session import ForwardSession, Inputs, Logits, OperatorTime

VISION_VOCABULARY = 1  # prompts have no tokens


class Calling:
    """A session whose prompts are texts of these tokens, or for none an image that is made up."""

    def __init__(self, session: ForwardSession, bundle: Bundle) -> None:
        self.context_length = bundle.manifest.context_length
        self.vocab_size = bundle.manifest.vocab_size or VISION_VOCABULARY
        self._session = session
        self._inputs = bundle.manifest.inputs

    def prefill(self, tokens: Sequence[int], *, all_logits: bool = False) -> Logits:
        """The first output as rows."""
        output = self._session.run(self._given(tokens))
        return output.reshape(-1, output.shape[-1])

    def decode(self, token: int) -> Logits:
        """Always raises: such a model has no next token."""
        raise UsageError("profile.decode", "a model that runs in one call decodes nothing", "profile its calls")

    def end_profile(self) -> list[OperatorTime]:
        """Rows over all calls."""
        return self._session.end_profile()

    def close(self) -> None:
        self._session.close()

    def _given(self, tokens: Sequence[int]) -> Inputs:
        if "input_ids" not in self._inputs:
            random = np.random.default_rng(0)
            return {name: random.standard_normal(i.shape, np.float32) for name, i in self._inputs.items()}
        ids = np.array([tokens], np.int64)
        return {name: ids if name == "input_ids" else np.ones_like(ids) for name in self._inputs}
