"""GPT-2: LayerNorm, learned positions, one fused qkv matrix, matrices stored as [in, out] (Conv1D)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from edge.models.architectures._common import activation, unsupported
from edge.models.spec import Attention, DecoderSpec, Layer, Linear, Mlp, Norm

if TYPE_CHECKING:
    from transformers import PretrainedConfig

MODEL_TYPES = ("gpt2",)


def describe(config: PretrainedConfig) -> DecoderSpec:
    """`scale_attn_by_inverse_layer_idx` becomes a scale of each layer."""
    if config.add_cross_attention:
        raise unsupported(config, "cross-attention")
    return DecoderSpec(
        model_type=config.model_type,
        hidden_size=config.hidden_size,
        vocab_size=config.vocab_size,
        context_length=config.max_position_embeddings,
        base_path="transformer",
        layers_path="transformer.h",
        embedding="transformer.wte",
        head="lm_head",
        tied=bool(config.tie_word_embeddings),
        final_norm=_norm(config, "transformer.ln_f"),
        layers=tuple(_layer(config, index) for index in range(config.num_hidden_layers)),
        position_embedding="transformer.wpe",
    )


def _layer(config: PretrainedConfig, index: int) -> Layer:
    name = f"transformer.h.{index}"
    hidden, inner = config.hidden_size, config.n_inner or 4 * config.hidden_size
    return Layer(
        name=name,
        input_norm=_norm(config, f"{name}.ln_1"),
        attention=_attention(config, f"{name}.attn", index),
        mlp_norm=_norm(config, f"{name}.ln_2"),
        mlp=Mlp(
            up=(_conv1d(f"{name}.mlp.c_fc", inner, hidden),),
            down=_conv1d(f"{name}.mlp.c_proj", hidden, inner),
            activation=activation(config, config.activation_function),
            gated=False,
        ),
    )


def _attention(config: PretrainedConfig, name: str, index: int) -> Attention:
    hidden, heads = config.hidden_size, config.num_attention_heads
    width = hidden // heads
    scale = width**-0.5 if config.scale_attn_weights else 1.0
    if config.scale_attn_by_inverse_layer_idx:
        scale /= index + 1
    qkv, o = _conv1d(f"{name}.c_attn", 3 * hidden, hidden), _conv1d(f"{name}.c_proj", hidden, hidden)
    return Attention((qkv,), o, heads, heads, width, scale=scale, rope=None)


def _conv1d(name: str, out_features: int, in_features: int) -> Linear:
    return Linear(name, out_features, in_features, bias=True, transposed=True)


def _norm(config: PretrainedConfig, name: str) -> Norm:
    return Norm(name, config.layer_norm_epsilon, kind="layer")
