"""Compressed matrices whose scales, tables and rounding a gradient can move, on the way to what can be stored.

What `forward` returns is at every moment what would be stored: scales are rounded to float16 and codes to integers,
and gradients pass straight through (Bengio, Léonard, Courville 2013, arXiv:1308.3432).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from edge.compress.grid import FittedGrid, grouped
from edge.compress.joined import Member, split
from edge.compress.straight_through import coded, dequantize_rounded, straight
from edge.core.weight import Affine, Codebook, CompressedTensor, Dense


class Trainable(nn.Module):
    """A matrix [rows, columns]. Parameters are relative to their first values, so that one learning rate suits all:
    `gains` multiply scales, `offsets` are in steps between two codes.
    """

    def __init__(self, tensor: CompressedTensor) -> None:
        super().__init__()
        self.name, self.shape, self.encoding = tensor.name, tensor.shape, tensor.encoding
        self.members = [Member(tensor.name, tensor.shape, tensor.encoding)]

    def joining(self, tensors: Sequence[CompressedTensor]) -> Trainable:
        """Say which matrices the one is that this was made of, by `join`. Returns itself."""
        self.members = [Member(tensor.name, tensor.shape, tensor.encoding) for tensor in tensors]
        return self

    def tensors(self) -> list[CompressedTensor]:
        """What the parameters stand for now, matrix by matrix."""
        return split(self.tensor(), self.members)

    def tensor(self) -> CompressedTensor:
        """What the parameters stand for now."""
        raise NotImplementedError

    def advance(self, done: float) -> None:
        """A step begins, after the share `done` of all steps."""

    def carried(self) -> dict[str, torch.Tensor]:
        """What a run that was killed needs beside the parameters: what they are relative to, and what moves with them.

        The files that it was read from may have been replaced already, in part.
        """
        return dict(self.named_buffers())


def trainable(tensor: CompressedTensor, *, rounding: bool) -> Trainable:
    """Affine and codebook matrices can be trained, others stay what they are. rounding: codes may change (affine)."""
    if isinstance(tensor.encoding, Affine):
        return _TrainableAffine(tensor, rounding)
    if isinstance(tensor.encoding, Codebook):
        return _TrainableCodebook(tensor)
    return _Fixed(tensor)


class TrainableDense(Trainable):
    """A matrix that isn't compressed: float32 [rows, columns]. What is zero, because it was pruned, stays zero."""

    def __init__(self, name: str, weight: torch.Tensor) -> None:
        rows, columns = weight.shape
        super().__init__(CompressedTensor(name, (rows, columns), Dense("float32"), {"values": weight.numpy()}))
        self.weight = nn.Parameter(weight)

    def forward(self) -> torch.Tensor:
        return self.weight * (self.weight.detach() != 0)

    @torch.no_grad()
    def tensor(self) -> CompressedTensor:
        return CompressedTensor(self.name, self.shape, self.encoding, {"values": self.weight.cpu().numpy()})


class _Fixed(Trainable):
    def __init__(self, tensor: CompressedTensor) -> None:
        super().__init__(tensor)
        self._tensor = tensor
        self.register_buffer("dense", torch.from_numpy(tensor.dequantize()))

    def forward(self) -> torch.Tensor:
        return self.dense

    def tensor(self) -> CompressedTensor:
        return self._tensor


