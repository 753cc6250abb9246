"""Uniform grids: how scales and zero points of a matrix are chosen, and rounding to them.

All arithmetic runs on float16-rounded scales, the ones that are stored: what is measured here is what is shipped.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from edge.core.errors import EdgeError
from edge.core.weight import Affine, CompressedTensor

CHUNK = 1 << 21  # weights at a time: bounds the memory and stays in the caches
CLIPS = 12


@dataclass(frozen=True)
class FittedGrid:
    """`value = scale * (code - zero)`, per row and group: scales and zeros float32 [rows, groups].

    On the half-integer grid zeros lie between two codes, and `scale` is that of a code: twice the stored one.
    """

    encoding: Affine
    scales: torch.Tensor
    zeros: torch.Tensor

    def encode(self, weight: torch.Tensor) -> torch.Tensor:
        """Nearest codes uint8 of a matrix [rows, columns]."""
        codes = torch.empty(weight.shape, dtype=torch.uint8)
        for rows in row_chunks(weight):
            groups = grouped(weight[rows], self.encoding)
            nearest = _round(groups, self.scales[rows, :, None], self.zeros[rows, :, None], self.encoding.bits)
            codes[rows] = nearest.flatten(1)[:, : weight.shape[1]].to(torch.uint8)
        return codes

    def dequantize(self, codes: torch.Tensor) -> torch.Tensor:
        """The float32 matrix that codes [rows, columns] stand for."""
        groups = grouped(codes.float(), self.encoding)
        return ((groups - self.zeros[..., None]) * self.scales[..., None]).flatten(1)[:, : codes.shape[1]]

    def tensor(self, name: str, codes: torch.Tensor) -> CompressedTensor:
        """Codes uint8 [rows, columns] on this grid as a compressed tensor."""
        parts = {"codes": codes.contiguous().numpy(), "scales": (self.scales / _unit(self.encoding)).half().numpy()}
        if self.encoding.grid == "zero_point":
            parts["zero_points"] = self.zeros.to(torch.uint8).numpy()
        rows, columns = codes.shape
        return CompressedTensor(name, (rows, columns), self.encoding, parts)


def fit_grid(
    weight: torch.Tensor, encoding: Affine, *, search: bool = True, importance: torch.Tensor | None = None
) -> FittedGrid:
    """Scales (and zero points) for a float32 matrix [rows, columns].

    Without `search` the extreme weight of a group lies on the grid's end. With it, several clippings of the range and
    both directions of the symmetric grid (it has one level more below zero than above) are tried, the best by squared
    error is kept, and its scale is refined by least squares. Rounding stays rounding to the nearest level.
    importance [columns] weights the squared errors.
    """
    rows, groups = weight.shape[0], encoding.groups(weight.shape[1])
    scales, zeros = torch.empty(rows, groups), torch.empty(rows, groups)
    weights = None if importance is None else grouped(importance[None], encoding)
    for chunk in row_chunks(weight):
        scales[chunk], zeros[chunk] = _fit(grouped(weight[chunk], encoding), encoding, search, weights)
    return FittedGrid(encoding, scales, zeros)


def _fit(
    groups: torch.Tensor, encoding: Affine, search: bool, importance: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """The best of the candidates for groups [rows, groups, group_size]."""
    best = _Best(groups, encoding, importance)
    for scale, zero in _candidates(groups, encoding, search):
        best.offer(scale, zero)
    if not torch.isfinite(best.error).all():  # no candidate's scale was finite
        hint = "leave the tensor out with a rule (exclude = true)"
        raise EdgeError("compress.range", "a weight is too large for a float16 scale", hint)
    if search:
        for _ in range(2):
            best.offer(best.least_squares_scale(), best.zero)
    return best.scale, best.zero


class _Best:
    """Keeps the grid with the least squared error that it was offered, group by group."""

    def __init__(self, groups: torch.Tensor, encoding: Affine, importance: torch.Tensor | None) -> None:
        self.groups, self.encoding, self.bits, self.importance = groups, encoding, encoding.bits, importance
        self.error = torch.full(groups.shape[:2], torch.inf)
        self.scale, self.zero = torch.zeros(groups.shape[:2]), torch.zeros(groups.shape[:2])

    def offer(self, scale: torch.Tensor, zero: torch.Tensor) -> None:
        scale = stored_scale(scale, self.encoding)
        wide_scale, wide_zero = scale[..., None], zero[..., None]
        levels = levels_of(self.groups, wide_scale, wide_zero, self.bits)
        error = levels.mul_(wide_scale).sub_(self.groups).square_()
        if self.importance is not None:
            error *= self.importance
        total = error.sum(-1)
        better = total < self.error
        self.error = torch.where(better, total, self.error)
        self.scale = torch.where(better, scale, self.scale)
        self.zero = torch.where(better, zero, self.zero)

    def least_squares_scale(self) -> torch.Tensor:
        """The scale that fits the present codes best: <w, q> / <q, q>."""
        zero = self.zero[..., None]
        levels = levels_of(self.groups, self.scale[..., None], zero, self.bits)
        weighted = levels if self.importance is None else levels * self.importance
        norm = (weighted * levels).sum(-1)
        return torch.where(norm > 0, (weighted * self.groups).sum(-1) / norm, self.scale)


def _candidates(groups: torch.Tensor, encoding: Affine, search: bool) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Scales and zeros [rows, groups] to try, the plain one first."""
    # The fewer levels, the more it pays to clip: 2 bits down to half of the range, 8 bits hardly at all.
    lowest = 1 - 2.0 / (1 << encoding.bits)
    for clip in torch.linspace(1.0, lowest, CLIPS).tolist() if search and encoding.bits < 8 else [1.0]:
        scale, zero = range_grid(groups, encoding, clip)
        yield scale, zero
        if search and encoding.grid == "symmetric":
            half = encoding.symmetric_zero
            yield scale * (-half / (half - 1)), zero


