"""HQQ: grids that are robust against outliers, by half-quadratic splitting; no calibration.

Badri, Shaji: "Half-Quadratic Quantization of Large Machine Learning Models", Mobius Labs, 2023,
https://mobiusml.github.io/hqq_blog/.

Minimises sum |w|^r |w - dequantize(quantize(w))|^p with p < 1, which lets a few weights be wrong and most be right. The
error E, in steps of the grid, is split off (half-quadratic, equation 4): with beta growing,
  E <- shrink(W - W_q, beta) = sign(x) relu(|x| - |x|^(p-1) / beta)        (generalised soft thresholding)
  grid <- the one that fits W - E best at the present codes               (closed form)
The paper moves the zero point and keeps the scale, and stores zero points as floats. Our kernels take integers only:
on the grid with zero points, those move first, rounded in the end, and then the scale does (q the levels less the zero
point): <q, W - E> / <q, q>, weighted. On grids without zero points the scale alone moves.

The paper has r = 0. There the few weights that are wrong are the largest: its float zero points can't clip, but a scale
that moves does, and in language models the largest weights carry most. On SmolLM2-135M r = 0 is worse than rounding to
nearest on the symmetric grid (perplexity 71 and 60 at 4 bits); r = 1 is as good at 4 bits and better at 3. The authors'
code measures errors in the weights' own units, where beta = 10 lets nothing through; in steps of the grid it does.
"""

from __future__ import annotations

import torch

from edge.compress.grid import FittedGrid, fit_grid, grouped, levels_of, row_chunks, stored_scale
from edge.compress.method import AffineOptions, Inputs
from edge.core.weight import CompressedTensor

CALIBRATED = False


class Options(AffineOptions, frozen=True, forbid_unknown_fields=True):
    """p: exponent of the errors; salience: r, that of the weights' sizes beside them; see the top of the file.

    beta, growth: weight of the split error at first, and its factor per iteration. iterations: of each of the two
    closed forms, at most. All but salience have the authors' defaults.
    """

    p: float = 0.7
    salience: float = 1.0
    beta: float = 10.0
    growth: float = 1.01
    iterations: int = 20

    def __post_init__(self) -> None:
        if not 0 < self.p <= 1 or self.beta <= 0 or self.growth < 1 or self.iterations < 1:
            raise ValueError("`p` lies in (0, 1], `beta` is above 0, `growth` and `iterations` are at least 1")
        if not 0 <= self.salience <= 2:
            raise ValueError("`salience` lies in [0, 2]")


def compress(name: str, weight: torch.Tensor, options: Options, inputs: Inputs | None = None) -> CompressedTensor:
    """Compress a float32 matrix [rows, columns]; `inputs` is not used."""
    encoding = options.encoding
    start = fit_grid(weight, encoding, search=False)
    scales, zeros = torch.empty_like(start.scales), torch.empty_like(start.zeros)
    for rows in row_chunks(weight):
        groups = grouped(weight[rows], encoding)
        fit = _Fit(groups, start.scales[rows], start.zeros[rows], options)
        if options.bits < 8:  # there the grid's ends are as good as any: what moves them is noise
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
        self.importance = groups.abs().pow_(options.salience)
        self.step = torch.where(scales == 0, 1, scales.abs())[..., None]
        self.error = self._error(self._levels(scales, zeros) * scales[..., None])

    def move_zeros(self) -> None:
        """zero <- mean(code - (W - E) / scale), in floats from step to step; what is offered is rounded."""
        top, scales = (1 << self.options.bits) - 1, self.scales
        zeros, safe = self.zeros.clone(), torch.where(scales == 0, 1, scales)[..., None]
        for beta in self._betas():
            # codes are integers whatever the zero is: levels of the shifted weights on the grid of integer zeros
            codes = torch.round(self.groups / safe + zeros[..., None]).clamp_(0, top)
            target = self.groups - self._shrunk((codes - zeros[..., None]) * safe, beta)
            total = self.importance.sum(-1).clamp_min(1e-30)
            zeros = ((codes - target / safe) * self.importance).sum(-1) / total
            if not self._offer(scales, zeros.round().clamp_(0, top)):
                break

    def move_scales(self) -> None:
        """scale <- <level, W - E> / <level, level>."""
        scales, zeros = self.scales.clone(), self.zeros
        for beta in self._betas():
            levels = self._levels(scales, zeros)
            target = self.groups - self._shrunk(levels * scales[..., None], beta)
            weighted = levels * self.importance
            norm = (weighted * levels).sum(-1)
            scales = torch.where(norm > 0, (weighted * target).sum(-1) / norm, scales)
            scales = stored_scale(scales, self.options.encoding)
            if not self._offer(scales, zeros):
                break

    def _betas(self) -> list[float]:
        return [self.options.beta * self.options.growth**i for i in range(self.options.iterations)]

    def _levels(self, scales: torch.Tensor, zeros: torch.Tensor) -> torch.Tensor:
        return levels_of(self.groups, scales[..., None], zeros[..., None], self.options.bits)

    def _shrunk(self, dequantized: torch.Tensor, beta: float) -> torch.Tensor:
        difference = (self.groups - dequantized) / self.step
        size = difference.abs()
        threshold = size.clamp_min(1e-12) ** (self.options.p - 1) / beta
        return difference.sign() * (size - threshold).relu_() * self.step

    def _error(self, dequantized: torch.Tensor) -> torch.Tensor:
        errors = (self.groups - dequantized).div_(self.step).abs_().pow_(self.options.p)
        return (errors * self.importance).sum(-1)

    def _offer(self, scales: torch.Tensor, zeros: torch.Tensor) -> bool:
        """Keep a grid, group by group, where it is better than the best so far. False if it is so nowhere."""
        error = self._error(self._levels(scales, zeros) * scales[..., None])
        better = error < self.error
        self.error = torch.where(better, error, self.error)
        self.scales, self.zeros = torch.where(better, scales, self.scales), torch.where(better, zeros, self.zeros)
        return bool(better.any())
