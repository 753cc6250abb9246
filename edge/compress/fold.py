"""Scales per channel that cancel: divided out of what makes a channel, multiplied into the matrices that read it.

For any decoder that a `DecoderSpec` describes, separate or fused matrices, plain or transposed. The function of the
model stays as it is, and no operator is added.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch

from edge.models.spec import Layer, Linear, Norm

Tensor = Callable[[str], torch.Tensor]
"""Gives a float32 tensor of the model by name, to be changed in place."""


@dataclass(frozen=True)
class Fold:
    """`readers` read what `norm` or the rows of `writer` from `first_row` on make.

    place: before q, k, v or gate, up (`norm`), before o (`values`), before down (`products`).
    shared_by: so many heads of `head_dim` inputs in a row read the same head of the writer (grouped queries).
    """

    readers: tuple[Linear, ...]
    norm: Norm | None = None
    writer: Linear | None = None
    first_row: int = 0
    shared_by: int = 1
    head_dim: int = 1
    place: Literal["norm", "values", "products"] = "norm"

    def shared(self, values: torch.Tensor, over: Callable[..., torch.Tensor] = torch.mean) -> torch.Tensor:
        """Statistics per input of the readers [in_features], the same (`over`) for inputs that are one channel."""
        if self.shared_by == 1:
            return values
        heads = values.view(-1, self.shared_by, self.head_dim)
        return over(heads, 1, keepdim=True).expand_as(heads).flatten()

    def apply(self, tensor: Tensor, scales: torch.Tensor) -> None:
        """Multiply the readers' columns by scales [in_features], as `shared` makes them, and divide the channels."""
        for reader in self.readers:
            matrix(tensor, reader).mul_(scales)
        if self.norm is not None:
            _divide_norm(tensor, self.norm, scales)
        if self.writer is not None:
            heads = scales.view(-1, self.shared_by, self.head_dim) if self.shared_by > 1 else scales[:, None, None]
            channels = heads[:, 0].flatten()
            rows = slice(self.first_row, self.first_row + len(channels))
            matrix(tensor, self.writer)[rows].div_(channels[:, None])
            if self.writer.bias:
                tensor(f"{self.writer.name}.bias")[rows].div_(channels)


def folds(layer: Layer) -> list[Fold]:
    """The places of a layer where scales cancel, in the order of the data.

    Always norm to q, k, v and norm to gate, up; v to o; up to down only where up is gated, hence linear.
    """
    attention, mlp = layer.attention, layer.mlp
    width, shared_by = attention.head_dim, attention.num_heads // attention.num_kv_heads
    values = attention.qkv[-1]
    value_rows = attention.num_kv_heads * width
    found = [
        Fold(attention.qkv, norm=layer.input_norm),
        Fold(
            (attention.o,),
            writer=values,
            first_row=values.out_features - value_rows,
            shared_by=shared_by,
            head_dim=width,
            place="values",
        ),
        Fold(mlp.up, norm=layer.mlp_norm),
    ]
    if mlp.gated:
        up = mlp.up[-1]
        first_row = up.out_features - mlp.down.in_features
        found.append(Fold((mlp.down,), writer=up, first_row=first_row, place="products"))
    return found


def matrix(tensor: Tensor, linear: Linear) -> torch.Tensor:
    """A view [out_features, in_features] of a weight, however it is stored."""
    stored = tensor(linear.weight)
    return stored.T if linear.transposed else stored


def _divide_norm(tensor: Tensor, norm: Norm, scales: torch.Tensor) -> None:
    weight = tensor(f"{norm.name}.weight")
    if norm.unit_offset:
        weight.add_(1).div_(scales).sub_(1)
    else:
        weight.div_(scales)
    if norm.kind == "layer":
        tensor(f"{norm.name}.bias").div_(scales)
