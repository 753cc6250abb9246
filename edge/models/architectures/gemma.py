"""Gemma 2 and the text part of Gemma 3: norms around both blocks with 1 + weight, GeGLU, scaled embedding.

Gemma 2 caps attention scores and logits; Gemma 3 has QK norm and one rotary table for local and one for global layers.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from edge.models.architectures._common import attention, decoder, gated_mlp, unsupported, windows
from edge.models.spec import Attention, DecoderSpec, Layer, Norm

if TYPE_CHECKING:
    from transformers import PretrainedConfig

MODEL_TYPES = ("gemma2", "gemma3_text")


def describe(config: PretrainedConfig) -> DecoderSpec:
    """Layers alternate between a sliding window and full attention (`layer_types`)."""
    if config.use_bidirectional_attention:
        raise unsupported(config, "bidirectional attention")
    layers = [_layer(config, index, window) for index, window in enumerate(windows(config))]
    return decoder(
        config,
        layers,
        _norm(config, "model.norm"),
        embedding_scale=config.hidden_size**0.5,
        logit_softcap=float(config.final_logit_softcapping or 0.0),
    )


def _layer(config: PretrainedConfig, index: int, window: int) -> Layer:
    name = f"model.layers.{index}"
    return Layer(
        name=name,
        input_norm=_norm(config, f"{name}.input_layernorm"),
        attention=_attention(config, f"{name}.self_attn", config.layer_types[index], window),
        post_attention_norm=_norm(config, f"{name}.post_attention_layernorm"),
        mlp_norm=_norm(config, f"{name}.pre_feedforward_layernorm"),
        mlp=gated_mlp(config, f"{name}.mlp", config.hidden_activation),
        post_mlp_norm=_norm(config, f"{name}.post_feedforward_layernorm"),
    )


def _attention(config: PretrainedConfig, name: str, layer_type: str, window: int) -> Attention:
    settings = {"scale": config.query_pre_attn_scalar**-0.5, "window": window}
    softcap = float(config.attn_logit_softcapping or 0.0)
    if config.model_type == "gemma2":
        settings |= {"softcap": softcap}
    elif softcap:
        raise unsupported(config, "a cap on attention scores")  # transformers itself ignores it here
    else:
        settings |= {"rope": layer_type, "q_norm": _norm(config, f"{name}.q_norm")}
        settings |= {"k_norm": _norm(config, f"{name}.k_norm")}
    bias = bool(config.attention_bias)
    return attention(config, name, qkv_bias=bias, o_bias=bias, **settings)


def _norm(config: PretrainedConfig, name: str) -> Norm:
    return Norm(name, config.rms_norm_eps, unit_offset=True)
