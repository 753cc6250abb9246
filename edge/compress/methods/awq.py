"""AWQ: scales input channels by how active they are, so that the weights that matter most are rounded least.

Lin, Tang, Tang, Yang, Chen, Wang, Xiao, Dang, Gan, Han: "AWQ: Activation-aware Weight Quantization for LLM Compression
and Acceleration", MLSys 2024, arXiv:2306.00978.

s = s_X^alpha, with s_X the mean of |X| per channel, and alpha from a grid over [0, 1] that minimises
||Q(W diag(s)) diag(s)^-1 X - W X|| (equations 4 and 5), normalised by sqrt(max(s) min(s)) as in the authors' code. The
`duo_scaling` also tries s = s_X^alpha / s_W^(1 - alpha), with s_W the mean of |W| per channel, as later versions of the
authors' code do: where the norms' weights lie in the matrices, channels differ in weight as much as in activity. The
scales are folded into what is before the matrices: norms, value rows (channels that query heads share get one scale),
up rows. Then the range of every group is clipped where that lowers the error of its outputs. Both errors are taken
from X^T X, which equals running the samples. Unlike the authors' code, q and k are clipped as well.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Literal

import torch

from edge.compress.block import Block
from edge.compress.fold import Fold, folds
from edge.compress.grid import FittedGrid, fit_grid, grouped, levels_of, range_grid, stored_scale
from edge.compress.method import AffineOptions, Inputs
from edge.compress.methods import gptq
from edge.core.errors import UsageError
from edge.core.weight import Affine, CompressedTensor

CALIBRATED = True


class Options(AffineOptions, frozen=True, forbid_unknown_fields=True):
    """steps: values of alpha that are tried. clip_steps, clip_to: clippings that are tried, down to this share of the
    range. The defaults are the authors'. duo_scaling: see the top of the file. rounding: `nearest` with these
    clippings, or by `gptq` with its defaults.
    """

    steps: int = 20
    clip_steps: int = 10
    clip_to: float = 0.5
    rounding: Literal["nearest", "gptq"] = "nearest"
    duo_scaling: bool = False

    def __post_init__(self) -> None:
        if self.steps < 1 or self.clip_steps < 0 or not 0 < self.clip_to <= 1:
            raise ValueError("`steps` is at least 1, `clip_steps` at least 0, `clip_to` lies in (0, 1]")


def prepare(block: Block, options: Mapping[str, Options]) -> None:
    """Fold the best scales into the layer, in the order of the data."""
    for fold in folds(block.layer):
        readers = {reader.weight: options[reader.weight] for reader in fold.readers if reader.weight in options}
        if readers:
            weights = [(block.matrix(r), options[r.weight]) for r in fold.readers if r.weight in readers]
            scales = best_scales(fold, weights, block.inputs(fold.readers[0]))
            fold.apply(block.tensor, scales)


def best_scales(fold: Fold, weights: list[tuple[torch.Tensor, Options]], inputs: Inputs) -> torch.Tensor:
    """The scales [in_features] whose rounded matrices change the outputs least."""
    best, least = torch.ones_like(inputs.magnitude), torch.inf
    for candidate in _candidates(fold, weights, inputs):
        scales = candidate.clamp_min(1e-4)
        scales = scales / (scales.max() * scales.min()).sqrt()
        error = sum(_scaled_error(weight, options.encoding, scales, inputs) for weight, options in weights)
        if error < least:
            best, least = scales, error
    return best


def _candidates(fold: Fold, weights: list[tuple[torch.Tensor, Options]], inputs: Inputs) -> Iterator[torch.Tensor]:
    """Scales [in_features] by equation 5, then those that look at the weights too."""
    options = weights[0][1]
    magnitude = fold.shared(inputs.magnitude).clamp_min(1e-4)
    alphas = [step / options.steps for step in range(options.steps)]
    yield from (magnitude**alpha for alpha in alphas)
    if options.duo_scaling:
        size = fold.shared(torch.cat([weight for weight, _ in weights]).abs().mean(0)).clamp_min(1e-6)
        yield from (magnitude**alpha / size ** (1 - alpha) for alpha in alphas)


def _scaled_error(weight: torch.Tensor, encoding: Affine, scales: torch.Tensor, inputs: Inputs) -> float:
    scaled = weight * scales
    grid = fit_grid(scaled, encoding, search=False)
    difference = (grid.dequantize(grid.encode(scaled)) - scaled) / scales
    return float(output_errors(difference, inputs.hessian).sum())


def output_errors(difference: torch.Tensor, hessian: torch.Tensor) -> torch.Tensor:
    """Mean squared error of every output [rows], of a change of the weights [rows, columns]."""
    return ((difference @ hessian) * difference).sum(-1)


def compress(name: str, weight: torch.Tensor, options: Options, inputs: Inputs | None = None) -> CompressedTensor:
    """Compress a float32 matrix [out_features, in_features]: clip, then round to nearest.

    A row keeps its whole range if the clippings of its groups, each found by itself, make it worse together.
    """
    if inputs is None:
        raise UsageError("awq.inputs", f"{name}: awq needs calibration inputs", "give a calibration text")
    if options.rounding == "gptq":
        return gptq.compress(name, weight, gptq.Options(options.bits, options.group_size, options.grid), inputs)
    plain = fit_grid(weight, options.encoding, search=False)
    clipped = _clipped(weight, plain, options, inputs.hessian)
    errors = [output_errors(g.dequantize(g.encode(weight)) - weight, inputs.hessian) for g in (plain, clipped)]
    better = (errors[1] < errors[0])[:, None]
    scales, zeros = torch.where(better, clipped.scales, plain.scales), torch.where(better, clipped.zeros, plain.zeros)
    grid = FittedGrid(options.encoding, scales, zeros)
    return grid.tensor(name, grid.encode(weight))


def _clipped(weight: torch.Tensor, plain: FittedGrid, options: Options, hessian: torch.Tensor) -> FittedGrid:
    """For every group the clipping that changes the outputs of the group least."""
    encoding = options.encoding
    groups = grouped(weight, encoding)
    width = groups.shape[-1]
    scales, zeros = plain.scales.clone(), plain.zeros.clone()
    for group in range(groups.shape[1]):
        values = groups[:, group]
        columns = slice(group * width, min((group + 1) * width, weight.shape[1]))
        own = hessian[columns, columns]
        least = torch.full((len(values),), torch.inf)
        for step in range(options.clip_steps + 1):
            clip = 1 - (1 - options.clip_to) * step / max(1, options.clip_steps)
            scale, zero = range_grid(values[:, None], encoding, clip)
            scale = stored_scale(scale, encoding)
            levels = levels_of(values, scale, zero, encoding.bits)
            error = output_errors((levels * scale - values)[:, : len(own)], own)
            better = error < least
            least = torch.where(better, error, least)
            scales[:, group] = torch.where(better, scale[:, 0], scales[:, group])
            zeros[:, group] = torch.where(better, zero[:, 0], zeros[:, group])
    return FittedGrid(encoding, scales, zeros)
