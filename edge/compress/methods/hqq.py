"""HQQ: grids that are robust against outliers, by half-quadratic splitting; no calibration.

Badri, Shaji: "Half-Quadratic Quantization of Large Machine Learning Models", Mobius Labs, 2023,
https://mobiusml.github.io/hqq_blog/.

Minimises sum |W - dequantize(quantize(W))|^p with p < 1, which lets a few weights be wrong and most be right. The error
E is split off (half-quadratic, equation 4): with beta growing,
  E <- shrink(W - W_q, beta) = sign(x) relu(|x| - |x|^(p-1) / beta)        (generalised soft thresholding)
  grid <- the one that fits W - E best at the present codes               (closed form)
The paper moves the zero point and keeps the scale, and stores zero points as floats. Our kernels take integers only:
on the grid with zero points, those move first, rounded in the end, and then the scale does (q the levels less the zero
point): <q, W - E> / <q, q>. On grids without zero points the scale alone moves.
"""

from __future__ import annotations

import torch

from edge.compress.grid import FittedGrid, fit_grid, grouped, levels_of, row_chunks, stored_scale
from edge.compress.method import AffineOptions, Inputs
from edge.core.weight import CompressedTensor

CALIBRATED = False


class Options(AffineOptions, frozen=True, forbid_unknown_fields=True):
    """p: exponent of the errors. beta, growth: weight of the split error at first, and its factor per iteration.

    iterations: of each of the two closed forms. The defaults are the authors'.
    """

    p: float = 0.7
    beta: float = 10.0
    growth: float = 1.01
    iterations: int = 20

    def __post_init__(self) -> None:
        if not 0 < self.p <= 1 or self.beta <= 0 or self.growth < 1 or self.iterations < 1:
            raise ValueError("`p` lies in (0, 1], `beta` is above 0, `growth` and `iterations` are at least 1")


def compress(name: str, weight: torch.Tensor, options: Options, inputs: Inputs | None = None) -> CompressedTensor:
    """Compress a float32 matrix [rows, columns]; `inputs` is not used."""
    encoding = options.encoding
    start = fit_grid(weight, encoding, search=False)
    scales, zeros = torch.empty_like(start.scales), torch.empty_like(start.zeros)
    for rows in row_chunks(weight):
        groups = grouped(weight[rows], encoding)
        fit = _Fit(groups, start.scales[rows], start.zeros[rows], options)
        if encoding.grid == "zero_point":
            fit.move_zeros()
        fit.move_scales()
        scales[rows], zeros[rows] = fit.scales, fit.zeros
    grid = FittedGrid(encoding, scales, zeros)
    return grid.tensor(name, grid.encode(weight))


class _Fit:
    """The grid of groups [rows, groups, group_size]: the best so far, scales and zeros [rows, groups]."""

    def __init__(self, groups: torch.Tensor, scales: torch.Tensor, zeros: torch.Tensor, options: Options) -> None:
        self.groups, self.scales, self.zeros, self.options = groups, scales, zeros, options
        self.error = self._error(self._levels(scales, zeros) * scales[..., None])

    def move_zeros(self) -> None:
        """zero <- mean(code - (W - E) / scale), in floats from step to step; what is offered is rounded."""
        top, scales = (1 << self.options.bits) - 1, self.scales
        zeros, safe = self.zeros.clone(), torch.where(scales == 0, 1, scales)[..., None]
        for beta in self._betas():
            # codes are integers whatever the zero is: levels of the shifted weights on the grid of integer zeros
            codes = torch.round(self.groups / safe + zeros[..., None]).clamp_(0, top)
            target = self.groups - self._shrunk((codes - zeros[..., None]) * safe, beta)
            zeros = (codes - target / safe).mean(-1)
            self._offer(scales, zeros.round().clamp_(0, top))

    def move_scales(self) -> None:
        """scale <- <level, W - E> / <level, level>."""
        scales, zeros = self.scales.clone(), self.zeros
        for beta in self._betas():
            levels = self._levels(scales, zeros)
            target = self.groups - self._shrunk(levels * scales[..., None], beta)
            norm = levels.square().sum(-1)
            scales = torch.where(norm > 0, (levels * target).sum(-1) / norm, scales)
            scales = stored_scale(scales, self.options.encoding)
            self._offer(scales, zeros)

    def _betas(self) -> list[float]:
        return [self.options.beta * self.options.growth**i for i in range(self.options.iterations)]

    def _levels(self, scales: torch.Tensor, zeros: torch.Tensor) -> torch.Tensor:
        return levels_of(self.groups, scales[..., None], zeros[..., None], self.options.bits)

    def _shrunk(self, dequantized: torch.Tensor, beta: float) -> torch.Tensor:
        difference = self.groups - dequantized
        size = difference.abs()
        threshold = size.clamp_min(1e-12) ** (self.options.p - 1) / beta
        return difference.sign() * (size - threshold).relu_()

    def _error(self, dequantized: torch.Tensor) -> torch.Tensor:
        return (self.groups - dequantized).abs().pow_(self.options.p).sum(-1)

    def _offer(self, scales: torch.Tensor, zeros: torch.Tensor) -> None:
        """Keep a grid, group by group, where it is better than the best so far."""
        error = self._error(self._levels(scales, zeros) * scales[..., None])
        better = error < self.error
        self.error = torch.where(better, error, self.error)
        self.scales, self.zeros = torch.where(better, scales, self.scales), torch.where(better, zeros, self.zeros)
