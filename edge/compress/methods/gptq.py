"""GPTQ: rounds column by column and lets the columns still to come make up for each error.

Frantar, Ashkboos, Hoefler, Alistarh: "GPTQ: Accurate Post-Training Quantization for Generative Pre-trained
Transformers", ICLR 2023, arXiv:2210.17323.

Columns are rounded one after the other; the error of each is spread over the columns still to come so that the
outputs on the calibration data change least: with U upper triangular and U^T U = H^-1, the error of column j is
e = (w_j - q_j) / U_jj, and column k > j becomes w_k - e U_jk (equations 2 to 4, and the Cholesky form of section 3.3;
`edge/compress/propagation.py` has it).

The variants of the authors' code: `act_order` visits columns by falling input energy; with `static_groups` grids are
fitted to the original weights in their original order, so that the order of the visit leaves no trace in the stored
tensor; without, a group's grid is fitted when the visit reaches it, to the weights as they are by then. With
`true_sequential` a matrix sees inputs that come from compressed matrices of its own layer too.
"""

from __future__ import annotations

import torch

from edge.compress.grid import FittedGrid, fit_grid
from edge.compress.method import AffineOptions, Inputs
from edge.compress.propagation import round_part, visiting_order
from edge.core.errors import UsageError
from edge.core.weight import CompressedTensor

CALIBRATED = True
ROWS_AT_ONCE = 8192  # bounds the memory for a head of 150,000 rows: rows don't depend on each other


class Options(AffineOptions, frozen=True, forbid_unknown_fields=True):
    """act_order: visit columns by falling input energy. damping: added to the Hessian's diagonal, relative to its mean.

    search: choose scales by the least squared error weighted by input energy. block: columns between two updates of
    the rest of the matrix; it changes the speed only. static_groups, true_sequential: see the top of the file.
    """

    act_order: bool = True
    damping: float = 0.01
    search: bool = True
    block: int = 128
    static_groups: bool = True
    true_sequential: bool = True

    def __post_init__(self) -> None:
        if not 0 < self.damping <= 1 or self.block < 1:
            raise ValueError("`damping` lies in (0, 1] and `block` is at least 1")
        if self.act_order and not self.static_groups:
            raise ValueError("columns of a group lie together: `act_order` needs `static_groups`")


def compress(name: str, weight: torch.Tensor, options: Options, inputs: Inputs | None = None) -> CompressedTensor:
    """Compress a float32 matrix [out_features, in_features] whose inputs are known."""
    if inputs is None:
        raise UsageError("gptq.inputs", f"{name}: gptq needs calibration inputs", "give a calibration text")
    importance = inputs.hessian.diagonal() if options.search else None
    order, factor = visiting_order(inputs, options.act_order, options.damping)
    if options.static_groups:
        grid = fit_grid(weight, options.encoding, search=options.search, importance=importance)
        codes = torch.empty(weight.shape, dtype=torch.uint8)
        for start in range(0, len(weight), ROWS_AT_ONCE):
            rows = slice(start, start + ROWS_AT_ONCE)
            part = FittedGrid(grid.encoding, grid.scales[rows], grid.zeros[rows])
            codes[rows] = _round_in_order(weight[rows], part, order, factor, options.block)
    else:
        grid, codes = _round_group_by_group(weight, options, importance, factor)
    return grid.tensor(name, codes)


def _round_in_order(
    weight: torch.Tensor, grid: FittedGrid, order: torch.Tensor, factor: torch.Tensor, block: int
) -> torch.Tensor:
    """Codes uint8 [rows, columns], in the original order. Works on the transpose: a column's values lie together."""
    columns = weight.shape[1]
    group = order // (grid.encoding.group_size or columns)
    rounding = _Rounding(grid.scales.T[group].contiguous(), grid.zeros.T[group].contiguous(), grid.encoding.bits)
    rest = weight.T[order].contiguous()
    for start in range(0, columns, block):
        round_part(rest, slice(start, min(start + block, columns)), factor, rounding)
    codes = torch.empty(rest.shape, dtype=torch.uint8)
    codes[order] = rounding.codes
    return codes.T.contiguous()


def _round_group_by_group(
    weight: torch.Tensor, options: Options, importance: torch.Tensor | None, factor: torch.Tensor
) -> tuple[FittedGrid, torch.Tensor]:
    """Grids fitted on the way, and codes uint8 [rows, columns]."""
    encoding, (rows, columns) = options.encoding, weight.shape
    rest = weight.T.contiguous()
    scales, zeros = torch.empty(rows, encoding.groups(columns)), torch.empty(rows, encoding.groups(columns))
    codes = torch.empty(rest.shape, dtype=torch.uint8)
    for group, columns_of in enumerate(encoding.slices(columns)):
        part = slice(columns_of.start, min(columns_of.stop, columns))
        weights = None if importance is None else importance[part]
        grid = fit_grid(rest[part].T.contiguous(), encoding, search=options.search, importance=weights)
        scales[:, group], zeros[:, group] = grid.scales[:, 0], grid.zeros[:, 0]
        shape = (part.stop - part.start, rows)
        rounding = _Rounding(grid.scales.T.expand(shape), grid.zeros.T.expand(shape), encoding.bits, part.start)
        round_part(rest, part, factor, rounding)
        codes[part] = rounding.codes
    return FittedGrid(encoding, scales, zeros), codes.T.contiguous()


class _Rounding:
    """Rounds columns from `first` on to grids with scales and zeros [columns, rows], and keeps their codes uint8."""

    def __init__(self, scales: torch.Tensor, zeros: torch.Tensor, bits: int, first: int = 0) -> None:
        self.scales, self.zeros, self.top, self.first = scales, zeros, (1 << bits) - 1, first
        self.below = zeros.floor()
        self.between = zeros - self.below  # one half on the half-integer grid
        self.inverse = torch.where(scales == 0, 0, 1 / scales)
        self.codes = torch.empty(scales.shape, dtype=torch.uint8)

    def __call__(self, columns: slice, values: torch.Tensor) -> torch.Tensor:
        at = slice(columns.start - self.first, columns.stop - self.first)
        code = torch.addcmul(self.between[at], values, self.inverse[at])
        code = code.round_().add_(self.below[at]).clamp_(0, self.top)
        self.codes[at] = code.to(torch.uint8)
        return (code - self.zeros[at]) * self.scales[at]
