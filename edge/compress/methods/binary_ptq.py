"""Partly binarized weights: a sign for most, 8 bits for the few that matter most.

Shang, Yuan, Wu, Dong: "PB-LLM: Partially Binarized Large Language Models", ICLR 2024, arXiv:2310.00034: its
post-training part, PB-GPTQ (section 3.3).

Salient weights are those with the largest w^2 / [H^-1]^2 (the paper's Hessian criterion, H = X^T X of the inputs). The
paper takes them one by one, and stores where they are; kernels want them together, so here every block of 16 rows and
one group of columns is kept or binarized as a whole, by the sum over its weights, the same number for all rows.
All other weights become +-a, with the a per row and group that fits best, min sum h (w - a sign(w))^2 over the group:
a = sum h |w| / sum h, h the energies of the inputs (the paper's section 3.4 has h = 1).
Columns are rounded in turn and those still to come make up for the error, as in GPTQ; the scales of a group are found
when its turn comes, to the weights as they are by then.
"""

from __future__ import annotations

from typing import Literal

import msgspec
import torch

from edge.compress.method import Inputs
from edge.compress.propagation import round_part, visiting_order
from edge.core.errors import UsageError
from edge.core.group_mixed import BINARY_STEPS
from edge.core.parts import TILE_ROWS
from edge.core.weight import CompressedTensor, GroupMixed

CALIBRATED = CHOOSES_ENCODING = True
ROWS_AT_ONCE = 8192  # a multiple of a block's rows
HEADROOM = 1.5  # of a row's scale: weights grow on the way, by the errors that they make up for


