"""Tiny models with random weights, one per architecture family: what tests of all folders run on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file

from edge.core.files import SCHEMA, write_json
from edge.core.weight import Compressed, CompressedTensor
from edge.kernels.testing import random_tensor
from edge.models.checkpoint import open_checkpoint
from edge.models.stored import to_stored

COMMON: dict[str, Any] = {
    "vocab_size": 160,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 10000.0,
    "factor": 4.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
LONGROPE = {
    "rope_type": "longrope",
    "rope_theta": 10000.0,
    "short_factor": [1.0 + 0.1 * i for i in range(8)],
    "long_factor": [2.0 + 0.5 * i for i in range(8)],
    "factor": 4.0,
    "original_max_position_embeddings": 64,
}
# Family name -> settings over COMMON. `model_type` is the family's name up to the first dash.
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {"tie_word_embeddings": True},
    "llama-rope": {"rope_parameters": LLAMA3_ROPE, "attention_bias": True, "mlp_bias": True, "head_dim": 32},
    "mistral": {"sliding_window": 8},
    "qwen2": {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 1},
    "qwen3": {"head_dim": 32, "tie_word_embeddings": True},
    "gemma2": {"head_dim": 32, "sliding_window": 8, "query_pre_attn_scalar": 24, "attn_logit_softcapping": 5.0},
    "gemma3_text": {
        "head_dim": 32,
        "sliding_window": 8,
        "query_pre_attn_scalar": 24,
        "layer_types": ["sliding_attention", "full_attention"],
    },
    "phi3": {},
    "phi3-longrope": {"rope_parameters": LONGROPE, "original_max_position_embeddings": 64},
    "gpt2": {},
}

TEXT = {"vocab_size": 160, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4}
IMAGES = {"image_size": 32, "num_channels": 3}
SPEECH = {"num_mel_bins": 8, "max_source_positions": 24, "max_target_positions": 64}
SEQUENCES: dict[str, Any] = {
    "d_model": 64,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 96,
    "decoder_ffn_dim": 96,
    "vocab_size": 160,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "decoder_start_token_id": 2,
}
# transformers' class -> settings of its configuration: what no adapter describes. See `tiny_any_model`.
CLASSES: dict[str, dict[str, Any]] = {
    "BertModel": {**TEXT, "max_position_embeddings": 64},
    "BertForMaskedLM": {**TEXT, "max_position_embeddings": 64},
    "BertForSequenceClassification": {**TEXT, "max_position_embeddings": 64, "num_labels": 5},
    "RobertaModel": {**TEXT, "max_position_embeddings": 66, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2},
    "DistilBertModel": {"vocab_size": 160, "dim": 64, "hidden_dim": 96, "n_layers": 2, "n_heads": 4},
    "ViTForImageClassification": {**TEXT, **IMAGES, "patch_size": 8, "num_labels": 7},
    "SwinForImageClassification": {
        **IMAGES,
        "patch_size": 2,
        "embed_dim": 16,
        "depths": [2, 2],
        "num_heads": [2, 4],
        "window_size": 4,
        "num_labels": 7,
    },
    "EfficientNetForImageClassification": {
        **IMAGES,
        "width_coefficient": 0.25,
        "depth_coefficient": 0.2,
        "hidden_dim": 320,
        "num_labels": 7,
    },
    "T5ForConditionalGeneration": {
        "vocab_size": 160,
        "d_model": 64,
        "d_ff": 96,
        "d_kv": 16,
        "num_layers": 2,
        "num_heads": 4,
        "decoder_start_token_id": 0,
        "pad_token_id": 0,
        "eos_token_id": 2,
    },
    "BartForConditionalGeneration": {**SEQUENCES, "max_position_embeddings": 64, "forced_eos_token_id": 2},
    "MarianMTModel": {**SEQUENCES, "max_position_embeddings": 64, "decoder_start_token_id": 0},
    "WhisperForConditionalGeneration": {**SEQUENCES, **SPEECH},
}


def tiny_any_model(class_name: str, folder: Path, *, seed: int = 0, **changes: Any) -> Path:
    """Write a tiny model of a transformers class with random weights; return its folder.

    Text models get the tokenizer of `tiny_model`. All weights are random, so that a wrong order of operations shows.
    """
    import transformers

    cls = getattr(transformers, class_name)
    config = cls.config_class(**{**CLASSES[class_name], **changes})
    model = cls(config)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            fan_in = parameter[0].numel() if parameter.dim() > 1 else 1
            values = torch.randn(parameter.shape, generator=generator)
            parameter.copy_(values * fan_in**-0.5 if parameter.dim() > 1 else parameter + 0.2 * values)
    model.save_pretrained(folder)
    if "vocab_size" in CLASSES[class_name] and class_name.partition("For")[0] not in ("ViT", "Whisper"):
        tiny_tokenizer(COMMON["vocab_size"]).save_pretrained(folder)
    return folder


def tiny_config(family: str, **changes: Any) -> Any:
    """The transformers configuration of a tiny model. `changes` go over the family's own settings."""
    from transformers import AutoConfig

    settings = {**COMMON, **FAMILIES[family], **changes}
    if family == "gpt2":
        settings["n_inner"] = settings.pop("intermediate_size")
        del settings["num_key_value_heads"]
    return AutoConfig.for_model(family.partition("-")[0], **settings)


