"""Torch modules that hold a compressed matrix as it lies on disk and compute what kernels compute."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, Self

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from edge.core.parts import ANY
from edge.core.weight import Compressed, CompressedTensor
from edge.models.stored import from_packed, to_packed

Activations = Literal["a8", "a4", "f32"]
HIGH_SHARE = 1 / 8
"""Of the groups of 4-bit activations the first ones, which keep 8 bits: at least one."""


def quantize_activations(
    x: torch.Tensor, group_size: int, activations: Activations = "a8"
) -> tuple[torch.Tensor, torch.Tensor]:
    """Dynamic int8 per token (row) and group of columns: codes [.., groups, width], scales [.., groups, 1].

    scale = max|x| / 127 in float32; code = rint(x * (1 / scale)), half to even, within +-127: bit for bit the kernels'.
    group_size is that of the weights, 0 for the whole row. A short last group is filled up with zeros. `a4` has 7 in
    place of 127 but for the first groups (`HIGH_SHARE`); no kernel does that.
    """
    columns = x.shape[-1]
    width = group_size or columns
    grouped = F.pad(x, (0, -columns % width)).unflatten(-1, (-1, width))
    limit = torch.full((grouped.shape[-2], 1), 127.0, device=x.device)
    if activations == "a4":
        limit[max(1, round(HIGH_SHARE * len(limit))) :] = 7
    scale = grouped.abs().amax(-1, keepdim=True) / limit
    inverse = 1 / scale
    inverse = torch.where(inverse.isfinite(), inverse, 0)
    return (grouped * inverse).round().clamp(-limit, limit), scale


def emulated_linear(x: torch.Tensor, dense: torch.Tensor, activations: Activations, group_size: int) -> torch.Tensor:
    """x [.., K] by dense [N, K] in float32, with activations as at run time.

    The activations' codes are the kernels' own; the sum runs over dequantized values in the order of torch's matmul,
    which differs from the kernels' exact integer sums by about 1e-6 relative.
    """
    if activations != "f32":
        codes, scale = quantize_activations(x, group_size, activations)
        x = (codes * scale).flatten(-2)[..., : x.shape[-1]]
    return F.linear(x, dense)


class CompressedWeight(nn.Module):
    """The parts of a matrix [rows, columns] as buffers, packed and named as in the file.

    The dequantized matrix is made at first use and kept while `cache` is true: a reference should be fast.
    """

    weight = None  # some models (T5) ask for the type of a weight, and go on without one

    def __init__(self, rows: int, columns: int, encoding: Compressed) -> None:
        super().__init__()
        self.rows, self.columns, self.encoding, self.cache = rows, columns, encoding, True
        self._dense: torch.Tensor | None = None
        self.layout = {name: part.packed() for name, part in encoding.compact_layout(rows, columns).items()}
        for name, part in self.layout.items():
            self.resize(name, tuple(0 if size == ANY else size for size in part.shape))

    def resize(self, name: str, shape: tuple[int, ...]) -> None:
        """Make room for a part; where the data decide how large it is, `load` or the reader of a file does that."""
        dtype = torch.from_numpy(np.empty(0, self.layout[name].dtype)).dtype
        self.register_buffer(name, torch.empty(shape, dtype=dtype))

    def load(self, tensor: CompressedTensor) -> Self:
        """Take over the parts of `tensor`."""
        for name, part in to_packed(tensor).items():
            setattr(self, name, part)
        return self

    def compressed(self) -> CompressedTensor:
        """The matrix that this module holds."""
        shape = (self.rows, self.columns)
        return from_packed("weight", shape, self.encoding, lambda name: self.get_buffer(name).cpu())

    def dense(self) -> torch.Tensor:
        """The dequantized matrix, float32 [rows, columns]."""
        if self._dense is not None:
            return self._dense
        dense = torch.from_numpy(self.compressed().dequantize()).to(self.codes.device)
        if self.cache:
            self._dense = dense
        return dense

    def _apply(self, fn: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True) -> Self:
        """Move with the model, but keep float16 scales through `half()`, `to(bfloat16)` and the like."""
        kept = {name: self.get_buffer(name) for name in self.layout}
        super()._apply(fn, recurse)
        for name, part in kept.items():
            moved = self.get_buffer(name)
            if moved.dtype != part.dtype:
                setattr(self, name, part.to(moved.device))
        self._dense = None
        return self

    def extra_repr(self) -> str:
        return f"{self.columns} -> {self.rows}, {self.encoding}"


class CompressedLinear(CompressedWeight):
    """y = x W^T + bias in float32; takes the place of `nn.Linear` and of GPT-2's `Conv1D`."""

    def __init__(self, rows: int, columns: int, encoding: Compressed, bias: bool, activations: Activations) -> None:
        super().__init__(rows, columns, encoding)
        self.activations: Activations = activations
        self.bias = nn.Parameter(torch.empty(rows), requires_grad=False) if bias else None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = emulated_linear(x.float(), self.dense(), self.activations, self.encoding.group_size)
        return (y if self.bias is None else y + self.bias.float()).to(x.dtype)


class CompressedEmbedding(CompressedWeight):
    """Rows of a compressed table, times `scale` (Gemma's embedding is scaled)."""

    def __init__(self, rows: int, columns: int, encoding: Compressed, scale: float = 1.0) -> None:
        super().__init__(rows, columns, encoding)
        self.scale = scale
        self.register_buffer("like", torch.empty(0), persistent=False)  # follows the model's type, as weights do

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return (F.embedding(ids, self.dense()) * self.scale).to(self.like.dtype)


class TiedHead(nn.Module):
    """A head that is the embedding's own table: nothing of its own to store or to load."""

    def __init__(
        self, embedding: CompressedEmbedding, activations: Activations, bias: nn.Parameter | None = None
    ) -> None:
        super().__init__()
        self.activations: Activations = activations
        self.bias = bias
        self._source = (embedding,)  # in a tuple: not a submodule, whose tensors would be listed twice

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        (table,) = self._source
        y = emulated_linear(x.float(), table.dense(), self.activations, table.encoding.group_size)
        return (y if self.bias is None else y + self.bias.float()).to(x.dtype)


class TiedEmbedding(nn.Module):
    """A second place that looks words up in a table, such as a decoder that shares its encoder's."""

    def __init__(self, embedding: CompressedEmbedding) -> None:
        super().__init__()
        self._source = (embedding,)  # see TiedHead

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        (table,) = self._source
        return table(ids)