class Options(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """salient: the share of the groups of a row at 8 bits. group_size: 32, 64 or 128 columns per scale, and per choice.

    scale: `group`, a float16 per row and group, or `second_order`, 8 bits there and a float16 per row. act_order: visit
    groups by falling input energy. damping: added to the Hessian's diagonal, relative to its mean.
    """

    salient: float = 0.1
    group_size: int = 32
    scale: Literal["group", "second_order"] = "second_order"
    act_order: bool = True
    damping: float = 0.01

    def __post_init__(self) -> None:
        if not 0 <= self.salient <= 1 or not 0 < self.damping <= 1:
            raise ValueError("`salient` lies in [0, 1], `damping` in (0, 1]")

    def encoding_of(self, columns: int) -> GroupMixed:
        """What a matrix with so many columns is stored as."""
        groups = -(-columns // self.group_size)
        return GroupMixed(self.group_size, round(self.salient * groups), scale=self.scale, bits=1)


def compress(name: str, weight: torch.Tensor, options: Options, inputs: Inputs | None = None) -> CompressedTensor:
    """Compress a float32 matrix [out_features, in_features] whose inputs are known."""
    if inputs is None:
        raise UsageError("binary_ptq.inputs", f"{name}: binary_ptq needs calibration inputs", "give a calibration text")
    encoding = options.encoding_of(weight.shape[1])
    parts = [_Rows(rows, encoding, options, inputs).parts() for rows in torch.split(weight, ROWS_AT_ONCE)]
    joined = {part: torch.cat([rows[part] for rows in parts]).numpy() for part in parts[0]}
    return CompressedTensor(name, (weight.shape[0], weight.shape[1]), encoding, joined)


class _Rows:
    """Rows of a matrix, in the making."""

    def __init__(self, weight: torch.Tensor, encoding: GroupMixed, options: Options, inputs: Inputs) -> None:
        (rows, columns), width = weight.shape, encoding.group_size
        self.encoding, self.energy = encoding, inputs.hessian.diagonal()
        runs = options.act_order and columns % width == 0
        self.order, self.factor = visiting_order(inputs, runs, options.damping, width if runs else 1)
        self.high = salient_groups(weight, self.order, self.factor, encoding)
        self.is_high = self.high.bool().repeat_interleave(TILE_ROWS, 0)[:rows]
        self.codes = torch.empty(columns, rows, dtype=torch.uint8)
        self.scales = torch.empty(rows, encoding.groups(columns))
        self.row_scales = self._row_scales(weight) if encoding.scale == "second_order" else None
        self.rest = weight.T[self.order].contiguous()

    def parts(self) -> dict[str, torch.Tensor]:
        """Round group after group, in the order of the visit."""
        width = self.encoding.group_size
        for start in range(0, len(self.rest), width):
            part = slice(start, min(start + width, len(self.rest)))
            group = int(self.order[start]) // width
            scales = self._stored(self._fitted(self.rest[part].T, group, self.energy[self.order[part]]), group)
            rounded = _Rounding(scales, self.is_high[:, group])
            round_part(self.rest, part, self.factor, rounded)
            self.codes[self.order[part]] = torch.stack(rounded.codes)
        return self._as_parts()

    def _fitted(self, weight: torch.Tensor, group: int, energy: torch.Tensor) -> torch.Tensor:
        """Scales [rows] that fit the weights [rows, columns] of a group."""
        energy = energy + 1e-6 * energy.mean() + torch.finfo(energy.dtype).tiny  # inputs that were always zero
        binary = (weight.abs() * energy).sum(1) / energy.sum() / BINARY_STEPS
        return torch.where(self.is_high[:, group], weight.abs().amax(1) / 127, binary)

    def _row_scales(self, weight: torch.Tensor) -> torch.Tensor:
        """What the scales of a row are multiples of, [rows, 1]."""
        fitted = [
            self._fitted(weight[:, columns], group, self.energy[columns])
            for group, columns in enumerate(self.encoding.slices(weight.shape[1]))
        ]
        return (torch.stack(fitted).amax(0) * (HEADROOM / 255)).half().float()[:, None]

    def _stored(self, scales: torch.Tensor, group: int) -> torch.Tensor:
        """Scales [rows] of a group as they are after a round trip through the file."""
        if self.row_scales is None:
            scales = scales.half().float()
            self.scales[:, group] = scales
        else:
            row_scale = self.row_scales[:, 0]
            self.scales[:, group] = (scales / row_scale.clamp_min(1e-30)).round().clamp(0, 255)
            scales = self.scales[:, group] * row_scale
        return scales

    def _as_parts(self) -> dict[str, torch.Tensor]:
        parts = {"codes": self.codes.T.contiguous(), "high": self.high}
        if self.row_scales is None:
            return {**parts, "scales": self.scales.half()}
        return {**parts, "scales": self.scales.to(torch.uint8), "row_scales": self.row_scales.half()}


class _Rounding:
    """Rounds columns of one group: to 8 bits in rows where it is salient, else to the sign; keeps the codes."""

    def __init__(self, scales: torch.Tensor, high: torch.Tensor) -> None:
        self.scales, self.high = scales, high
        self.inverse = torch.where(scales == 0, 0, 1 / scales)
        self.codes: list[torch.Tensor] = []

    def __call__(self, _: slice, values: torch.Tensor) -> torch.Tensor:
        """values, and what they are rounded to: [1, rows]."""
        steps = (values[0] * self.inverse).round_().clamp_(-128, 127)
        positive = values[0] >= 0
        self.codes.append(torch.where(self.high, steps + 128, positive.float()).to(torch.uint8))
        signs = torch.where(positive, BINARY_STEPS, -BINARY_STEPS)
        return (torch.where(self.high, steps, signs) * self.scales)[None]


def salient_groups(
    weight: torch.Tensor, order: torch.Tensor, factor: torch.Tensor, encoding: GroupMixed
) -> torch.Tensor:
    """Which groups of every 16 rows stay at 8 bits: uint8 0 or 1 [ceil(rows / 16), groups].

    weight [rows, columns]; factor: U with U^T U = H^-1, in the order of the visit.
    """
    inverse = torch.empty(len(order))
    inverse[order] = factor.square().sum(0)
    salience = (weight / inverse).square()
    groups = torch.stack([salience[:, columns].sum(1) for columns in encoding.slices(weight.shape[1])], 1)
    blocks = torch.stack([rows.sum(0) for rows in torch.split(groups, TILE_ROWS)])
    chosen = torch.argsort(blocks, dim=1, descending=True, stable=True)[:, : encoding.high_groups]
    return torch.zeros(blocks.shape, dtype=torch.uint8).scatter_(1, chosen, 1)
