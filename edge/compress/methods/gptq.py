"""GPTQ: rounds column by column and lets the columns still to come make up for each error.

Frantar, Ashkboos, Hoefler, Alistarh: "GPTQ: Accurate Post-Training Quantization for Generative Pre-trained
Transformers", ICLR 2023, arXiv:2210.17323.

Columns are rounded one after the other; the error of each is spread over the columns still to come so that the
outputs on the calibration data change least. Grids are fitted to the original weights in their original order ("static
groups"), so that the order in which columns are visited leaves no trace in the stored tensor.
"""

from __future__ import annotations

from functools import lru_cache

import torch

from edge.compress.grid import FittedGrid, fit_grid
from edge.compress.method import AffineOptions, Inputs
from edge.core.errors import EdgeError, UsageError
from edge.core.weight import CompressedTensor

CALIBRATED = True


class Options(AffineOptions, frozen=True, forbid_unknown_fields=True):
    """act_order: visit columns by falling input energy. damping: added to the Hessian's diagonal, relative to its mean.

    search: choose scales by the least squared error weighted by input energy. block: columns between two updates of
    the rest of the matrix; it changes the speed only.
    """

    act_order: bool = True
    damping: float = 0.01
    search: bool = True
    block: int = 128

    def __post_init__(self) -> None:
        if not 0 < self.damping <= 1 or self.block < 1:
            raise ValueError("`damping` lies in (0, 1] and `block` is at least 1")


def compress(name: str, weight: torch.Tensor, options: Options, inputs: Inputs | None = None) -> CompressedTensor:
    """Compress a float32 matrix [out_features, in_features] whose inputs are known."""
    if inputs is None:
        raise UsageError("gptq.inputs", f"{name}: gptq needs calibration inputs", "give a calibration text")
    energy = inputs.hessian.diagonal()
    grid = fit_grid(weight, options.encoding, search=options.search, importance=energy if options.search else None)
    order, factor = _visiting_order(inputs, options.act_order, options.damping)
    codes = _round_in_order(weight, grid, order, factor, options.block)
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
    for more in (1, 10, 100):
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
    below = zeros.floor()
    between = zeros - below  # one half on the half-integer grid
    inverse = torch.where(scales == 0, 0, 1 / scales)
    top = (1 << grid.encoding.bits) - 1
    rest = weight.T[order].contiguous()
    codes = torch.empty(rest.shape, dtype=torch.uint8)
    for start in range(0, columns, block):
        end = min(start + block, columns)
        inside, errors = rest[start:end], torch.empty(end - start, weight.shape[0])
        upper = factor[start:end, start:end]
        for i, j in enumerate(range(start, end)):
            code = torch.addcmul(between[j], inside[i], inverse[j]).round_().add_(below[j]).clamp_(0, top)
            codes[order[j]] = code.to(torch.uint8)
            errors[i] = (inside[i] - (code - zeros[j]) * scales[j]) / upper[i, i]
            inside[i + 1 :].addr_(upper[i, i + 1 :], errors[i], alpha=-1)
        rest[end:].addmm_(factor[start:end, end:].T, errors, alpha=-1)
    return codes.T.contiguous()
