"""FineQuant: a group size for every matrix, by how much smaller groups shrink the range; no calibration.

Kim, Henry, Fahim, Awadalla: "FineQuant: Unlocking Efficiency with Fine-Grained Weight-Only Quantization for LLMs",
2023, arXiv:2308.09723.

A matrix with outliers needs small groups, so that an outlier spoils few weights; in others they only cost scales. The
paper's heuristic starts with one group per row and halves it as long as that shrinks the range of a group enough:
range(half) < alpha * range(whole). The range here is max - min, averaged over all groups of the matrix. Kernels run
groups of 128, 64 and 32 columns and whole rows: the halvings between a row and 128 columns are taken as one step that
has to shrink the range by alpha for each of them.
"""

from __future__ import annotations

from math import log2

import msgspec
import torch

from edge.compress.grid import grouped, row_chunks
from edge.compress.method import AffineOptions, Inputs
from edge.compress.methods import rtn
from edge.core.weight import Affine, CompressedTensor

CALIBRATED = False
CHOOSES_ENCODING = True


class Options(AffineOptions, frozen=True, forbid_unknown_fields=True):
    """group_size: the smallest that may be chosen: 32, 64 or 128; 0 leaves only whole rows.

    alpha: a halving that leaves more than this share of the range is not made. 1: the smallest groups nearly always.
    """

    group_size: int = 32
    alpha: float = 0.9

    def __post_init__(self) -> None:
        if not 0 <= self.alpha <= 1:
            raise ValueError("`alpha` lies in [0, 1]")


def compress(name: str, weight: torch.Tensor, options: Options, inputs: Inputs | None = None) -> CompressedTensor:
    """Compress a float32 matrix [rows, columns]; `inputs` is not used."""
    size = group_size(weight, options)
    return rtn.compress(name, weight, rtn.Options(options.bits, size, options.grid))


def group_size(weight: torch.Tensor, options: Options) -> int:
    """The columns of a group that the heuristic chooses for a matrix [rows, columns]; 0: whole rows."""
    chosen, width, present = 0, weight.shape[1], _mean_range(weight, options.encoding, 0)
    for size in (128, 64, 32):
        if size >= width or size < (options.encoding.group_size or width):
            continue
        smaller = _mean_range(weight, options.encoding, size)
        if smaller >= present * options.alpha ** log2(width / size):
            break
        chosen, width, present = size, size, smaller
    return chosen


def _mean_range(weight: torch.Tensor, encoding: Affine, size: int) -> float:
    """What a grid spans for a group of `size` columns: max - min, with 0 in between; the mean over the matrix."""
    encoding = msgspec.structs.replace(encoding, group_size=size)
    total = 0.0
    for rows in row_chunks(weight):
        groups = grouped(weight[rows], encoding)
        spans = groups.amax(-1).clamp(min=0) - groups.amin(-1).clamp(max=0)
        total += spans.double().sum().item()
    return total / (weight.shape[0] * encoding.groups(weight.shape[1]))
