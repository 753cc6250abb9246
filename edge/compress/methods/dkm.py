"""DKM: weights are fine-tuned while each is softly assigned to the entries of its table, and hard at the end.

Cho, Alizadeh-Vahid, Adya, Rastegari: "DKM: Differentiable K-Means Clustering Layer for Neural Network Compression",
ICLR 2022, arXiv:2108.12659. Begins with k-means; the temperature falls in training, so that soft and hard assignment
agree at the end. Weights are divided by scales per row or group before, which are trained as well. `assignment =
"hard"` trains with the nearest entries instead, gradients passing straight through. See `edkm` for less memory.

Matrices that other steps compressed keep their codes; their scales and tables are trained. All of it holds the whole
model: some 24 bytes of memory per weight.
"""

from __future__ import annotations

import torch

from edge.compress.cluster_training import ClusterTraining, first_clusters, train_clusters
from edge.compress.clustering.soft import soft_assign
from edge.compress.finish import Finished
from edge.compress.method import Gradients, Inputs
from edge.core.weight import CompressedTensor

CALIBRATED, TRAINED = False, True
Options = ClusterTraining


def compress(
    name: str, weight: torch.Tensor, options: Options, inputs: Inputs | Gradients | None = None
) -> CompressedTensor:
    """The clusters to begin with, of a float32 matrix [rows, columns]."""
    return first_clusters(name, weight, options, inputs)


def finish(finished: Finished, options: Options) -> None:
    """Train the model and write it again."""
    train_clusters(finished, options, soft_assign)
