"""Magnitude pruning: the smallest weights of each matrix become zero, one by one or in blocks of 16 rows by 8 columns.

Han, Pool, Tran, Dally: "Learning both Weights and Connections for Efficient Neural Networks", NeurIPS 2015,
arXiv:1506.02626; blocks go by the mean square of their weights. With `bits`, blocks that are left are rounded to the
nearest and stored as `Sparse`, which kernels skip zeros of. With `bits = 0` the step only prunes: a later step of the
recipe stores the matrices, and kmeans, dkm, edkm and fine-tune keep the zeros. Without rules it prunes all matrices,
the embedding too.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any, Literal

import msgspec
import torch
import torch.nn.functional as F

from edge.compress.grid import fit_grid
from edge.compress.method import Inputs
from edge.core.errors import UsageError
from edge.core.weight import Affine, CompressedTensor, Sparse
from edge.models.checkpoint import Checkpoint
from edge.models.derived import derive

CALIBRATED = False
ROWS, COLUMNS = 16, 8


class Options(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """share: of a matrix's weights that become zero. pattern: `16x8` in blocks, `unstructured` one by one.

    bits: 4 or 8, with group_size 32, 64, 128 or 0, stores 16x8 blocks; 0 leaves the matrices to a later step.
    """

    share: float = 0.5
    pattern: Literal["16x8", "unstructured"] = "16x8"
    bits: Literal[0, 4, 8] = 8
    group_size: int = 64

    def __post_init__(self) -> None:
        if not 0 < self.share < 1:
            raise ValueError("`share` lies between 0 and 1")
        if self.bits and self.pattern == "unstructured":
            raise ValueError("unstructured zeros have no format of their own: set bits = 0 and add a step, such as rtn")
        if self.bits:
            _ = self.encoding  # raises for a group that can't be stored

    @property
    def encoding(self) -> Sparse:
        return Sparse("16x8", self.bits, self.group_size)


def compresses(options: Mapping[str, Any]) -> bool:
    """Whether a step with these options stores what it prunes."""
    return options.get("bits") != 0


def rewrite_matrices(checkpoint: Checkpoint, options: Mapping[str, Options]) -> Checkpoint:
    """The model with the matrices named in `options` pruned as they are read."""
    for name, own in options.items():
        if own.bits:
            message = f"magnitude: a rule sets bits for {name}, but the step has bits = 0 and stores nothing"
            raise UsageError(
                "magnitude.bits", message, "let a later step store the matrix, or prune it by a step apart"
            )
    return derive(checkpoint, {name: [partial(_prune, options=own)] for name, own in options.items()})


def compress(name: str, weight: torch.Tensor, options: Options, inputs: Inputs | None = None) -> CompressedTensor:
    """Compress a float32 matrix [rows, columns]; `inputs` is not used."""
    weight = weight.clone()
    _prune(weight, options)
    grid = fit_grid(weight, Affine(options.bits, options.group_size), search=False)
    rounded = grid.tensor(name, grid.encode(weight))
    mask = (_block_energy(weight) > 0).to(torch.uint8).numpy()
    return CompressedTensor(name, rounded.shape, options.encoding, {**rounded.parts, "mask": mask})


def _prune(weight: torch.Tensor, options: Options) -> None:
    """Set the smallest weights of a matrix [rows, columns] to zero, in place."""
    scores = weight.abs() if options.pattern == "unstructured" else _block_energy(weight)
    kept = torch.ones(scores.numel(), dtype=torch.bool)
    kept[scores.flatten().argsort(stable=True)[: round(options.share * scores.numel())]] = False
    mask = kept.view(scores.shape)
    if options.pattern == "16x8":
        mask = mask.repeat_interleave(ROWS, 0).repeat_interleave(COLUMNS, 1)[: weight.shape[0], : weight.shape[1]]
    weight *= mask


def _block_energy(weight: torch.Tensor) -> torch.Tensor:
    """Mean square of every block, [ceil(rows / 16), ceil(columns / 8)]; blocks at the edges may be smaller."""
    settings = {"kernel_size": (ROWS, COLUMNS), "ceil_mode": True}
    return F.avg_pool2d(weight.square()[None, None], **settings)[0, 0]  # type: ignore[arg-type]
