"""Group-mixed precision: 2 bits a weight, and 4 bits for the few groups whose rounding would hurt the output most.

Li, Xu, Li, Huang, Liu, Lian, Dai: "Fast and Efficient 2-bit LLM Inference on GPU: 2/4/16-bit in a Weight Matrix with
Asynchronous Dequantization", 2023, arXiv:2311.16442 (at first "Enabling Fast 2-bit LLM on GPUs: Memory Alignment,
Sparse Outlier, and Asynchronous Dequantization").

Groups of a row differ in range, and the inputs in energy: the groups with the largest product of the two get 4 bits,
the same number in every row, so that rows stay aligned in memory. Here that choice is made for the 16 rows of a
kernel's tile together: sensitivity is the sum over the tile of range^2 / [H^-1]_qq over the inputs q of a group, what
the error of rounding grows with. Scales are themselves quantized, to 8 bits by row. Columns are rounded in turn with
the error propagation of GPTQ. The paper's sparse 16-bit outliers are left out: the kernels' encoding has none.
"""

from __future__ import annotations

from typing import Literal

import msgspec
import torch

from edge.compress.grid import FittedGrid, fit_grid, grouped
from edge.compress.method import Inputs
from edge.compress.propagation import round_part, visiting_order
from edge.core.encoding import TILE_ROWS, GroupMixed
from edge.core.errors import UsageError
from edge.core.parts import block_count
from edge.core.weight import Affine, CompressedTensor

CALIBRATED = True
CHOOSES_ENCODING = True
LOW_BITS, HIGH_BITS = 2, 4
ROWS_AT_ONCE = 512 * TILE_ROWS  # bounds the memory: tiles don't depend on each other


