"""A decoder language model, described: what compression walks through and what exporters build graphs from.

An adapter in `architectures/` turns a configuration into a `DecoderSpec`; nothing above it knows model families. Names
are module paths of the Hugging Face model (`model.layers.0.self_attn.q_proj`); a weight is that name + `.weight`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Activation = Literal["silu", "gelu", "gelu_tanh"]


@dataclass(frozen=True)
class Norm:
    """`rms`: x / rms(x) * w, or * (1 + w) with `unit_offset`. `layer`: with mean and bias."""

    name: str
    eps: float
    kind: Literal["rms", "layer"] = "rms"
    unit_offset: bool = False


@dataclass(frozen=True)
class Linear:
    """A matrix product y = x W^T (+ bias). `transposed`: the checkpoint stores W as [in, out] (GPT-2's Conv1D)."""

    name: str
    out_features: int
    in_features: int
    bias: bool = False
    transposed: bool = False

    @property
    def weight(self) -> str:
        return f"{self.name}.weight"


@dataclass(frozen=True)
class Attention:
    """Grouped-query attention. `qkv` is three matrices or one already fused (rows q, k, v in this order).

    scale multiplies q k^T; softcap 0 and window 0 switch those off; window counts the token itself.
    rope names a table of `rope_tables`, None for models without rotary embedding. q_norm and k_norm act per head.
    """

    qkv: tuple[Linear, ...]
    o: Linear
    num_heads: int
    num_kv_heads: int
    head_dim: int
    scale: float
    rope: str | None
    softcap: float = 0.0
    window: int = 0
    q_norm: Norm | None = None
    k_norm: Norm | None = None


@dataclass(frozen=True)
class Mlp:
    """`up` is (gate, up), one fused matrix with gate rows first, or a single ungated matrix (`gated` False)."""

    up: tuple[Linear, ...]
    down: Linear
    activation: Activation
    gated: bool = True


@dataclass(frozen=True)
class Layer:
    """x += post_attention_norm(attention(input_norm(x))); x += post_mlp_norm(mlp(mlp_norm(x)))."""

    name: str
    input_norm: Norm
    attention: Attention
    mlp_norm: Norm
    mlp: Mlp
    post_attention_norm: Norm | None = None
    post_mlp_norm: Norm | None = None

    def linears(self) -> tuple[tuple[Linear, ...], ...]:
        """Matrices in the order in which data meets them, those with the same input together."""
        return (self.attention.qkv, (self.attention.o,), self.mlp.up, (self.mlp.down,))


@dataclass(frozen=True)
class DecoderSpec:
    """A whole decoder. `layers_path` is the module list (`model.layers`), `base_path` the model without its head.

    embedding and head are matrices [vocab_size, hidden_size]; `tied` means they are the same one, stored under the
    embedding's name. position_embedding is a learned table [context_length, hidden_size] (GPT-2).
    """

    model_type: str
    hidden_size: int
    vocab_size: int
    context_length: int
    base_path: str
    layers_path: str
    embedding: str
    head: str
    tied: bool
    final_norm: Norm
    layers: tuple[Layer, ...]
    embedding_scale: float = 1.0
    position_embedding: str | None = None
    logit_softcap: float = 0.0

    def matrices(self) -> list[tuple[str, Literal["linear", "embedding", "head"]]]:
        """Name and kind of every compressible weight, in the order of the data."""
        inner = [(m.weight, "linear") for layer in self.layers for group in layer.linears() for m in group]
        head = [] if self.tied else [(f"{self.head}.weight", "head")]
        return [(f"{self.embedding}.weight", "embedding"), *inner, *head]  # type: ignore[list-item]
