"""A matrix whose weights share the entries of tables, in training: latent weights, and where they go in their tables.

Two ways lead from latent weights to the dense matrix. `soft`: each is a mixture of its table's entries, by an attention
that anneals from a high temperature to a low one; entries are means of the latent weights and move with them (DKM,
arXiv:2108.12659). Otherwise each is the nearest entry, which is at every moment what would be stored; the gradient by
the entry goes straight through to the latent weight (Bengio, Léonard, Courville 2013, arXiv:1308.3432), and each entry
gets the sum of its weights' gradients.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from edge.compress.clustering.soft import nearest_to_zero
from edge.compress.clustering.tables import LARGEST, blocked, is_pruned, spread, unblocked
from edge.compress.straight_through import straight
from edge.compress.trainable import Trainable
from edge.core.weight import Codebook, CompressedTensor

SCORES_AT_ONCE = 1 << 24  # bounds the memory where vectors are assigned

SoftAssign = Callable[..., tuple[torch.Tensor, torch.Tensor]]
"""`soft_assign(points, centroids, temperature, pinned_zero=...)` of `clustering.soft`, or what does the same."""


class ClusteredMatrix(Trainable):
    """A matrix [rows, columns]. Parameters: `points`, the latent weights in units of scale times largest entry; `gains`
    multiply scales; `shifts` of entries in units of the largest, without `soft` only. Pruned weights stay zero.
    """

    def __init__(
        self, tensor: CompressedTensor, weight: torch.Tensor, soft: SoftAssign | None, temperatures: tuple[float, float]
    ) -> None:
        """tensor: the clusters to begin with, a `Codebook`. weight: float32 [rows, columns] that they stand for.

        temperatures: of `soft`, at the first step and at the last, in units of squared points.
        """
        super().__init__(tensor)
        self.book: Codebook = tensor.encoding  # type: ignore[assignment]
        self.soft, self.temperatures, self.temperature = soft, temperatures, temperatures[0]
        self.top = LARGEST[self.book.entry]
        self.hard = soft is None
        scales = torch.from_numpy(tensor.parts["scales"]).float()
        tables = torch.from_numpy(tensor.parts["tables"]).float().flatten(0, 1)  # [blocks, entries, dim]
        reach = spread(torch.where(scales == 0, 1, scales) * self.top, self.book, weight.shape[1])
        self.points = nn.Parameter(weight / reach)
        self.gains = nn.Parameter(torch.ones_like(scales))
        if self.hard:
            self.shifts = nn.Parameter(torch.zeros_like(tables))
        self.register_buffer("scales", scales)
        self.register_buffer("tables", tables / self.top)
        pruned = is_pruned(weight)
        self.register_buffer("kept", weight != 0 if pruned else None)
        self.register_buffer("zero", nearest_to_zero(tables) if pruned else None)
        self.register_buffer("first_codes", None)
        self.first_codes = self.codes()
        self._known: torch.Tensor | None = None

    def advance(self, done: float) -> None:
        """Temperatures fall as a geometric series."""
        first, last = self.temperatures
        self.temperature = first * (last / first) ** done

    def forward(self) -> torch.Tensor:
        blocks = blocked(self.points, self.book)
        if self.hard:
            entries = self._entries()
            codes = self._nearest(blocks, entries)
            values = _Entries.apply(blocks, entries, codes, self.top)
        else:
            assert self.soft is not None
            values, moved = self.soft(blocks, self.tables.clone(), self.temperature, pinned_zero=self.zero is not None)
            if torch.is_grad_enabled():
                self.tables.copy_(moved)
            values = values * self.top
        dense = unblocked(values, self.book, *self.shape) * spread(self._scales(), self.book, self.shape[1])
        return dense if self.kept is None else dense * self.kept

    def _nearest(self, blocks: torch.Tensor, entries: torch.Tensor) -> torch.Tensor:
        """Codes of a forward pass. One without gradients leaves them to the next one, which is for its gradients."""
        codes, self._known = self._known, None
        if codes is None or not torch.is_grad_enabled():
            codes = _codes(blocks.detach(), entries.detach() / self.top)
        if not torch.is_grad_enabled():
            self._known = codes
        return codes

    def _scales(self) -> torch.Tensor:
        exact = self.scales * self.gains
        return straight(exact, exact.detach().half().float())

    def _entries(self) -> torch.Tensor:
        """Entries [blocks, entries, dim], integers of their type."""
        exact = self.tables if self.soft is not None else self.tables + self.shifts
        if self.zero is not None:
            exact = exact.masked_fill(self.zero, 0)
        exact = exact * self.top
        return straight(exact, exact.detach().round().clamp_(-self.top, self.top))

    @torch.no_grad()
    def codes(self) -> torch.Tensor:
        """Nearest entries now, uint8 [blocks, n]; the zero where weights are pruned."""
        codes = _codes(blocked(self.points, self.book), self._entries() / self.top)
        if self.kept is None:
            return codes
        zero = self.zero.squeeze(2).int().argmax(1, keepdim=True).to(torch.uint8)
        return torch.where((blocked(self.kept.to(torch.uint8), self.book) != 0).any(2), codes, zero)

    def moved(self) -> torch.Tensor:
        """How many weights are in another cluster than at first."""
        return (self.codes() != self.first_codes).sum() * self.book.dim

    @torch.no_grad()
    def tensor(self) -> CompressedTensor:
        rows, columns = self.shape
        down = -(-rows // (self.book.table_rows or rows))
        entries = self._entries()
        parts = {
            "codes": unblocked(self.codes()[..., None], self.book, rows, columns),
            "tables": entries.view(down, -1, *entries.shape[1:]).to(getattr(torch, self.book.entry)),
            "scales": self._scales().half(),
        }
        arrays = {part: values.cpu().contiguous().numpy() for part, values in parts.items()}
        return CompressedTensor(self.name, self.shape, self.encoding, arrays)


class _Entries(torch.autograd.Function):
    """Points [blocks, n, dim] to entries [blocks, k, dim] by codes [blocks, n]; an entry of `top` is a point's 1."""

    @staticmethod
    def forward(ctx: Any, points: torch.Tensor, entries: torch.Tensor, codes: torch.Tensor, top: int) -> torch.Tensor:
        ctx.save_for_backward(codes)
        ctx.entries, ctx.top = entries.shape[1], top
        index = codes.long()
        return torch.stack([column.gather(1, index) for column in entries.unbind(2)], 2)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:  # type: ignore[override]
        (codes,) = ctx.saved_tensors
        return gradient * ctx.top, _sums(gradient, codes, ctx.entries), None, None


