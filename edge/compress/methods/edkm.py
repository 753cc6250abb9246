"""eDKM: trains clusters as `dkm` does, with a fraction of the memory.

Cho, Alizadeh-Vahid, Fu, Adya, Rastegari and others: "eDKM: An Efficient and Accurate Train-time Weight Clustering for
Large Language Models", 2023, arXiv:2309.00964. Soft assignment works on weights of 16 bits: equal ones have equal rows
in the attention map, of which there are 65,536 at most, so that few large tables suit it better than many small ones.
Tables of vectors (`dim` 2) need `dkm`, or hard assignment.

Matrices take their gradients in turn, so that what one saves for it is gone before the next begins. Loops that keep a
graph of the whole model find the paper's marshaling and sharding in `edge.compress.clustering.saved_tensors`.
"""

from __future__ import annotations

from typing import Any

import torch

from edge.compress.cluster_training import ClusterTraining, first_clusters, train_clusters
from edge.compress.clustering.saved_tensors import SavedTensors
from edge.compress.clustering.uniquify import soft_assign_unique
from edge.compress.finish import Finished
from edge.compress.method import Gradients, Inputs
from edge.core.weight import CompressedTensor

CALIBRATED, TRAINED = False, True
Pair = tuple[torch.Tensor, torch.Tensor]


class Options(ClusterTraining, frozen=True, forbid_unknown_fields=True):
    """offload: what a matrix saves for its gradient waits in CPU memory, for a GPU with little. Others as in dkm."""

    offload: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.dim > 1 and self.assignment == "soft":
            raise ValueError('soft assignment of 16-bit weights is for dim 1: use dkm, or assignment = "hard"')


def compress(
    name: str, weight: torch.Tensor, options: Options, inputs: Inputs | Gradients | None = None
) -> CompressedTensor:
    """The clusters to begin with, of a float32 matrix [rows, columns]."""
    return first_clusters(name, weight, options, inputs)


def finish(finished: Finished, options: Options) -> None:
    """Train the model and write it again."""
    train_clusters(finished, options, _offloaded if options.offload else soft_assign_unique)


def _offloaded(points: torch.Tensor, centroids: torch.Tensor, *settings: Any, **named: Any) -> Pair:
    with SavedTensors(offload=True, resident=[centroids]):
        return soft_assign_unique(points, centroids, *settings, **named)
