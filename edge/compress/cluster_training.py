"""What `dkm` and `edkm` have in common: options, k-means to begin with, and training with text."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Literal

import torch

from edge.compress.clustered_matrix import ClusteredMatrix, SoftAssign
from edge.compress.clustering.tables import ClusterOptions, is_pruned
from edge.compress.fine_tuning import FineTuning, Training, together
from edge.compress.finish import Finished
from edge.compress.joined import join
from edge.compress.method import Gradients, Inputs
from edge.compress.methods import kmeans
from edge.compress.trainable import Trainable, trainable
from edge.core.console import info
from edge.core.errors import UsageError
from edge.core.weight import CompressedTensor


class ClusterTraining(ClusterOptions, frozen=True, forbid_unknown_fields=True):
    """assignment: in training, `soft` mixes entries by attention, whose temperature falls from the first to the second
    number (squared weights in units of their scale's largest entry), with so many `iterations` of means in each step;
    `hard` takes the nearest entry, as what is stored does, and lets gradients pass straight through.

    importance: what a weight's squared error counts in the k-means that begins: `none`, all alike, or `fisher`, the
    squared gradient on calibration text, which begins far closer to the original.

    weight_rate: learning rate of weights in units of their scale's largest entry. steps, batch, learning_rate,
    distillation, clip, generated, save_minutes, device, arithmetic, compiled: as in end-to-end.
    """

    assignment: Literal["soft", "hard"] = "soft"
    importance: Literal["none", "fisher"] = "none"
    temperature: tuple[float, float] = (1e-2, 1e-4)
    iterations: int = 1
    weight_rate: float = 1e-3
    steps: int = 200
    batch: int = 4
    learning_rate: float = 1e-3
    distillation: float = 0.5
    clip: float = 1.0
    generated: int = 0
    save_minutes: float = 5.0
    device: Literal["cpu", "cuda"] = "cpu"
    arithmetic: Literal["float32", "bfloat16"] = "float32"
    compiled: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        _ = self.training  # raises for what it doesn't take
        if min(self.temperature) <= 0 or self.iterations < 1 or self.weight_rate < 0:
            raise ValueError("temperatures are above 0, `iterations` at least 1, `weight_rate` at least 0")

    @property
    def fisher(self) -> bool:
        return self.importance == "fisher"

    @property
    def training(self) -> Training:
        return Training(**{field: getattr(self, field) for field in Training.__struct_fields__})


def first_clusters(
    name: str, weight: torch.Tensor, options: ClusterTraining, inputs: Inputs | Gradients | None
) -> CompressedTensor:
    """Clusters of a float32 matrix [rows, columns] by k-means."""
    fields = {field: getattr(options, field) for field in ("importance", *ClusterOptions.__struct_fields__)}
    return kmeans.compress(name, weight, kmeans.Options(**fields, rounds=3 if options.fisher else 1), inputs)


def train_clusters(finished: Finished, options: ClusterTraining, soft_assign: SoftAssign) -> None:
    """Train the step's own matrices, and scales, tables and norms of the rest of the model; write it again."""
    _refuse_rules_about_training(finished, options)
    weights = {name: torch.from_numpy(finished.checkpoint.matrix(name).dequantize()) for name in finished.own}
    finished.checkpoint.release()
    kinds = {name: (own, is_pruned(weights[name])) for name, own in finished.own.items()}

    def make(alike: Sequence[CompressedTensor]) -> Trainable:
        own = finished.own.get(alike[0].name)
        if own is None:
            return trainable(join(alike), rounding=False)
        latent = torch.cat([weights.pop(tensor.name) for tensor in alike])
        soft = partial(soft_assign, iterations=own.iterations) if own.assignment == "soft" else None
        return ClusteredMatrix(join(alike), latent, soft, own.temperature)

    matrices = together(finished.compressed(), options.training, make, kinds)
    tuning = FineTuning(finished, options.training, matrices, {"points": options.weight_rate})
    state = finished.folder / ".clusters.safetensors"
    clustered = [matrix for matrix in matrices if isinstance(matrix, ClusteredMatrix)]
    tuning.run("Training clusters", state, lambda: _note(clustered))
    _report(tuning, clustered, options.steps)
    tuning.store(finished, state)


def _refuse_rules_about_training(finished: Finished, options: ClusterTraining) -> None:
    for name, own in finished.own.items():
        for field in ("weight_rate", *Training.__struct_fields__):
            if getattr(own, field) != getattr(options, field):
                message = f"`{field}` is for all matrices that are trained together: a rule changes it for {name}"
                raise UsageError("clusters.rule", message, "put it into the step's options")


def _note(clustered: list[ClusteredMatrix]) -> str:
    """Temperature, and the share of weights whose cluster isn't their first."""
    if not clustered:
        return ""
    moved = torch.stack([matrix.moved() for matrix in clustered]).sum().item()
    share = moved / sum(matrix.points.numel() for matrix in clustered)
    soft = next((matrix for matrix in clustered if not matrix.hard), None)
    temperature = f"temperature {soft.temperature:.1e}, " if soft else ""
    return f"{temperature}{share:.2%} changed cluster"


def _report(tuning: FineTuning, clustered: list[ClusteredMatrix], steps: int) -> None:
    """Say how far the model that was trained is from the one that is stored."""
    if all(matrix.hard for matrix in clustered):
        return
    soft = tuning.loss(steps - 1)
    for matrix in clustered:
        matrix.hard = True
    info(f"Loss of the last windows: {soft:.4f} nats with soft clusters, {tuning.loss(steps - 1):.4f} as stored")
