"""Encoder-decoders in two steps, as both runtimes want them: a source once, then the answer token by token.

`Encode` runs the encoder and computes the keys and values that every decoder layer attends to. `Decode` runs the decoder
on caches of fixed size. Both wrap transformers' own modules: what differs between families stays theirs. How attention
is computed comes from a `Dialect`, which transformers reaches through its registry of attention functions.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import nn
from transformers.cache_utils import Cache, CacheLayerMixin, DynamicCache, EncoderDecoderCache
from transformers.modeling_outputs import BaseModelOutput
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS, PreTrainedModel

REGISTERED = "edge"
MASKED = torch.finfo(torch.float32).min
Pair = tuple[torch.Tensor, torch.Tensor]


class Dialect(Protocol):
    """Attention as a runtime has it. Tensors are [1, heads, tokens, head_dim]; bias adds to the scores or is None."""

    def attend(
        self, query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, bias: torch.Tensor | None, scale: float
    ) -> torch.Tensor:
        """Attention to all keys: [1, tokens, heads * head_dim]."""

    def attend_cached(
        self,
        query: torch.Tensor,
        new: Pair,
        cached: Pair,
        bias: torch.Tensor | None,
        scale: float,
        total: torch.Tensor,
    ) -> tuple[torch.Tensor, Pair]:
        """Causal attention to a cache [1, heads, context, head_dim] with the new keys and values; and that cache.

        total: int32 [1], tokens in the cache after these. bias: [1, heads, tokens, context].
        """


class Encode(nn.Module):
    """Inputs of the encoder -> keys and values of every decoder layer's cross-attention, and the bias of its mask."""

    def __init__(self, model: PreTrainedModel, dialect: Dialect) -> None:
        super().__init__()
        self.model = _prepared(model)
        self.dialect = dialect
        self.start = model.config.decoder_start_token_id or 0

    def forward(self, source: torch.Tensor, attention_mask: torch.Tensor | None = None) -> list[torch.Tensor]:
        """source: input_ids or features. attention_mask: int64 [1, n], 1 for tokens and 0 for padding.

        Returns keys and values in turn, [1, heads, n, head_dim], and for a mask its bias [1, 1, 1, n].
        """
        bias = None if attention_mask is None else (1.0 - attention_mask.float())[:, None, None] * MASKED
        encoder, named = self.model.get_encoder(), {"dialect": self.dialect}
        masks = {} if bias is None else {"attention_mask": bias}
        hidden = encoder(source, **masks, **named).last_hidden_state
        # The decoder fills its cross-attention's cache with one token; nothing else of this run is kept, or exported.
        cache = EncoderDecoderCache(DynamicCache(), DynamicCache())
        self.model(
            encoder_outputs=BaseModelOutput(last_hidden_state=hidden),
            decoder_input_ids=torch.full((1, 1), self.start),
            decoder_attention_mask=torch.zeros(1, 1, 1, 1),
            past_key_values=cache,
            use_cache=True,
            **masks,
            **named,
        )
        found = [tensor for layer in cache.cross_attention_cache.layers for tensor in (layer.keys, layer.values)]
        return found if bias is None else [*found, bias]


class Decode(nn.Module):
    """Tokens of the answer -> logits, with caches that are inputs and come back updated."""

    def __init__(self, model: PreTrainedModel, dialect: Dialect) -> None:
        super().__init__()
        self.model = _prepared(model)
        self.dialect = dialect

    def forward(
        self,
        input_ids: torch.Tensor,
        total: torch.Tensor,
        past: Sequence[torch.Tensor],
        cross: Sequence[torch.Tensor],
        bias: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, ...]:
        """input_ids: int64 [1, S]. total: int32 [1], tokens in all, these included. past, cross: keys and values in turn.

        Returns logits [1, S, vocabulary] and the updated caches.
        """
        steps = [_Step(keys, values, total, input_ids.shape[1]) for keys, values in _pairs(past)]
        cache = EncoderDecoderCache(Cache(layers=steps), Cache(layers=[_Fixed(*pair) for pair in _pairs(cross)]))
        cache.is_updated = dict.fromkeys(range(len(steps)), True)
        width = self.model.config.d_model
        logits = self.model(
            encoder_outputs=BaseModelOutput(last_hidden_state=torch.zeros(1, 1, width)),  # seen by nobody: see `cross`
            decoder_input_ids=input_ids,
            decoder_attention_mask=torch.zeros(1, 1, 1, 1),  # stands in: a `Dialect` knows that it is causal
            past_key_values=cache,
            use_cache=True,
            dialect=self.dialect,
            steps=steps,
            **({} if bias is None else {"attention_mask": bias}),
        ).logits
        return (logits, *(tensor for step in steps for tensor in (step.keys, step.values)))


class _Layer(CacheLayerMixin):
    """Keys and values that come from outside."""

    is_sliding = False

    def __init__(self, keys: torch.Tensor, values: torch.Tensor) -> None:
        super().__init__()
        self.keys, self.values, self.is_initialized = keys, values, True

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        """Nothing to do."""

    def get_max_length(self) -> int:
        return self.keys.shape[-2]

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.keys.shape[-2], 0

    def get_seq_length(self) -> Any:
        return self.keys.shape[-2]

    def update(self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any) -> Pair:
        raise NotImplementedError


class _Fixed(_Layer):
    """What the encoder computed."""

    def get_seq_length(self) -> int:
        return 1  # some: the cache counts as filled


class _Step(_Layer):
    """The decoder's own cache before a step. `update` leaves the new states to attention, which stores them."""

    def __init__(self, keys: torch.Tensor, values: torch.Tensor, total: torch.Tensor, tokens: Any) -> None:
        super().__init__(keys, values)
        self.total = total
        self.position = total[0].to(torch.int64) - tokens
        self.new: Pair | None = None

    def get_seq_length(self) -> Any:
        return self.position

    def update(self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any) -> Pair:
        self.new = (key_states, value_states)
        return self.keys, self.values  # as long as what attention will see


def _attention(
    module: nn.Module,
    query: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    attention_mask: torch.Tensor | None,
    *,
    dialect: Dialect,
    scaling: float | None = None,
    position_bias: torch.Tensor | None = None,
    steps: Sequence[_Step] = (),
    **_: Any,
) -> tuple[torch.Tensor, None]:
    """transformers' attention function: what a layer's cache tells apart goes to the dialect."""
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    step = next((step for step in steps if step.new is not None), None)
    if step is None:
        bias = position_bias if attention_mask is None else attention_mask
        if position_bias is not None and attention_mask is not None:
            bias = position_bias + attention_mask
        return dialect.attend(query, keys, values, bias, scale), None
    y, (step.keys, step.values) = dialect.attend_cached(
        query, step.new, (keys, values), position_bias, scale, step.total
    )
    step.new = None
    return y, None


def _prepared(model: PreTrainedModel) -> PreTrainedModel:
    if REGISTERED not in ALL_ATTENTION_FUNCTIONS:
        ALL_ATTENTION_FUNCTIONS.register(REGISTERED, _attention)
    model.set_attn_implementation(REGISTERED)
    return model


def _pairs(tensors: Sequence[torch.Tensor]) -> list[Pair]:
    return list(zip(tensors[::2], tensors[1::2], strict=True))