def range_grid(groups: torch.Tensor, encoding: Affine, clip: float = 1.0) -> tuple[torch.Tensor, torch.Tensor]:
    """Scales and zeros [rows, groups] of the grid that spans the share `clip` of the range of [rows, groups, size].

    The symmetric grid points its longer side at the extreme weight. Scales are not yet rounded to float16.
    """
    top = (1 << encoding.bits) - 1
    if encoding.grid == "zero_point":
        low, high = groups.amin(-1).clamp(max=0), groups.amax(-1).clamp(min=0)
        scale = ((high - low) * (clip / top)).half().float()
        return scale, _divide(-low * clip, scale).round_().clamp_(0, top)
    if encoding.grid == "half_integer":
        largest = groups.abs().amax(-1)
        return largest * (2 * clip / top), torch.full_like(largest, top / 2)
    half = encoding.symmetric_zero
    extreme = torch.where(groups.amax(-1) > -groups.amin(-1), groups.amax(-1), groups.amin(-1))
    return extreme * (-clip / half), torch.full_like(extreme, half)


def stored_scale(scale: torch.Tensor, encoding: Affine) -> torch.Tensor:
    """A scale as it is after a round trip through the file's float16."""
    unit = _unit(encoding)
    return (scale / unit).half().float() * unit


def _unit(encoding: Affine) -> int:
    """What the difference of two codes is in units of the stored scale."""
    return 2 if encoding.grid == "half_integer" else 1


def levels_of(weight: torch.Tensor, scale: torch.Tensor, zero: torch.Tensor, bits: int) -> torch.Tensor:
    """The nearest `code - zero`: times `scale` it is the rounded weight. Shapes broadcast."""
    return _round(weight, scale, zero, bits).sub_(zero)


def _round(weight: torch.Tensor, scale: torch.Tensor, zero: torch.Tensor, bits: int) -> torch.Tensor:
    below = zero.floor()
    return _divide(weight, scale).add_(zero - below).round_().add_(below).clamp_(0, (1 << bits) - 1)


def _divide(weight: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """weight / scale, 0 where the scale is 0 (a group of zeros)."""
    return weight * torch.where(scale == 0, 0, 1 / scale)


def grouped(weight: torch.Tensor, encoding: Affine) -> torch.Tensor:
    """[rows, columns] as [rows, groups, group_size]; a short last group is filled with zeros."""
    rows, columns = weight.shape
    size = encoding.group_size or columns
    padded = F.pad(weight, (0, -columns % size))
    return padded.reshape(rows, -1, size)


def row_chunks(weight: torch.Tensor) -> Iterator[slice]:
    """Rows that are worked on at a time."""
    step = max(1, CHUNK // weight.shape[1])
    for start in range(0, weight.shape[0], step):
        yield slice(start, start + step)
