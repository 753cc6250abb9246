"""Take a model off the integer grid that an earlier quantization left its weights on, without changing its function.

A checkpoint that comes from a 4-bit file quantizes to 4 bits with next to no loss, which says nothing about a real one.
Two rewrites that leave every output alone move its weights: each RMSNorm's weight is folded into the matrices after it,
and the rows of value and up matrices are scaled by random factors whose inverses scale the columns of the next matrix.
"""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import save_file

from edge.core.errors import EdgeError
from edge.core.files import atomic_folder
from edge.models.checkpoint import Checkpoint
from edge.models.spec import Layer

Tensors = dict[str, torch.Tensor]


def take_off_grid(checkpoint: Checkpoint, output: Path, *, seed: int = 0, force: bool = False) -> Path:
    """Write a float32 Hugging Face folder of the same function. For gated RMSNorm decoders with separate matrices."""
    spec = checkpoint.spec
    names = {name for name in checkpoint.names() if not (spec.tied and name == f"{spec.head}.weight")}
    random = torch.Generator().manual_seed(seed)
    with atomic_folder(output, force=force) as folder:
        tensors = {name: checkpoint.tensor(name).float() for name in sorted(names)}
        for layer in spec.layers:
            _check(layer)
            _fold_norm(tensors, layer.input_norm.name, [m.weight for m in layer.attention.qkv])
            _fold_norm(tensors, layer.mlp_norm.name, [m.weight for m in layer.mlp.up])
            _scale_pairs(tensors, layer, random)
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
        checkpoint.config.save_pretrained(folder)
        checkpoint.save_tokenizer(folder)
    return output


def _check(layer: Layer) -> None:
    separate = len(layer.attention.qkv) == 3 and len(layer.mlp.up) == 2 and layer.mlp.gated
    plain = all(n.kind == "rms" and not n.unit_offset for n in (layer.input_norm, layer.mlp_norm))
    if not (separate and plain):
        hint = "this rewrite knows Llama-like layers: separate q, k, v, gate and up, plain RMSNorm"
        raise EdgeError("offgrid.layer", f"{layer.name} has another structure", hint)


def _fold_norm(tensors: Tensors, norm: str, matrices: list[str]) -> None:
    weight = tensors[f"{norm}.weight"]
    for name in matrices:
        tensors[name] = tensors[name] * weight[None, :]
    tensors[f"{norm}.weight"] = torch.ones_like(weight)


def _scale_pairs(tensors: Tensors, layer: Layer, random: torch.Generator) -> None:
    attention, mlp = layer.attention, layer.mlp
    value, up = attention.qkv[2], mlp.up[1]
    factors = _factors(value.out_features, random)
    per_head = factors.view(attention.num_kv_heads, attention.head_dim)
    shared = per_head.repeat_interleave(attention.num_heads // attention.num_kv_heads, dim=0).flatten()
    _scale(tensors, value.name, factors, attention.o.weight, shared)
    factors = _factors(up.out_features, random)
    _scale(tensors, up.name, factors, mlp.down.weight, factors)


def _factors(count: int, random: torch.Generator) -> torch.Tensor:
    return 0.8 + 0.45 * torch.rand(count, generator=random)


def _scale(tensors: Tensors, first: str, rows: torch.Tensor, second: str, columns: torch.Tensor) -> None:
    tensors[f"{first}.weight"] = tensors[f"{first}.weight"] * rows[:, None]
    if f"{first}.bias" in tensors:
        tensors[f"{first}.bias"] = tensors[f"{first}.bias"] * rows
    tensors[second] = tensors[second] / columns[None, :]
