"""Llama (SmolLM, SmolLM2, Llama 2 and 3) and Mistral: pre-norm, RoPE, grouped queries, SwiGLU."""

from __future__ import annotations

from typing import TYPE_CHECKING

from edge.models.architectures._common import attention, decoder, gated_mlp, windows
from edge.models.spec import DecoderSpec, Layer, Norm

if TYPE_CHECKING:
    from transformers import PretrainedConfig

MODEL_TYPES = ("llama", "mistral")


def describe(config: PretrainedConfig) -> DecoderSpec:
    """Mistral adds a sliding window to every layer; Llama may have biases in attention and MLP."""
    sizes = windows(config) if config.model_type == "mistral" else [0] * config.num_hidden_layers
    bias = bool(getattr(config, "attention_bias", False))
    layers = []
    for index, window in enumerate(sizes):
        name = f"model.layers.{index}"
        layers.append(
            Layer(
                name=name,
                input_norm=Norm(f"{name}.input_layernorm", config.rms_norm_eps),
                attention=attention(config, f"{name}.self_attn", qkv_bias=bias, o_bias=bias, window=window),
                mlp_norm=Norm(f"{name}.post_attention_layernorm", config.rms_norm_eps),
                mlp=gated_mlp(config, f"{name}.mlp", config.hidden_act, bias=bool(getattr(config, "mlp_bias", False))),
            )
        )
    return decoder(config, layers, Norm("model.norm", config.rms_norm_eps))