def _sums(values: torch.Tensor, codes: torch.Tensor, count: int) -> torch.Tensor:
    """Sums [blocks, count, dim] of values [blocks, n, dim] by codes [blocks, n]."""
    columns = values.unbind(2)
    if values.device.type == "cpu":
        index = codes.long()
        zeros = values.new_zeros(len(values), count)
        return torch.stack([zeros.scatter_add(1, index, column) for column in columns], 2)
    # By masks: on a GPU thousands of weights to an entry would queue up for its address.
    masks = [codes == code for code in range(count)]
    return torch.stack([torch.stack([(column * mask).sum(1) for mask in masks], 1) for column in columns], 2)


def _codes(points: torch.Tensor, entries: torch.Tensor) -> torch.Tensor:
    """Nearest entries uint8 [blocks, n]."""
    if points.shape[2] == 1:
        rising, order = entries[..., 0].sort(1)
        borders = (rising[:, 1:] + rising[:, :-1]) / 2
        places = torch.zeros(points.shape[:2], dtype=torch.uint8, device=points.device)
        for border in borders.unbind(1):  # for so few of them several times as fast as searchsorted
            places += points[..., 0] > border[:, None]
        return order.to(torch.uint8).gather(1, places.long())
    norms = entries.square().sum(2)[:, None] / 2
    turned = entries.transpose(1, 2)
    step = max(1, SCORES_AT_ONCE // (len(points) * entries.shape[1]))
    parts = [(some @ turned - norms).argmax(2).to(torch.uint8) for some in points.split(step, 1)]
    return torch.cat(parts, 1)