def tiny_model(family: str, folder: Path, *, seed: int = 0, dtype: torch.dtype = torch.float32, **changes: Any) -> Path:
    """Write a tiny model with random weights and a byte-like tokenizer; return its folder.

    Norms, biases and matrices are all random and of a size that makes a wrong order of operations show in the logits.
    """
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_config(tiny_config(family, **changes))
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            scale = 0.3 if "norm" in name or "ln_" in name or name.endswith("bias") else parameter.shape[-1] ** -0.5
            offset = 1.0 if ("norm" in name or "ln_" in name) and name.endswith("weight") else 0.0
            if family.startswith("gemma"):
                offset = 0.0
            parameter.copy_(offset + scale * torch.randn(parameter.shape, generator=generator))
    model.to(dtype).save_pretrained(folder)
    tiny_tokenizer(COMMON["vocab_size"]).save_pretrained(folder)
    return folder


def encoded_model(family: str, folder: Path, encoding: Compressed, **changes: Any) -> Path:
    """Write a tiny model as edge would have compressed it, with random matrices in `encoding`; return its folder.

    No method needs to know the encoding. Weights lie in two files, and parts of one matrix in both.
    """
    source = open_checkpoint(tiny_model(family, folder / "original", **changes))
    matrices = [name for name, _ in source.spec.matrices()]
    stored = {name: source.tensor(name).clone() for name in source.names() if name not in matrices}
    for seed, name in enumerate(matrices):
        stored |= to_stored(random_matrix(name, source.matrix_shape(name), encoding, seed))
    weight_map = {name: f"model-0000{1 + index % 2}-of-00002.safetensors" for index, name in enumerate(stored)}
    for path in set(weight_map.values()):
        inside = {name: tensor for name, tensor in stored.items() if weight_map[name] == path}
        save_file(inside, folder / path, metadata={"format": "pt"})
    write_json(folder / "model.safetensors.index.json", {"metadata": {}, "weight_map": weight_map})
    config = json.loads((folder / "original" / "config.json").read_text())
    encodings = dict.fromkeys(matrices, encoding)
    config["quantization_config"] = {"quant_method": "edge", "schema": SCHEMA, "activations": "a8"}
    config["quantization_config"]["encodings"] = encodings
    write_json(folder / "config.json", config)
    source.save_tokenizer(folder)
    return folder


def random_matrix(name: str, shape: tuple[int, int], encoding: Compressed, seed: int = 0) -> CompressedTensor:
    """A random tensor whose values are of the size that a layer's weights have."""
    tensor = random_tensor(*shape, encoding, seed)
    scaled = "row_scales" if "row_scales" in tensor.parts else "scales"
    factor = shape[1] ** -0.5 / tensor.dequantize().std()
    scales = (tensor.parts[scaled].astype(np.float32) * factor).astype(np.float16)
    return CompressedTensor(name, shape, encoding, {**tensor.parts, scaled: scales})


def tiny_tokenizer(vocab_size: int) -> Any:
    """A tokenizer of single characters (printable ASCII) with <unk>, <s>, </s> at 0, 1, 2 and a chat template."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    tokens = ["<unk>", "<s>", "</s>", "\n", *map(chr, range(32, 127))]
    tokens += [f"<extra_{index}>" for index in range(vocab_size - len(tokens))]
    tokenizer = Tokenizer(models.WordLevel({token: index for index, token in enumerate(tokens)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    tokenizer.decoder = decoders.Fuse()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="<unk>", bos_token="<s>", eos_token="</s>", pad_token="<unk>"
    )
    fast.chat_template = "{% for m in messages %}<s>{{ m['role'] }}\n{{ m['content'] }}</s>{% endfor %}"
    return fast
