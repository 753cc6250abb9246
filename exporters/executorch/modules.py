"""Layers of the exported module: each is one of edge's operators, or plain torch for what XNNPACK takes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn
from torch.nn import functional

import edge.kernels.torch_ops  # noqa: F401 (registers the operators)
from edge.models.spec import Attention, Mlp, Norm
from edge.models.torch_model import RopeTables

Frame = dict[str, torch.Tensor]  # what is the same for all layers of a call


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


class FusedFrame(nn.Module):
    """What all layers' attention needs: the length, and cos and sin [context_length, rotary_dim / 2] by name."""

    def __init__(self, tables: RopeTables) -> None:
        super().__init__()
        for name, (cos, sin) in tables.items():
            self.register_buffer(f"cos_{name}", cos)
            self.register_buffer(f"sin_{name}", sin)

    def forward(self, ids: torch.Tensor, total: torch.Tensor) -> Frame:
        return {"total": total, **dict(self.named_buffers())}


class FusedAttention(Layer):
    """edge::attention: norms of heads, rotation, caches (updated in place) and attention."""

    def __init__(
        self,
        spec: Attention,
        attributes: Mapping[str, Any],
        cache_shapes: Sequence[Sequence[int]],
        **constants: torch.Tensor | None,
    ) -> None:
        keys, values = (torch.zeros(*shape, dtype=torch.uint8) for shape in cache_shapes)
        super().__init__(**constants, keys=keys, values=values)
        self.rope, self.attributes = spec.rope, dict(attributes)

    def forward(self, parts: Sequence[torch.Tensor], frame: Frame) -> torch.Tensor:
        qkv = parts[0] if len(parts) == 1 else torch.cat(list(parts), dim=-1)
        tables = {name: frame.get(f"{name}_{self.rope}") for name in ("cos", "sin")}
        operands = dict(self.named_buffers()) | tables
        return torch.ops.edge.attention(qkv, frame["total"], **operands, **self.attributes)


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


def activate(mlp: Mlp, parts: Sequence[torch.Tensor]) -> torch.Tensor:
    """The activation function of an MLP on its first product, or on those of gate and up."""
    if not mlp.gated:
        return _activation(mlp, parts[0])
    gate, up = parts if len(parts) == 2 else parts[0].chunk(2, dim=-1)
    return _activation(mlp, gate) * up


def _activation(mlp: Mlp, x: torch.Tensor) -> torch.Tensor:
    if mlp.activation == "silu":
        return x * torch.sigmoid(x)
    if mlp.activation == "gelu":
        return functional.gelu(x)
    # gelu_tanh, 0.5 x (1 + tanh u) = x sigmoid(2 u), in full: XNNPACK takes every gelu for the other one.
    return x * torch.sigmoid((x + x * x * x * 0.044715) * 1.5957691216057308)
