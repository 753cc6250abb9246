"""Round to nearest: every weight goes to the nearest level of its group's grid. No calibration."""

from __future__ import annotations

import torch

from edge.compress.grid import fit_grid
from edge.compress.method import AffineOptions, Inputs
from edge.core.weight import CompressedTensor

CALIBRATED = False


class Options(AffineOptions, frozen=True, forbid_unknown_fields=True):
    """search: choose scales by the least squared error of the weights; false puts the extreme weight on the grid.

    Off by default: without knowing the inputs, clipping cuts just the outliers that language models rely on. On
    SmolLM2-135M it lowers the squared error and raises the perplexity, at 4 bits and at 3.
    """

    search: bool = False


def compress(name: str, weight: torch.Tensor, options: Options, inputs: Inputs | None = None) -> CompressedTensor:
    """Compress a float32 matrix [rows, columns]; `inputs` is not used."""
    grid = fit_grid(weight, options.encoding, search=options.search)
    return grid.tensor(name, grid.encode(weight))
