"""k-means: weights share the few values of a table, which are where they are densest, or where they matter most.

Weighted as in Kim, Hooper, Gholami, Dong, Li, Shen, Mahoney, Keutzer: "SqueezeLLM: Dense-and-Sparse Quantization", ICML
2024, arXiv:2306.07629, section 4.1: the squared error of a weight counts by its sensitivity, the squared gradient
(`fisher`). `activations` stands in for it by the second moment of what the weight multiplies, which needs no gradients.

The paper has a table for each row and no scales. Here rows (or groups) have scales and share a table, as the kernels
multiply by integers; scales and tables are fitted in turn. In one dimension clusters are intervals, and `exact` finds
the best there are by dynamic programming; without it they come near (bins, then Lloyd's iterations).
"""

from __future__ import annotations

from functools import partial
from typing import Literal

import torch

from edge.compress.clustering.tables import (
    ClusterOptions,
    assign,
    clustered_tensor,
    divided,
    fit_tables,
    fitted_scales,
    is_pruned,
    normalized,
    reconstructed,
    spread,
)
from edge.compress.method import Gradients, Inputs
from edge.core.errors import UsageError
from edge.core.weight import CompressedTensor

CALIBRATED = True  # where `importance` asks for it


class Options(ClusterOptions, frozen=True, forbid_unknown_fields=True):
    """importance: of a weight's squared error: `none`, alike for all; `activations`, the second moment of its inputs;
    `fisher`, its squared gradient.

    exact: the best tables that there are for the last scales, with dim 1; seconds to minutes for a large matrix.
    rounds: times that scales are fitted to the tables, and tables to these again. seed: of the sample of a very large
    matrix that its table is fitted to.
    """

    importance: Literal["none", "activations", "fisher"] = "none"
    exact: bool = False
    rounds: int = 3
    seed: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.exact and self.dim > 1:
            raise ValueError("`exact` is for dim 1: the optimum of vectors can't be found")
        if self.rounds < 0:
            raise ValueError("`rounds` is at least 0")

    @property
    def calibrated(self) -> bool:
        return self.importance == "activations"

    @property
    def fisher(self) -> bool:
        return self.importance == "fisher"


def compress(
    name: str, weight: torch.Tensor, options: Options, inputs: Inputs | Gradients | None = None
) -> CompressedTensor:
    """Compress a float32 matrix [rows, columns]; `inputs` says what `importance` asks for. Pruned weights stay zero."""
    encoding, columns = options.encoding, weight.shape[1]
    encoding.layout(*weight.shape)  # raises for columns that `dim` doesn't divide
    sensitivity = _sensitivity(name, options, inputs)
    points, scales = normalized(weight, encoding)
    fit = partial(fit_tables, encoding=encoding, pinned_zero=is_pruned(weight), seed=options.seed)
    absorbed = options.table_rows == 1 and options.scale == "row" and not options.table_columns
    for _ in range(0 if absorbed else options.rounds):  # a row's own table has any scale that it could get
        importance = sensitivity * spread(scales, encoding, columns) ** 2
        tables = fit(points, importance=importance)
        values = reconstructed(tables, assign(points, tables, encoding, importance), encoding)
        scales = fitted_scales(weight, values, scales, encoding, sensitivity)
        points = divided(weight, scales, encoding)
    importance = sensitivity * spread(scales, encoding, columns) ** 2
    tables = fit(points, importance=importance, exact=options.exact)
    codes = assign(points, tables, encoding, importance)
    return clustered_tensor(name, scales, tables, codes, encoding, weight=weight, importance=importance)


def _sensitivity(name: str, options: Options, inputs: Inputs | Gradients | None) -> torch.Tensor:
    """What the squared error of a weight counts, [1 or rows, 1 or columns], about 1 in the mean. A trace goes to all
    weights: those that the text doesn't touch are clustered as well.
    """
    if isinstance(inputs, Gradients) and options.fisher:
        found = inputs.squared
    elif isinstance(inputs, Inputs) and options.calibrated:
        found = inputs.hessian.diagonal()[None]
    elif options.importance == "none":
        return torch.ones(1, 1)
    else:
        hint = 'give a calibration text, and leave an embedding that is not the head to `importance = "none"`'
        raise UsageError("kmeans.inputs", f"{name}: nothing is known of its {options.importance}", hint)
    return found / found.mean().clamp_min(1e-30) + 1e-3
