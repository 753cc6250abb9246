"""Encoder-decoders in two steps, as both runtimes want them: a source once, then the answer token by token.

`Encode` runs the encoder and computes the keys and values that every decoder layer attends to. `Decode` runs the
decoder on caches of fixed size. Both wrap transformers' own modules: what differs between families stays theirs. How
attention is computed comes from a `Dialect`, which transformers reaches through its registry of attention functions.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from safetensors.numpy import save_file
from torch import nn
from transformers.cache_utils import Cache, CacheLayerMixin, DynamicCache, EncoderDecoderCache
from transformers.modeling_outputs import BaseModelOutput
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS, PreTrainedModel

from edge.core.bundle import Input, KvCache, Manifest
from edge.core.session import Inputs, Logits
from edge.core.target import Kernels
from edge.exporters._manifest import manifest_of
from edge.models.checkpoint import Checkpoint
from edge.models.generation import constraints, source_limit, start_tokens

REGISTERED = "edge"
BIAS = "cross.bias"
SAMPLES = "samples.safetensors"
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


@dataclass(frozen=True)
class Shapes:
    """Sizes of a model, and inputs of these sizes to trace it with.

    features: shape of one source of fixed size such as [bins, frames]; None for text, which comes with a mask.
    """

    inputs: tuple[str, ...]
    features: tuple[int, int] | None
    layers: int
    heads: int
    head_dim: int
    context_length: int
    source_length: int  # tokens, or positions, that cross-attention sees when traced

    @property
    def masked(self) -> bool:
        return self.features is None

    def names(self, prefix: str) -> list[str]:
        """Names of keys and values in turn."""
        return [f"{prefix}.{layer}.{part}" for layer in range(self.layers) for part in ("key", "value")]

    def manifest_inputs(self) -> dict[str, Input]:
        if self.features is not None:
            return {self.inputs[0]: Input("float32", [1, *self.features])}
        return {name: Input("int64", [1, 0]) for name in self.inputs}

    def source(self) -> tuple[torch.Tensor, ...]:
        if self.features is not None:
            return (torch.zeros(1, *self.features),)
        ids = torch.ones(1, self.source_length, dtype=torch.int64)
        return ids, torch.ones_like(ids)

    def tokens(self) -> tuple[torch.Tensor, torch.Tensor]:
        return torch.ones(1, 3, dtype=torch.int64), torch.tensor([3], dtype=torch.int32)

    def past(self) -> list[torch.Tensor]:
        shape = (1, self.heads, self.context_length, self.head_dim)
        return [torch.zeros(shape) for _ in range(2 * self.layers)]

    def cross(self) -> list[torch.Tensor]:
        shape = (1, self.heads, self.source_length, self.head_dim)
        return [torch.zeros(shape) for _ in range(2 * self.layers)]

    def bias(self) -> torch.Tensor:
        return torch.zeros(1, 1, 1, self.source_length)


TRACED_SOURCE = 11  # any number of tokens that no other size of a model equals


def shapes_of(model: PreTrainedModel, main_input: str, context_length: int) -> Shapes:
    """Sizes by running the model once on a source."""
    config: Any = model.config
    features = None
    if main_input != "input_ids":
        features = (config.num_mel_bins, 2 * config.max_source_positions)
    source = torch.ones(1, TRACED_SOURCE, dtype=torch.int64) if features is None else torch.zeros(1, *features)
    with torch.inference_mode():
        keys = Encode(model, _Measured())(source)
    _, heads, source_length, head_dim = keys[0].shape
    inputs = ("input_ids", "attention_mask") if features is None else (main_input,)
    return Shapes(inputs, features, len(keys) // 2, heads, head_dim, context_length, source_length)


class _Measured:
    """A dialect for shapes alone."""

    def attend(self, query: torch.Tensor, *_: Any) -> torch.Tensor:
        return torch.zeros_like(query).transpose(1, 2).flatten(2)

    def attend_cached(self, query: torch.Tensor, new: Pair, *_: Any) -> tuple[torch.Tensor, Pair]:
        return self.attend(query), new


def manifest(
    checkpoint: Checkpoint,
    files: Sequence[Path],
    shapes: Shapes,
    *,
    kernels: Kernels,
    runtime: str,
    tools: Sequence[str],
    layer_of_node: Mapping[str, str],
) -> Manifest:
    """What a bundle of an encoder-decoder says about itself. The decoder's program is the first of `files`."""
    return manifest_of(
        checkpoint,
        files,
        runtime=runtime,
        tools=tools,
        kernels=kernels,
        context_length=shapes.context_length,
        kv_cache=KvCache(shapes.layers, shapes.heads, shapes.head_dim, "float32"),
        start_token_ids=start_tokens(checkpoint),
        constraints=constraints(checkpoint),
        inputs=shapes.manifest_inputs(),
        source_length=source_limit(checkpoint.config) if shapes.masked else 0,
        encodings={name: checkpoint.matrix_encoding(name) for name, _ in checkpoint.spec.matrices()},
        layer_of_node=dict(layer_of_node),
    )


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
        """input_ids: int64 [1, S]. total: int32 [1], tokens in all, these included.

        past, cross: keys and values of every layer in turn. bias: of the source's mask.
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


def write_samples(folder: Path, tokens: Sequence[int], logits: Logits, source: Inputs) -> None:
    """Keep a source, the answer's `tokens` [n] so far and the `logits` [rows, vocabulary] of the reference."""
    samples = {"tokens": np.array(tokens, np.int64), "logits": np.ascontiguousarray(logits), **source}
    save_file(samples, folder / SAMPLES)


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
