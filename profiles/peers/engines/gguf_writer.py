"""A Llama-like Hugging Face folder as a float16 GGUF file without a vocabulary: what llama.cpp quantizes from."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edge.core.errors import EdgeError
from edge.models.checkpoint import Checkpoint, open_checkpoint

FLOAT16_FILE = 1  # llama.cpp's LLAMA_FTYPE_MOSTLY_F16


def write_gguf(folder: Path, path: Path) -> None:
    """Raises `EdgeError` for a model that isn't a Llama: others need more metadata than is written here."""
    import gguf

    checkpoint = open_checkpoint(folder)
    if checkpoint.spec.model_type != "llama":
        message = f"{checkpoint.name} is a {checkpoint.spec.model_type} model; the GGUF writer knows Llama's alone"
        raise EdgeError("bench.gguf", message, "compare the other engines with --filter")
    writer = gguf.GGUFWriter(path, "llama")
    _write_metadata(writer, checkpoint)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, len(checkpoint.spec.layers))
    for name in checkpoint.names():
        if checkpoint.spec.tied and name == f"{checkpoint.spec.head}.weight":
            continue
        tensor = checkpoint.tensor(name)
        values = _turned(checkpoint, name, (tensor.half() if tensor.ndim == 2 else tensor.float()).numpy())
        writer.add_tensor(names.get_name(name, try_suffixes=(".weight",)) or name, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _write_metadata(writer, checkpoint: Checkpoint) -> None:  # type: ignore[no-untyped-def]
    spec, config = checkpoint.spec, checkpoint.config
    attention = spec.layers[0].attention
    writer.add_context_length(spec.context_length)
    writer.add_embedding_length(spec.hidden_size)
    writer.add_block_count(len(spec.layers))
    writer.add_feed_forward_length(spec.layers[0].mlp.down.in_features)
    writer.add_head_count(attention.num_heads)
    writer.add_head_count_kv(attention.num_kv_heads)
    writer.add_rope_dimension_count(attention.head_dim)
    writer.add_rope_freq_base(float(config.rope_parameters["rope_theta"]))
    writer.add_layer_norm_rms_eps(spec.final_norm.eps)
    writer.add_vocab_size(spec.vocab_size)
    writer.add_tokenizer_model("no_vocab")
    writer.add_file_type(FLOAT16_FILE)


def _turned(checkpoint: Checkpoint, name: str, values: NDArray[np.generic]) -> NDArray[np.generic]:
    """Query and key rows in the order of llama.cpp's rotation: pairs (2i, 2i + 1) where Hugging Face has halves."""
    for layer in checkpoint.spec.layers:
        query, key, _ = (linear.weight for linear in layer.attention.qkv)
        if name in (query, key):
            heads = layer.attention.num_heads if name == query else layer.attention.num_kv_heads
            halves = values.reshape(heads, 2, -1, values.shape[1])
            return np.ascontiguousarray(halves.swapaxes(1, 2)).reshape(values.shape)
    return values
