"""What llama.cpp calls an architecture, what it can't say of one, and the metadata that it computes a graph from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from edge.core.errors import EdgeError, UsageError
from edge.models.spec import Activation, Attention, DecoderSpec

if TYPE_CHECKING:
    from gguf import GGUFWriter

    from edge.models.checkpoint import Checkpoint


@dataclass(frozen=True)
class Architecture:
    """name: llama.cpp's own. neighbours: it rotates pairs (2i, 2i + 1) where Hugging Face has halves.

    window_period: one layer of so many is without a sliding window unless the file says otherwise; 0 where llama.cpp
    knows no window. biases: parts of a layer that may have one. rope_types: what it computes of `rope_parameters`.
    """

    name: str
    activation: Activation = "silu"
    neighbours: bool = False
    window_period: int = 0
    biases: tuple[str, ...] = ()
    rope_types: tuple[str, ...] = ("default", "linear")
    heads_fill_hidden: bool = False


LLAMA = Architecture("llama", neighbours=True, biases=("qkv", "o", "mlp"), rope_types=("default", "linear", "llama3"))
# Known by our model types. Each was held against llama.cpp's own loader.
ARCHITECTURES = {
    "llama": LLAMA,
    "mistral": LLAMA,
    "qwen2": Architecture("qwen2", biases=("qkv",), heads_fill_hidden=True),
    "qwen3": Architecture("qwen3", biases=("qkv",)),
    "gemma2": Architecture("gemma2", "gelu_tanh", window_period=2),
    "gemma3_text": Architecture("gemma3", "gelu_tanh", window_period=6),
    "phi3": Architecture("phi3", rope_types=("default", "linear", "longrope"), heads_fill_hidden=True),
    "gpt2": Architecture("gpt2", "gelu_tanh", biases=("qkv", "o", "mlp")),
}
LARGEST_GEMMA = {"gemma2": 46, "gemma3": 62}  # layers of the 27B models, whose heads llama.cpp scales in another way


def architecture_of(checkpoint: Checkpoint, context_length: int) -> Architecture:
    """llama.cpp's architecture for a checkpoint. Raises `EdgeError` where it would compute something else."""
    spec = checkpoint.spec
    found = ARCHITECTURES.get(spec.model_type)
    if found is None or not isinstance(spec, DecoderSpec):
        hint = f"export to another --runtime; GGUF files are written for {', '.join(ARCHITECTURES)}"
        raise EdgeError("export.gguf", f"edge writes no GGUF file of a {spec.model_type} model", hint)
    problem = _difference(spec, found, rope_parameters(checkpoint.config))
    if problem:
        message = f"llama.cpp's {found.name} can't compute this model: {problem}"
        raise EdgeError("export.gguf", message, "export to another --runtime")
    if context_length > (longest := longest_context(spec, found)):
        message = f"llama.cpp's {found.name} has no sliding window, and this model's is {longest} tokens"
        raise UsageError("export.gguf_window", message, f"pass --context {longest} or less")
    return found


def longest_context(spec: DecoderSpec, architecture: Architecture) -> int:
    """Tokens up to which llama.cpp computes what the model does: as far as the window goes where it knows none."""
    windows = [layer.attention.window for layer in spec.layers if layer.attention.window]
    return spec.context_length if architecture.window_period else min([spec.context_length, *windows])


def rope_parameters(config: Any) -> dict[str, Any]:
    """Those of the layers with full attention; empty for learned positions."""
    parameters = getattr(config, "rope_parameters", None) or {}
    return parameters.get("full_attention", parameters)


def _difference(spec: DecoderSpec, architecture: Architecture, rope: dict[str, Any]) -> str:
    """The first setting that llama.cpp would compute in another way."""
    first = spec.layers[0]
    biased = {
        "qkv": any(linear.bias for linear in first.attention.qkv),
        "o": first.attention.o.bias,
        "mlp": any(linear.bias for linear in (*first.mlp.up, first.mlp.down)),
    }
    named = [part for part, bias in biased.items() if bias and part not in architecture.biases]
    rope_type = rope.get("rope_type", "default")
    scale = _scale(spec, architecture, first.attention)
    checks = {
        f"the activation {first.mlp.activation}": first.mlp.activation != architecture.activation,
        f"a bias in {', '.join(named)}": bool(named),
        f"rotary embeddings of the type '{rope_type}'": rope_type not in architecture.rope_types,
        "heads on a part of their width": rope.get("partial_rotary_factor", 1.0) != 1.0,
        "attention scaled in its own way": any(
            abs(layer.attention.scale - scale) > 1e-6 * scale for layer in spec.layers
        ),
        "heads whose widths don't add up to the hidden size": architecture.heads_fill_hidden
        and first.attention.num_heads * first.attention.head_dim != spec.hidden_size,
        "a head apart from the embedding": architecture.name == "gemma2" and not spec.tied,
    }
    return next((what for what, wrong in checks.items() if wrong), "")


