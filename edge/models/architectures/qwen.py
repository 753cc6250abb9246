"""Qwen2 (biases on q, k, v) and Qwen3 (RMSNorm on every head of q and k)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from edge.models.architectures._common import attention, decoder, gated_mlp, windows
from edge.models.spec import DecoderSpec, Layer, Norm

if TYPE_CHECKING:
    from transformers import PretrainedConfig

MODEL_TYPES = ("qwen2", "qwen3")


def describe(config: PretrainedConfig) -> DecoderSpec:
    """The last layers may have a sliding window (`layer_types`)."""
    qwen3 = config.model_type == "qwen3"
    eps = config.rms_norm_eps
    o_bias = qwen3 and bool(config.attention_bias)
    layers = []
    for index, window in enumerate(windows(config)):
        name = f"model.layers.{index}"
        inner = f"{name}.self_attn"
        norms = {"q_norm": Norm(f"{inner}.q_norm", eps), "k_norm": Norm(f"{inner}.k_norm", eps)} if qwen3 else {}
        qkv_bias = o_bias if qwen3 else True
        layers.append(
            Layer(
                name=name,
                input_norm=Norm(f"{name}.input_layernorm", eps),
                attention=attention(config, inner, qkv_bias=qkv_bias, o_bias=o_bias, window=window, **norms),
                mlp_norm=Norm(f"{name}.post_attention_layernorm", eps),
                mlp=gated_mlp(config, f"{name}.mlp", config.hidden_act),
            )
        )
    return decoder(config, layers, Norm("model.norm", eps))