class _TrainableAffine(Trainable):
    """value = gain scale (code - zero); with `rounding`, code = round(first code + offset)."""

    def __init__(self, tensor: CompressedTensor, rounding: bool) -> None:
        super().__init__(tensor)
        self.affine: Affine = tensor.encoding  # type: ignore[assignment]
        half = self.affine.grid == "half_integer"
        scales = torch.from_numpy(tensor.parts["scales"]).float() * (2 if half else 1)
        top = (1 << self.affine.bits) - 1
        implied = top / 2 if half else float(self.affine.symmetric_zero)
        zeros = tensor.parts.get("zero_points")
        zeros = torch.full_like(scales, implied) if zeros is None else torch.from_numpy(zeros).float()
        self.register_buffer("scales", scales)
        self.register_buffer("zeros", zeros)
        self.register_buffer("codes", grouped(torch.from_numpy(tensor.parts["codes"]).float(), self.affine))
        self.gains = nn.Parameter(torch.ones_like(scales))
        self.offsets = nn.Parameter(torch.zeros_like(self.codes)) if rounding else None

    def _scales(self) -> torch.Tensor:
        exact = self.scales * self.gains
        unit = 2 if self.affine.grid == "half_integer" else 1
        return straight(exact, (exact.detach() / unit).half().float() * unit)

    def forward(self) -> torch.Tensor:
        scales = self._scales()
        if self.offsets is None:
            dense = (self.codes - self.zeros[..., None]) * scales[..., None]
        else:
            # From the codes as they were, in units of the scale as it is: a gain doesn't move any code.
            levels = self.codes - self.zeros[..., None]
            dense = dequantize_rounded(levels, self.offsets, scales, self.zeros, self.affine.bits)
        return dense.flatten(1)[:, : self.shape[1]]

    @torch.no_grad()
    def tensor(self) -> CompressedTensor:
        codes = self.codes
        if self.offsets is not None:
            codes = coded(self.codes + self.offsets, self.affine.bits)
        flat = codes.flatten(1)[:, : self.shape[1]].to("cpu", torch.uint8)
        grid = FittedGrid(self.affine, self._scales().cpu(), self.zeros.cpu())
        return grid.tensor(self.name, flat)


class _TrainableCodebook(Trainable):
    """value = gain scale (table[code] + shift of the entry), codes as they are; entries stay integers of their type."""

    def __init__(self, tensor: CompressedTensor) -> None:
        super().__init__(tensor)
        self.book: Codebook = tensor.encoding  # type: ignore[assignment]
        self._tensor = tensor
        rows, columns = tensor.shape
        tables = torch.from_numpy(tensor.parts["tables"]).float()  # [row blocks, column blocks, entries, dim]
        row = torch.arange(rows) // (self.book.table_rows or rows)
        column = torch.arange(0, columns, self.book.dim) // (self.book.table_columns or columns)
        block = row[:, None] * tables.shape[1] + column
        index = block * tables.shape[2] + torch.from_numpy(tensor.parts["codes"]).long()
        self.register_buffer("index", index.to(torch.int32))
        self.register_buffer("tables", tables)
        self.register_buffer("scales", torch.from_numpy(tensor.parts["scales"]).float())
        # One step of an entry's gain is the same share of the table's largest entry for all.
        self.register_buffer("reach", tables.abs().amax((2, 3), keepdim=True).clamp_min(1))
        self.shifts = nn.Parameter(torch.zeros_like(tables))
        self.gains = nn.Parameter(torch.ones_like(self.scales))

    def _tables(self) -> torch.Tensor:
        exact = self.tables + self.shifts * self.reach
        most = 127 if self.book.entry == "int8" else 32767
        return straight(exact, exact.detach().round().clamp(-most, most))

    def _scales(self) -> torch.Tensor:
        exact = self.scales * self.gains
        return straight(exact, exact.detach().half().float())

    def forward(self) -> torch.Tensor:
        values = self._tables().flatten(0, 2)[self.index.long()].flatten(1)
        scales = self._scales()
        if self.book.scale == "row":
            return values * scales
        width = self.book.group_size or self.shape[1]
        return values * scales.repeat_interleave(width, 1)[:, : self.shape[1]]

    @torch.no_grad()
    def tensor(self) -> CompressedTensor:
        kind = self._tensor.parts["tables"].dtype
        parts = {
            **self._tensor.parts,
            "tables": self._tables().cpu().numpy().astype(kind),
            "scales": self._scales().half().cpu().numpy(),
        }
        return CompressedTensor(self.name, self.shape, self.encoding, parts)
