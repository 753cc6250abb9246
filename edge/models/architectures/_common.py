"""Pieces that several adapters share."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from edge.core.errors import EdgeError
from edge.models.spec import Activation, Attention, DecoderSpec, Layer, Linear, Mlp, Norm

if TYPE_CHECKING:
    from transformers import PretrainedConfig

ACTIVATIONS: dict[str, Activation] = {
    "silu": "silu",
    "swish": "silu",
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
}


def unsupported(config: PretrainedConfig, what: str) -> EdgeError:
    """The error for a setting that `DecoderSpec` can't say."""
    message = f"this {config.model_type} model uses {what}, which edge can't represent"
    return EdgeError("checkpoint.unsupported", message, "use a model without it")


def activation(config: PretrainedConfig, name: str) -> Activation:
    """The activation of the MLP, in the names of `spec`."""
    if name not in ACTIVATIONS:
        raise unsupported(config, f"the activation '{name}'")
    return ACTIVATIONS[name]


def context_length(config: PretrainedConfig) -> int:
    """Tokens that one set of rotary tables serves: longrope switches tables past its original length."""
    limit = int(config.max_position_embeddings)
    parameters = config.rope_parameters or {}
    if parameters.get("rope_type") == "longrope":
        original = parameters.get("original_max_position_embeddings", limit)
        limit = min(limit, int(original))
    return limit


def windows(config: PretrainedConfig) -> list[int]:
    """The sliding window of every layer, 0 for full attention."""
    window = int(config.sliding_window or 0)
    if config.model_type in ("mistral", "phi3"):  # transformers gives these one mask, whatever `layer_types` says
        return [window] * config.num_hidden_layers
    kinds = config.layer_types
    for kind in set(kinds) - {"sliding_attention", "full_attention"}:
        raise unsupported(config, f"layers of the type '{kind}'")
    return [window if kind == "sliding_attention" else 0 for kind in kinds]


def head_dim(config: PretrainedConfig) -> int:
    """Width of one attention head."""
    return int(getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads)


def attention(config: PretrainedConfig, name: str, *, qkv_bias: bool = False, o_bias: bool = False, **rest: Any):
    """Attention with separate q, k and v matrices, as all of Llama's descendants name them."""
    heads, kv_heads, width = config.num_attention_heads, config.num_key_value_heads, head_dim(config)
    rows = (("q_proj", heads * width), ("k_proj", kv_heads * width), ("v_proj", kv_heads * width))
    qkv = tuple(Linear(f"{name}.{part}", size, config.hidden_size, qkv_bias) for part, size in rows)
    settings = {"scale": width**-0.5, "rope": "default", **rest}
    o = Linear(f"{name}.o_proj", config.hidden_size, heads * width, o_bias)
    return Attention(qkv, o, heads, kv_heads, width, **settings)


def gated_mlp(config: PretrainedConfig, name: str, act: str, *, bias: bool = False) -> Mlp:
    """down(act(gate(x)) * up(x))."""
    up = tuple(
        Linear(f"{name}.{p}", config.intermediate_size, config.hidden_size, bias) for p in ("gate_proj", "up_proj")
    )
    down = Linear(f"{name}.down_proj", config.hidden_size, config.intermediate_size, bias)
    return Mlp(up, down, activation(config, act))


def decoder(config: PretrainedConfig, layers: list[Layer], norm: Norm, **rest: Any) -> DecoderSpec:
    """A decoder whose modules are named as Llama's."""
    return DecoderSpec(
        model_type=config.model_type,
        hidden_size=config.hidden_size,
        vocab_size=config.vocab_size,
        context_length=context_length(config),
        base_path="model",
        layers_path="model.layers",
        embedding="model.embed_tokens",
        head="lm_head",
        tied=bool(config.tie_word_embeddings),
        final_norm=norm,
        layers=tuple(layers),
        **rest,
    )
