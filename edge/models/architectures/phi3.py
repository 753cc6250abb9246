"""Phi-3 and Phi-3.5 mini: one fused matrix for q, k, v and one for gate and up; longrope."""

from __future__ import annotations

from typing import TYPE_CHECKING

from edge.models.architectures._common import activation, decoder, head_dim, windows
from edge.models.spec import Attention, DecoderSpec, Layer, Linear, Mlp, Norm

if TYPE_CHECKING:
    from transformers import PretrainedConfig

MODEL_TYPES = ("phi3",)


def describe(config: PretrainedConfig) -> DecoderSpec:
    """The context goes up to the original length: past it longrope would change all earlier positions' tables."""
    eps = config.rms_norm_eps
    layers = []
    for index, window in enumerate(windows(config)):
        name = f"model.layers.{index}"
        layers.append(
            Layer(
                name=name,
                input_norm=Norm(f"{name}.input_layernorm", eps),
                attention=_attention(config, f"{name}.self_attn", window),
                mlp_norm=Norm(f"{name}.post_attention_layernorm", eps),
                mlp=_mlp(config, f"{name}.mlp"),
            )
        )
    return decoder(config, layers, Norm("model.norm", eps))


def _attention(config: PretrainedConfig, name: str, window: int) -> Attention:
    heads, kv_heads, width = config.num_attention_heads, config.num_key_value_heads, head_dim(config)
    qkv = Linear(f"{name}.qkv_proj", (heads + 2 * kv_heads) * width, config.hidden_size)
    o = Linear(f"{name}.o_proj", config.hidden_size, heads * width)
    return Attention((qkv,), o, heads, kv_heads, width, scale=width**-0.5, rope="default", window=window)


def _mlp(config: PretrainedConfig, name: str) -> Mlp:
    up = Linear(f"{name}.gate_up_proj", 2 * config.intermediate_size, config.hidden_size)
    down = Linear(f"{name}.down_proj", config.hidden_size, config.intermediate_size)
    return Mlp((up,), down, activation(config, config.hidden_act))
