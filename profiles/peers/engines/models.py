"""What engines are compared on: any checkpoint that edge opens, a small real one, a larger one of random weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from edge.core.console import info
from edge.core.files import atomic_folder, cache_folder
from edge.models import samples
from edge.models.checkpoint import Checkpoint, open_checkpoint
from edge.models.testing import tiny_tokenizer
from edge.profiles.peers.engines import Model

SAMPLE = "smollm2"
# 587 million parameters: large matrices, and few of them, so that decoding is bound by memory and not by the graph.
SYNTHETIC: dict[str, dict[str, Any]] = {
    "synthetic-587m": {
        "hidden_size": 2048,
        "intermediate_size": 8192,
        "num_hidden_layers": 8,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "vocab_size": 49152,
    },
    "synthetic-1m": {
        "hidden_size": 256,
        "intermediate_size": 512,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "vocab_size": 256,
    },
}


def prepare_model(name: str) -> Model:
    """The named model as a float16 Hugging Face folder in the cache; `name` may be any checkpoint that edge opens."""
    if name in SYNTHETIC:
        work = _work(name)
        if not (work / "model").exists():
            info(f"Writing {name}: random weights")
            with atomic_folder(work / "model") as folder:
                _write_synthetic(SYNTHETIC[name], folder)
        return Model(name, work / "model", work)
    checkpoint = open_checkpoint(samples.fetch(samples.SMOLLM2) if name == SAMPLE else name)
    work = _work(f"{checkpoint.name}-{checkpoint.sha256[:8]}")
    if not (work / "model").exists():
        with atomic_folder(work / "model") as folder:
            _write(checkpoint, folder)
    return Model(checkpoint.name, work / "model", work)


def _work(name: str) -> Path:
    return cache_folder() / "peers" / name


def _write(checkpoint: Checkpoint, folder: Path) -> None:
    spec = checkpoint.spec
    names = {name for name in checkpoint.names() if not (spec.tied and name == f"{spec.head}.weight")}
    _save(folder, checkpoint.config, {name: checkpoint.tensor(name) for name in sorted(names)})
    checkpoint.save_tokenizer(folder)


def _write_synthetic(settings: dict[str, Any], folder: Path) -> None:
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(**settings, max_position_embeddings=2048, tie_word_embeddings=True, bos_token_id=1)
    with torch.device("meta"):
        shapes = {name: tuple(p.shape) for name, p in LlamaForCausalLM(config).named_parameters()}
    generator = torch.Generator().manual_seed(0)
    tensors = {name: _random(shape, generator) for name, shape in shapes.items()}
    _save(folder, config, tensors)
    tiny_tokenizer(config.vocab_size).save_pretrained(folder)


def _random(shape: tuple[int, ...], generator: torch.Generator) -> torch.Tensor:
    return torch.ones(shape) if len(shape) == 1 else torch.randn(shape, generator=generator) * shape[-1] ** -0.5


def _save(folder: Path, config: Any, tensors: dict[str, torch.Tensor]) -> None:
    from transformers import AutoModelForCausalLM

    architecture = AutoModelForCausalLM._model_mapping[type(config)]
    config.architectures = [architecture.__name__]  # onnxruntime-genai's builder goes by it
    halves = {name: tensor.half().contiguous() for name, tensor in tensors.items()}
    save_file(halves, folder / "model.safetensors", metadata={"format": "pt"})
    config.save_pretrained(folder)