class Options(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """high: share of the groups at 4 bits, at most; the default makes 2.85 bits a weight in all.

    group_size: 32, 64 or 128. scale: `second_order` has 8 bits by group. act_order, damping, block, true_sequential: as
    in gptq.
    """

    high: float = 0.225
    group_size: int = 32
    scale: Literal["group", "second_order"] = "second_order"
    act_order: bool = True
    damping: float = 0.01
    block: int = 128
    true_sequential: bool = True

    def __post_init__(self) -> None:
        if not 0 <= self.high <= 1 or not 0 < self.damping <= 1 or self.block < 1:
            raise ValueError("`high` lies in [0, 1], `damping` in (0, 1], and `block` is at least 1")
        GroupMixed(self.group_size, 0)  # raises for groups that can't be stored

    def encoding_of(self, columns: int) -> GroupMixed:
        """What a matrix with so many columns is stored as."""
        groups = -(-columns // self.group_size)
        return GroupMixed(self.group_size, int(self.high * groups), "zero_point", self.scale)


def compress(name: str, weight: torch.Tensor, options: Options, inputs: Inputs | None = None) -> CompressedTensor:
    """Compress a float32 matrix [out_features, in_features] whose inputs are known."""
    if inputs is None:
        message = f"{name}: group-mixed needs calibration inputs"
        raise UsageError("group_mixed.inputs", message, "give a calibration text")
    rows, columns = weight.shape
    encoding = options.encoding_of(columns)
    order, factor = visiting_order(inputs, options.act_order, options.damping)
    importance = torch.empty(columns)
    importance[order] = factor.diagonal() ** -2
    parts: list[dict[str, torch.Tensor]] = []
    for part in torch.split(weight, ROWS_AT_ONCE):
        high = sensitive_groups(part, encoding, importance)
        grid = _MixedGrid(part, encoding, high, importance)
        parts.append({"codes": _round(part, grid, order, factor, options.block), "high": high.byte(), **grid.parts()})
    joined = {key: torch.cat([part[key] for part in parts]).numpy() for key in parts[0]}
    return CompressedTensor(name, (rows, columns), encoding, joined)


def sensitive_groups(weight: torch.Tensor, encoding: GroupMixed, importance: torch.Tensor) -> torch.Tensor:
    """Which groups get 4 bits: bool [tiles, groups], `high_groups` in every tile of 16 rows."""
    by_group = _grouped(weight, encoding)
    ranges = by_group.amax(-1) - by_group.amin(-1)
    energy = _grouped(importance[None], encoding).sum(-1)
    sensitivity = torch.zeros(block_count(len(weight), TILE_ROWS), encoding.groups(weight.shape[1]))
    sensitivity.index_add_(0, torch.arange(len(weight)) // TILE_ROWS, ranges.square() * energy)
    chosen = sensitivity.argsort(dim=1, descending=True, stable=True)[:, : encoding.high_groups]
    return torch.zeros(sensitivity.shape, dtype=torch.bool).scatter_(1, chosen, True)


class _MixedGrid:
    """Scales as stored, zero points and the largest codes, [rows, groups]."""

    def __init__(
        self, weight: torch.Tensor, encoding: GroupMixed, high: torch.Tensor, importance: torch.Tensor
    ) -> None:
        self.encoding = encoding
        fine = high.repeat_interleave(TILE_ROWS, 0)[: len(weight)]
        two, four = (_fitted(weight, encoding, bits, importance) for bits in (LOW_BITS, HIGH_BITS))
        self.zeros = torch.where(fine, four.zeros, two.zeros)
        self.tops = torch.where(fine, (1 << HIGH_BITS) - 1.0, (1 << LOW_BITS) - 1.0)
        self.scales = torch.where(fine, four.scales, two.scales)
        if encoding.scale == "second_order":
            self.row_scales = (self.scales.amax(1, keepdim=True) / 255).half()
            unit = self.row_scales.float()
            steps = self.scales / torch.where(unit == 0, 1, unit)
            self.steps = steps.round().clamp_(0, 255)
            self.steps[(self.scales > 0) & (self.steps == 0) & (unit > 0)] = 1
            self.scales = self.steps * unit

    def parts(self) -> dict[str, torch.Tensor]:
        """What is stored besides the codes."""
        zeros = {"zero_points": self.zeros.to(torch.uint8)}
        if self.encoding.scale == "group":
            return {"scales": self.scales.half(), **zeros}
        return {"scales": self.steps.to(torch.uint8), "row_scales": self.row_scales, **zeros}


def _fitted(weight: torch.Tensor, encoding: GroupMixed, bits: int, importance: torch.Tensor) -> FittedGrid:
    return fit_grid(weight, Affine(bits, encoding.group_size, "zero_point"), importance=importance)


def _round(
    weight: torch.Tensor, grid: _MixedGrid, order: torch.Tensor, factor: torch.Tensor, block: int
) -> torch.Tensor:
    """Codes uint8 [rows, columns], in the original order."""
    group = order // grid.encoding.group_size
    scales, zeros, tops = (values.T[group].contiguous() for values in (grid.scales, grid.zeros, grid.tops))
    inverse = torch.where(scales == 0, 0, 1 / scales)
    visited = torch.empty(scales.shape, dtype=torch.uint8)

    def nearest(columns: slice, values: torch.Tensor) -> torch.Tensor:
        codes = torch.addcmul(zeros[columns], values, inverse[columns]).round_().clamp_(min=0)
        codes = torch.minimum(codes, tops[columns])
        visited[columns] = codes.to(torch.uint8)
        return (codes - zeros[columns]) * scales[columns]

    rest = weight.T[order].contiguous()
    for start in range(0, len(rest), block):
        round_part(rest, slice(start, min(start + block, len(rest))), factor, nearest)
    codes = torch.empty_like(visited)
    codes[order] = visited
    return codes.T.contiguous()


def _grouped(values: torch.Tensor, encoding: GroupMixed) -> torch.Tensor:
    return grouped(values, Affine(LOW_BITS, encoding.group_size))
