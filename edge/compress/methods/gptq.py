"""GPTQ: rounds column by column and lets the columns still to come make up for each error.

Frantar, Ashkboos, Hoefler, Alistarh: "GPTQ: Accurate Post-Training Quantization for Generative Pre-trained
Transformers", ICLR 2023, arXiv:2210.17323.

Columns are rounded one after the other; the error of each is spread over the columns still to come so that the
outputs on the calibration data change least: with U upper triangular and U^T U = H^-1, the error of column j is
e = (w_j - q_j) / U_jj, and column k > j becomes w_k - e U_jk (equations 2 to 4, and the Cholesky form of section 3.3).

The variants of the authors' code: `act_order` visits columns by falling input energy; with `static_groups` grids are
fitted to the original weights in their original order, so that the order of the visit leaves no trace in the stored
tensor; without, a group's grid is fitted when the visit reaches it, to the weights as they are by then. With
`true_sequential` a matrix sees inputs that come from compressed matrices of its own layer too.
"""

from __future__ import annotations

from functools import lru_cache

import torch

from edge.compress.grid import FittedGrid, fit_grid
from edge.compress.method import AffineOptions, Inputs
from edge.core.errors import EdgeError, UsageError
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
    order, factor = _visiting_order(inputs, options.act_order, options.damping)
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


@lru_cache(maxsize=1)
def _visiting_order(inputs: Inputs, act_order: bool, damping: float) -> tuple[torch.Tensor, torch.Tensor]:
    """The order of the columns, and U, upper triangular, with U^T U = H^-1 for the damped H in that order.

    A column whose input was always zero is cut off from the others: it is rounded to nearest.
    """
    hessian = inputs.hessian.clone()
    diagonal = hessian.diagonal()
    dead = diagonal == 0
    diagonal[dead] = diagonal.mean() or 1.0
    order = torch.argsort(diagonal, descending=True, stable=True) if act_order else torch.arange(len(diagonal))
    hessian = hessian[order][:, order]
    mean = hessian.diagonal().mean()
    for more in (1, 10, 100, 1e3, 1e4, 1e5, 1e6):
        damped = hessian + torch.eye(len(order)) * (mean * min(damping * more, 1.0))
        lower, failed = torch.linalg.cholesky_ex(damped)
        if not failed:
            upper, failed = torch.linalg.cholesky_ex(torch.cholesky_inverse(lower), upper=True)
        if not failed:
            return order, upper
    raise EdgeError("gptq.hessian", "the inputs of a layer are too alike to be inverted", "raise `damping`")


def _round_in_order(
    weight: torch.Tensor, grid: FittedGrid, order: torch.Tensor, factor: torch.Tensor, block: int
) -> torch.Tensor:
    """Codes uint8 [rows, columns], in the original order. Works on the transpose: a column's values lie together."""
    columns = weight.shape[1]
    group = order // (grid.encoding.group_size or columns)
    scales, zeros = grid.scales.T[group].contiguous(), grid.zeros.T[group].contiguous()
    rest = weight.T[order].contiguous()
    codes = torch.empty(rest.shape, dtype=torch.uint8)
    for start in range(0, columns, block):
        part = slice(start, min(start + block, columns))
        codes[order[part]] = _round_block(rest, part, scales[part], zeros[part], factor, grid.encoding.bits)
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
        width = part.stop - part.start
        codes[part] = _round_block(
            rest, part, grid.scales.T.expand(width, -1), grid.zeros.T.expand(width, -1), factor, encoding.bits
        )
    return FittedGrid(encoding, scales, zeros), codes.T.contiguous()


def _round_block(
    rest: torch.Tensor, part: slice, scales: torch.Tensor, zeros: torch.Tensor, factor: torch.Tensor, bits: int
) -> torch.Tensor:
    """Round the columns `part` of the transposed weights `rest` and correct those after them, in place.

    scales, zeros: [columns of the part, rows]. Returns codes uint8 of the same shape.
    """
    below = zeros.floor()
    between = zeros - below  # one half on the half-integer grid
    inverse = torch.where(scales == 0, 0, 1 / scales)
    inside, errors, upper = rest[part], torch.empty(scales.shape), factor[part, part]
    codes = torch.empty(scales.shape, dtype=torch.uint8)
    for i in range(len(inside)):
        code = torch.addcmul(between[i], inside[i], inverse[i]).round_().add_(below[i]).clamp_(0, (1 << bits) - 1)
        codes[i] = code.to(torch.uint8)
        errors[i] = (inside[i] - (code - zeros[i]) * scales[i]) / upper[i, i]
        inside[i + 1 :].addr_(upper[i, i + 1 :], errors[i], alpha=-1)
    rest[part.stop :].addmm_(factor[part, part.stop :].T, errors, alpha=-1)
    return codes