def _scale(spec: DecoderSpec, architecture: Architecture, attention: Attention) -> float:
    if LARGEST_GEMMA.get(architecture.name) == len(spec.layers):
        return (spec.hidden_size // attention.num_heads) ** -0.5
    return attention.head_dim**-0.5


def write_metadata(writer: GGUFWriter, checkpoint: Checkpoint, architecture: Architecture) -> None:
    """The sizes and constants of the graph."""
    spec: DecoderSpec = checkpoint.spec
    attention = spec.layers[0].attention
    writer.add_name(checkpoint.name)
    writer.add_context_length(longest_context(spec, architecture))
    writer.add_embedding_length(spec.hidden_size)
    writer.add_block_count(len(spec.layers))
    writer.add_feed_forward_length(spec.layers[0].mlp.down.in_features)
    writer.add_head_count(attention.num_heads)
    writer.add_head_count_kv(attention.num_kv_heads)
    writer.add_key_length(attention.head_dim)
    writer.add_value_length(attention.head_dim)
    writer.add_vocab_size(spec.vocab_size)
    (writer.add_layer_norm_eps if spec.final_norm.kind == "layer" else writer.add_layer_norm_rms_eps)(
        spec.final_norm.eps
    )
    if attention.softcap:
        writer.add_attn_logit_softcapping(attention.softcap)
    if spec.logit_softcap:
        writer.add_final_logit_softcapping(spec.logit_softcap)
    if architecture.window_period:
        _write_windows(writer, spec, architecture)
    if attention.rope:
        _write_rope(writer, checkpoint.config, attention.head_dim)


def _write_windows(writer: GGUFWriter, spec: DecoderSpec, architecture: Architecture) -> None:
    windows = [layer.attention.window for layer in spec.layers]
    writer.add_sliding_window(max(windows))
    period = architecture.window_period
    if any(bool(window) != (index % period < period - 1) for index, window in enumerate(windows)):
        writer.add_sliding_window_pattern([bool(window) for window in windows])


def _write_rope(writer: GGUFWriter, config: Any, head_dim: int) -> None:
    from gguf import RopeScalingType

    rope = rope_parameters(config)
    writer.add_rope_dimension_count(head_dim)
    writer.add_rope_freq_base(float(rope["rope_theta"]))
    local = (config.rope_parameters or {}).get("sliding_attention")
    if local:
        writer.add_rope_freq_base_swa(float(local["rope_theta"]))
    kind = rope.get("rope_type", "default")
    if kind == "linear":
        writer.add_rope_scaling_type(RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(float(rope["factor"]))
    elif kind == "longrope":
        writer.add_rope_scaling_orig_ctx_len(int(rope["original_max_position_embeddings"]))
        writer.add_rope_scaling_attn_factors(float(_frequencies(config)[1]))


def rope_tensors(config: Any) -> dict[str, NDArray[np.float32]]:
    """What llama.cpp divides the frequencies by, for scalings that it has no formula for."""
    rope = rope_parameters(config)
    kind = rope.get("rope_type", "default")
    if kind == "longrope":
        names = {"rope_factors_long.weight": "long_factor", "rope_factors_short.weight": "short_factor"}
        return {name: np.array(rope[key], np.float32) for name, key in names.items()}
    if kind != "llama3":
        return {}
    scaled = _frequencies(config)[0].double().numpy()
    plain = float(rope["rope_theta"]) ** -(np.arange(len(scaled)) / len(scaled))
    return {"rope_freqs.weight": (plain / scaled).astype(np.float32)}


def _frequencies(config: Any) -> tuple[Any, float]:
    """transformers' frequencies and its factor on cos and sin."""
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    return ROPE_INIT_FUNCTIONS[rope_parameters(config)["rope_type"]](config, None)


def neighbours_first(rows: int, heads: int) -> NDArray[np.intp]:
    """Order of the rows of a query or key matrix where pairs of one rotation lie side by side: 0, half, 1, half + 1."""
    return np.arange(rows).reshape(heads, 2, -1).swapaxes(1, 2).reshape(-1)
