"""SmoothQuant: moves the difficulty of outlier activations into the weights; a preparation for int8 activations.

Xiao, Lin, Seznec, Wu, Demouth, Han: "SmoothQuant: Accurate and Efficient Post-Training Quantization for Large Language
Models", ICML 2023, arXiv:2211.10438.

Y = (X diag(s)^-1) (diag(s) W), with s_j = max|X_j|^alpha / max|W_j|^(1-alpha) (equation 4) for every input channel j.
The division is folded into the norm before q, k, v and before gate and up, as in the paper; `values` and `products`
fold it into the value rows before o and the up rows before down too, where the layer allows it. The step takes no
tensors: follow it by rtn or another method, at 8 bits and group_size 0 for the paper's W8A8.
"""

from __future__ import annotations

from collections.abc import Mapping

import msgspec
import torch

from edge.compress.block import Block
from edge.compress.fold import folds

CALIBRATED = True


class Options(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """alpha: how much of the difficulty moves, 0.5 half of it. values: before o too; products: before down too."""

    alpha: float = 0.5
    values: bool = False
    products: bool = False

    def __post_init__(self) -> None:
        if not 0 <= self.alpha <= 1:
            raise ValueError("`alpha` lies in [0, 1]")


def prepare(block: Block, options: Mapping[str, Options]) -> None:
    """Fold the scales of equation 4 into the layer."""
    for fold in folds(block.layer):
        asked = [options[reader.weight] for reader in fold.readers if reader.weight in options]
        if not asked or not {"norm": True, "values": asked[0].values, "products": asked[0].products}[fold.place]:
            continue
        peak = fold.shared(block.inputs(fold.readers[0]).peak, torch.amax)
        weights = torch.stack([block.matrix(reader).abs().amax(0) for reader in fold.readers]).amax(0)
        scales = smoothing_scales(peak, fold.shared(weights, torch.amax), asked[0].alpha)
        fold.apply(block.tensor, scales)


def smoothing_scales(activations: torch.Tensor, weights: torch.Tensor, alpha: float) -> torch.Tensor:
    """s of equation 4 [in_features] from the maxima of |X| and |W| per channel; 1 where a channel is always zero."""
    scales = activations.clamp_min(1e-5) ** alpha / weights.clamp_min(1e-5) ** (1 - alpha)
    return torch.where((activations > 0) & (weights > 0), scales, 1)
