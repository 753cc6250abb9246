"""PyTorch as the reference of encoder-decoders."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from transformers.cache_utils import DynamicCache, EncoderDecoderCache

from edge.core.session import Inputs, Logits, OperatorTime
from edge.runtimes._context import advance, check_encoded


class TorchEncoderDecoderSession:
    """A transformers model with a growing cache and a source that it has read."""

    def __init__(self, model: Any, context_length: int, vocab_size: int) -> None:
        self.context_length = context_length
        self.vocab_size = vocab_size
        self._model = model
        self._source: dict[str, Any] = {}
        self._cache: Any = None
        self._position = 0

    @torch.inference_mode()
    def encode(self, inputs: Inputs) -> None:
        """Read the source."""
        tensors = {name: torch.from_numpy(array) for name, array in inputs.items()}
        self._source = {"encoder_outputs": self._model.get_encoder()(**tensors)}
        if "attention_mask" in tensors:
            self._source["attention_mask"] = tensors["attention_mask"]

    def prefill(self, tokens: Sequence[int], *, all_logits: bool = False) -> Logits:
        """Logits [1, vocab] of the last token, or [len(tokens), vocab]. Starts the answer anew."""
        # transformers' own default counts the encoder's layers, which may be fewer.
        self._cache, self._position = EncoderDecoderCache(DynamicCache(), DynamicCache()), 0
        logits = self._forward(tokens)
        return logits if all_logits else logits[-1:]

    def extend(self, tokens: Sequence[int], *, all_logits: bool = False) -> Logits:
        """As `prefill`, after what was answered before."""
        logits = self._forward(tokens)
        return logits if all_logits else logits[-1:]

    def decode(self, token: int) -> Logits:
        """Logits [1, vocab] after one more token."""
        return self._forward([token])

    def end_profile(self) -> list[OperatorTime]:
        """No rows: PyTorch is a reference for values, not for time."""
        return []

    def close(self) -> None:
        self._model, self._cache, self._source = nn.Identity(), None, {}

    @torch.inference_mode()
    def _forward(self, tokens: Sequence[int]) -> Logits:
        check_encoded(bool(self._source))
        self._position = advance(self, self._position, tokens)
        ids = torch.tensor([list(tokens)])
        out = self._model(**self._source, decoder_input_ids=ids, past_key_values=self._cache, use_cache=True)
        self._cache = out.past_key_values
        logits: Logits = out.logits[0].float().numpy()
        return logits
