"""A decoder language model, described: what compression walks through and what exporters build graphs from.

An adapter in `architectures/` turns a configuration into a `DecoderSpec`; nothing above it knows model families. Names
are module paths of the Hugging Face model (`model.layers.0.self_attn.q_proj`); a weight is that name + `.weight`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

from edge.core.cache import CacheFormat
from edge.core.target import Task

Activation = Literal["silu", "gelu", "gelu_tanh"]
MatrixKind = Literal["linear", "embedding", "head"]


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
    task: ClassVar[Task] = "decoder"

    @property
    def tied_copies(self) -> dict[str, str]:
        """Tensors that are another one under a second name, with that other's name."""
        return {f"{self.head}.weight": f"{self.embedding}.weight"} if self.tied else {}

    @property
    def transposed(self) -> frozenset[str]:
        """Weights that the checkpoint stores as [in, out]."""
        return frozenset(m.weight for layer in self.layers for group in layer.linears() for m in group if m.transposed)

    def units(self, names: Sequence[str]) -> list[list[str]]:
        """Tensors that are compressed together: the embeddings, every layer, the rest (final norm and head)."""
        modules = [[self.embedding, self.position_embedding], *([layer.name] for layer in self.layers)]
        modules.append([self.final_norm.name, self.head])
        prefixes = [tuple(f"{name}." for name in unit if name) for unit in modules]
        return [[name for name in names if name.startswith(prefix)] for prefix in prefixes]

    def matrices(self) -> list[tuple[str, MatrixKind]]:
        """Name and kind of every compressible weight, in the order of the data."""
        inner = [(m.weight, "linear") for layer in self.layers for group in layer.linears() for m in group]
        head = [] if self.tied else [(f"{self.head}.weight", "head")]
        return [(f"{self.embedding}.weight", "embedding"), *inner, *head]  # type: ignore[list-item]


@dataclass(frozen=True)
class ModuleSpec:
    """Any other transformers model, known by walking its modules (`any_model.py`) instead of by an adapter.

    shapes: every tensor of a checkpoint, tied ones once. kinds: the matrices that compress. layers: module paths that
    hold a layer each. inputs: main input first. context_length and vocab_size are 0 for a model that takes no text.
    """

    model_type: str
    task: Task
    class_name: str
    base_path: str
    inputs: tuple[str, ...]
    shapes: Mapping[str, tuple[int, ...]]
    kinds: Mapping[str, MatrixKind]
    layers: tuple[str, ...]
    tied_copies: Mapping[str, str]
    transposed: frozenset[str]
    context_length: int
    vocab_size: int

    def units(self, names: Sequence[str]) -> list[list[str]]:
        """Tensors that are compressed together: what is in no layer, then every layer."""
        units = [[name for name in names if name.startswith(f"{layer}.")] for layer in self.layers]
        inside = {name for unit in units for name in unit}
        return [[name for name in names if name not in inside], *units]

    def matrices(self) -> list[tuple[str, MatrixKind]]:
        """Name and kind of every compressible weight, in the order of the modules."""
        return list(self.kinds.items())


Spec = DecoderSpec | ModuleSpec


def cache_path(attention: Attention) -> str:
    """Where the constants of a layer's KV cache lie: a module inside the attention's."""
    return f"{attention.o.name.rpartition('.')[0]}.kv_cache"


def cache_shapes(spec: DecoderSpec, formats: Sequence[CacheFormat]) -> dict[str, tuple[int, ...]]:
    """Names in the file of all layers' constants, with their shapes."""
    return {
        f"{cache_path(layer.attention)}.{part}": shape
        for layer, format in zip(spec.layers, formats, strict=True)
        for part, shape in format.layout(layer.attention.num_kv_heads, layer.attention.head_dim).items()
    }
