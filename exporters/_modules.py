"""Torch modules that compute with edge's own operators: what generic exports put in place of compressed modules."""

from __future__ import annotations

import torch
from torch import nn

from edge.kernels import pack
from edge.kernels import torch_ops as _registers  # noqa: F401
from edge.kernels.lib import ACTIVATIONS
from edge.models.compressed_modules import CompressedEmbedding, CompressedLinear, TiedEmbedding, TiedHead


class PackedLinear(nn.Module):
    """y = x W^T + bias by `edge::linear`. `packed` uint8 is what the kernels read."""

    weight = None  # some models (T5) ask for the type of a weight, and go on without one

    def __init__(self, packed: torch.Tensor, rows: int, bias: torch.Tensor | None, activations: str) -> None:
        super().__init__()
        self.register_buffer("packed", packed)
        self.register_buffer("bias", None if bias is None else bias.detach().float())
        self.rows, self.activations = rows, ACTIVATIONS[activations]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.ops.edge.linear(x, self.packed, self.bias, rows=self.rows, activations=self.activations)[0]


class PackedEmbedding(nn.Module):
    """Rows of a table by `edge::embedding`, times `scale`."""

    def __init__(self, packed: torch.Tensor, columns: int, scale: float) -> None:
        super().__init__()
        self.register_buffer("packed", packed)
        self.columns, self.scale = columns, scale

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        x = torch.ops.edge.embedding(ids, self.packed, columns=self.columns)
        return x if self.scale == 1.0 else x * self.scale


def use_edge_operators(model: nn.Module) -> nn.Module:
    """Replace every compressed module of `model`, in place; tied ones go on sharing their bytes."""
    compressed = CompressedLinear | CompressedEmbedding | TiedHead | TiedEmbedding
    packed: dict[int, torch.Tensor] = {}
    for path, module in list(model.named_modules()):
        if isinstance(module, compressed):
            model.set_submodule(path, _packed(module, packed))
    return model


def _packed(module: nn.Module, known: dict[int, torch.Tensor]) -> nn.Module:
    source = module._source[0] if isinstance(module, TiedHead | TiedEmbedding) else module
    if id(source) not in known:
        known[id(source)] = torch.from_numpy(pack(source.compressed()))
    if isinstance(module, CompressedEmbedding | TiedEmbedding):
        return PackedEmbedding(known[id(source)], source.columns, source.scale)
    return PackedLinear(known[id(source)], source.rows, module.bias, module.activations)
