"""Error propagation: columns are rounded in turn, and those still to come make up for the error of each.

Frantar, Ashkboos, Hoefler, Alistarh: "GPTQ: Accurate Post-Training Quantization for Generative Pre-trained
Transformers", ICLR 2023, arXiv:2210.17323: equations 2 to 4 and the Cholesky form of section 3.3. Several columns may
be rounded together, as vector quantization does.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

import torch

from edge.compress.method import Inputs
from edge.core.errors import EdgeError

Round = Callable[[slice, torch.Tensor], torch.Tensor]
"""Rounds the columns at some positions of the visit: float32 [columns, rows] to what is stored, the same shape."""


@lru_cache(maxsize=1)
def visiting_order(
    inputs: Inputs, act_order: bool, damping: float, width: int = 1
) -> tuple[torch.Tensor, torch.Tensor]:
    """The order of the columns, and U, upper triangular, with U^T U = H^-1 for the damped H in that order.

    act_order: by falling input energy, in runs of `width` neighbours that stay together. A column whose input was
    always zero is cut off from the others: it is rounded to nearest.
    """
    diagonal = inputs.hessian.diagonal().clone()
    diagonal[diagonal == 0] = diagonal.mean() or 1.0
    order = torch.arange(len(diagonal))
    if act_order:
        runs = torch.argsort(diagonal.view(-1, width).sum(1), descending=True, stable=True)
        order = order.view(-1, width)[runs].flatten()
    diagonal = diagonal[order]
    hessian, mean = inputs.hessian[order[:, None], order], diagonal.mean()
    for more in (1, 10, 100, 1e3, 1e4, 1e5, 1e6):
        hessian.diagonal().copy_(diagonal + mean * min(damping * more, 1.0))
        factor, failed = torch.linalg.cholesky_ex(hessian)
        if not failed:
            # One name for each step: at most two matrices besides the Hessian's two are there at a time.
            factor = torch.cholesky_inverse(factor)
            factor, failed = torch.linalg.cholesky_ex(factor, upper=True)
        if not failed:
            return order, factor
    raise EdgeError("calibration.hessian", "the inputs of a layer are too alike to be inverted", "raise `damping`")


def round_part(rest: torch.Tensor, part: slice, factor: torch.Tensor, rounded: Round, width: int = 1) -> None:
    """Round the columns `part`, `width` at a time, and correct those after them, in place.

    rest: float32 weights [columns, rows], transposed so that a column's values lie together, in the order of the
    visit, as is `factor`. The columns of the part are left as they were when their turn came. The error of column j is
    e = (w_j - q_j) / U_jj, and column k > j becomes w_k - e U_jk.
    """
    inside, upper = rest[part], factor[part, part]
    errors = torch.empty(inside.shape)
    for first in range(0, len(inside), width):
        columns = slice(first, first + width)
        values = rounded(slice(part.start + first, part.start + first + width), inside[columns])
        for i, value in enumerate(values, first):
            errors[i] = (inside[i] - value) / upper[i, i]
            inside[i + 1 :].addr_(upper[i, i + 1 :], errors[i], alpha=-1)
    rest[part.stop :].addmm_(factor[part, part.stop :].T, errors, alpha=-1)
