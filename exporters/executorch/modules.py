"""Layers of the exported module: each is one of edge's operators, or plain torch for what XNNPACK takes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn
from torch.nn import functional

import edge.kernels.torch_ops  # noqa: F401 (registers the operators)
from edge.models.spec import Mlp, Norm


class Layer(nn.Module):
    """Holds constants as buffers; an operand that is absent is None."""

    def __init__(self, **constants: torch.Tensor | None) -> None:
        super().__init__()
        for name, tensor in constants.items():
            self.register_buffer(name, tensor)


class FusedLinear(Layer):
    """edge::linear: epilogue(norm(x + skip) W^T + bias), and x + skip (x where there is no skip)."""

    def __init__(self, attributes: Mapping[str, Any], **constants: torch.Tensor | None) -> None:
        super().__init__(**constants)
        self.attributes = dict(attributes)

    def forward(self, x: torch.Tensor, skip: torch.Tensor | None = None) -> tuple[torch.Tensor, torch.Tensor]:
        y, total = torch.ops.edge.linear(x, skip=skip, **dict(self.named_buffers()), **self.attributes)
        return y, x if skip is None else total


class FusedEmbedding(Layer):
    """edge::embedding: dequantized rows."""

    def __init__(self, columns: int, weight: torch.Tensor) -> None:
        super().__init__(weight=weight)
        self.columns = columns

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return torch.ops.edge.embedding(ids, self.weight, columns=self.columns)


class FusedAttention(Layer):
    """edge::attention: norms of heads, rotation, caches (updated in place) and attention."""

    def __init__(
        self, attributes: Mapping[str, Any], cache_shape: Sequence[int], **constants: torch.Tensor | None
    ) -> None:
        keys, values = (torch.zeros(*cache_shape, dtype=torch.uint8) for _ in range(2))
        super().__init__(**constants, keys=keys, values=values)
        self.attributes = dict(attributes)

    def forward(
        self, qkv: torch.Tensor, total: torch.Tensor, cos: torch.Tensor | None, sin: torch.Tensor | None
    ) -> torch.Tensor:
        operands = dict(self.named_buffers()) | {"cos": cos, "sin": sin}
        return torch.ops.edge.attention(qkv, total, **operands, **self.attributes)


class RotaryTables(Layer):
    """cos and sin, each [context_length, rotary_dim / 2]."""

    def forward(self) -> tuple[torch.Tensor, torch.Tensor]:
        return self.cos, self.sin


class Linear(Layer):
    """A dense product."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return functional.linear(x, self.weight, self.bias)


class Embedding(Layer):
    """Rows of a dense table."""

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return functional.embedding(ids, self.weight)


class Normalization(Layer):
    """A norm out of what XNNPACK has. It has no mean over the last axis: that is a product with a row of 1 / n."""

    def __init__(self, norm: Norm, *, weight: torch.Tensor, bias: torch.Tensor | None) -> None:
        super().__init__(weight=weight, bias=bias, mean=torch.full((1, weight.shape[0]), 1 / weight.shape[0]))
        self.kind, self.eps = norm.kind, norm.eps

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.kind == "layer":
            x = x - functional.linear(x, self.mean)
        y = x * torch.rsqrt(functional.linear(x * x, self.mean) + self.eps) * self.weight
        return y if self.bias is None else y + self.bias


def positions(ids: torch.Tensor, total: torch.Tensor) -> torch.Tensor:
    """Positions [S] of the tokens ids [1, S]: total - S .. total - 1."""
    tokens = ids.shape[1]
    return torch.arange(tokens) + (total.to(torch.int64) - tokens)


def activate(mlp: Mlp, x: torch.Tensor) -> torch.Tensor:
    """The activation function of an MLP on its first product; the gate's columns come first."""
    if not mlp.gated:
        return _activation(mlp, x)
    gate, up = x.chunk(2, dim=-1)
    return _activation(mlp, gate) * up


def _activation(mlp: Mlp, x: torch.Tensor) -> torch.Tensor:
    if mlp.activation == "silu":
        return x * torch.sigmoid(x)
    return functional.gelu(x, approximate="tanh" if mlp.activation == "gelu_tanh" else "none")
