"""GPTVQ: vector quantization column by column, with tables that are fitted to the data.

van Baalen, Kuzmin, Koryakovskiy, Nagel, Couperus, Bastoul, Mahurin, Blankevoort, Whatmough: "GPTVQ: The Blessing of
Dimensionality for LLM Quantization", 2024, arXiv:2402.15319.

Every weight, or pair of neighbours (`dim` 2), becomes an index into a table. Weights are normalised by scales (the
paper's section 3.2, here the signed extreme of a group); tables come from EM in which input q weighs 1 / [H^-1]_qq, in
the start as in the assignment; columns are then indexed in turn, `dim` at a time, the error of each spread over those
still to come as in GPTQ. [H^-1]_qq is that of the inverse as the visit finds it, the square of the Cholesky factor's
diagonal, and a pair is assigned by the 2x2 block of the factor: what an assignment adds to the output's error is then
exact. At the end the entries follow the gradient of ||WX - QX||^2 with the indices held (equation 7); that is a
quadratic, so they go by conjugate gradients. Then they are rounded to integers.

Unlike the paper's, tables are fitted to the original weights, not to those that the visit finds: so columns can be
visited by falling input energy, which lowers the error more. Scales are float16, not 4 bits on a logarithmic grid.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

import msgspec
import torch

from edge.compress.clustering.tables import clustered_tensor
from edge.compress.clustering.vector_kmeans import weighted_means
from edge.compress.method import Inputs
from edge.compress.propagation import round_part, visiting_order
from edge.core.errors import UsageError
from edge.core.weight import Codebook, CompressedTensor

CALIBRATED = True
WEIGHTS_AT_ONCE = 1 << 22  # bounds the memory
SAMPLE = 1 << 16  # weights of a table that its EM sees: 16 entries need no more


class Options(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """bits: of an index; dim: columns that an index serves, so a weight takes bits / dim. group_size 32, 64, 128 or 0.

    scale: one per row and group, or one per row. table_rows, table_columns: that share a table, 0 is all of them.
    entry: type of the tables' entries. iterations: of EM, with dim 2; updates: steps of the tables' descent at the end.
    act_order, damping, block, true_sequential: as in gptq.
    """

    bits: int = 4
    dim: int = 1
    group_size: int = 64
    scale: Literal["group", "row"] = "group"
    table_rows: int = 0
    table_columns: int = 0
    entry: Literal["int8", "int16"] = "int8"
    iterations: int = 30
    updates: int = 10
    act_order: bool = True
    damping: float = 0.01
    block: int = 128
    true_sequential: bool = True

    def __post_init__(self) -> None:
        if not 0 < self.damping <= 1 or self.block < 1 or self.block % self.dim:
            raise ValueError("`damping` lies in (0, 1] and `block` is a multiple of `dim`")
        if self.iterations < 0 or self.updates < 0:
            raise ValueError("`iterations` and `updates` are at least 0")
        _ = self.encoding  # raises for what can't be stored

    @property
    def encoding(self) -> Codebook:
        return Codebook(
            self.bits, self.dim, self.entry, self.table_rows, self.table_columns, self.group_size, self.scale
        )


def compress(name: str, weight: torch.Tensor, options: Options, inputs: Inputs | None = None) -> CompressedTensor:
    """Compress a float32 matrix [out_features, in_features] whose inputs are known."""
    if inputs is None:
        raise UsageError("gptvq.inputs", f"{name}: gptvq needs calibration inputs", "give a calibration text")
    rows, columns = weight.shape
    options.encoding.layout(rows, columns)  # raises for columns that `dim` doesn't divide
    order, factor = visiting_order(inputs, options.act_order, options.damping, options.dim)
    importance = torch.empty(columns)
    importance[order] = factor.diagonal() ** -2
    scope = _Scope(options.encoding, rows, columns)
    scales = _signed_extremes(weight, scope)
    tables = _fit(weight, scales, importance, scope, options.iterations)
    codes = torch.empty(rows, columns // options.dim, dtype=torch.uint8)
    for part in scope.row_chunks():
        codes[part] = _round(weight[part], scales[part], tables[scope.blocks(part)], scope, order, factor, options)
    if options.updates:
        hessian = inputs.hessian + torch.eye(columns) * options.damping * inputs.hessian.diagonal().mean()
        tables = _Descent(weight, scales, codes, scope, hessian).descend(tables, options.updates)
    return clustered_tensor(name, scales, tables, codes, options.encoding)


@dataclass(frozen=True)
class _Scope:
    """Which table and which scale a weight of a matrix [rows, columns] has."""

    encoding: Codebook
    rows: int
    columns: int

    @property
    def width(self) -> int:
        """Columns of a scale."""
        return self.columns if self.encoding.scale == "row" else self.encoding.group_size or self.columns

    @property
    def table_rows(self) -> int:
        return self.encoding.table_rows or self.rows

    @property
    def table_columns(self) -> int:
        return self.encoding.table_columns or self.columns

    @property
    def grid(self) -> tuple[int, int]:
        """Tables down and across the matrix."""
        return -(-self.rows // self.table_rows), -(-self.columns // self.table_columns)

    def blocks(self, rows: slice) -> torch.Tensor:
        """The table row of each of the rows, or only one index where they all have the same."""
        index = torch.arange(rows.start, min(rows.stop, self.rows)) // self.table_rows
        return index[:1] if index[0] == index[-1] else index

    def row_chunks(self) -> Iterator[slice]:
        """Rows that are worked on at a time: whole tables, or whole parts of one."""
        step = max(16, WEIGHTS_AT_ONCE // self.columns)
        tables = step // self.table_rows
        start = 0
        while start < self.rows:
            end = (start // self.table_rows + max(1, tables)) * self.table_rows
            stop = min(end if tables else min(end, start + step), self.rows)
            yield slice(start, stop)
            start = stop

    def spread(self, scales: torch.Tensor) -> torch.Tensor:
        """Scales [rows, groups] by weight, [rows, columns]."""
        return scales.repeat_interleave(self.width, 1)[:, : self.columns]


def _signed_extremes(weight: torch.Tensor, scope: _Scope) -> torch.Tensor:
    """Scales [rows, groups]: with them a group's extreme is 1, so that tables need their reach on one side only."""
    scales = []
    for first in range(0, scope.columns, scope.width):
        group = weight[:, first : first + scope.width]
        low, high = group.amin(1), group.amax(1)
        scales.append(torch.where(high >= -low, high, low))
    return torch.stack(scales, 1)


def _fit(
    weight: torch.Tensor, scales: torch.Tensor, importance: torch.Tensor, scope: _Scope, iterations: int
) -> torch.Tensor:
    """Tables [down, across, 2^bits, dim] by EM, each on at most SAMPLE weights of its own."""
    encoding, (down, across) = scope.encoding, scope.grid
    height, width = scope.table_rows, scope.table_columns
    kept = min(height, max(1, SAMPLE // width))
    together = max(1, SAMPLE // (kept * width))
    tables = torch.empty(down, across, 1 << encoding.bits, encoding.dim)
    inside = torch.linspace(0, height - 1, kept).long()
    for first in range(0, down, together):
        blocks = torch.arange(first, min(first + together, down))
        rows = blocks[:, None] * height + inside
        there = (rows < scope.rows).float()  # the last block may be short
        rows = rows.clamp(max=scope.rows - 1)
        own_scales = scope.spread(scales[rows.flatten()])
        values = weight[rows.flatten()] / torch.where(own_scales == 0, 1, own_scales)
        weights = own_scales.square() * importance * there.flatten()[:, None]
        for block in range(across):
            columns = slice(block * width, (block + 1) * width)
            points, mass = (x[:, columns].reshape(len(blocks), -1, encoding.dim) for x in (values, weights))
            tables[blocks, block] = weighted_means(points, mass, 1 << encoding.bits, iterations)
    return tables


def _round(
    weight: torch.Tensor,
    scales: torch.Tensor,
    tables: torch.Tensor,
    scope: _Scope,
    order: torch.Tensor,
    factor: torch.Tensor,
    options: Options,
) -> torch.Tensor:
    """Indices uint8 [rows, columns / dim], in the original order. tables: [rows or 1, across, 2^bits, dim]."""
    dim = scope.encoding.dim
    codes = torch.empty(weight.shape[1] // dim, len(weight), dtype=torch.uint8)
    by_group = scales.T.contiguous()

    def nearest(columns: slice, values: torch.Tensor) -> torch.Tensor:
        column = int(order[columns.start])
        scale, table = by_group[column // scope.width], tables[:, column // scope.table_columns]
        index = _assign(values / torch.where(scale == 0, 1, scale), table, factor[columns, columns])
        codes[column // dim] = index
        if len(table) == 1:
            return table[0][index].T * scale
        return table.gather(1, index[:, None, None].expand(-1, 1, dim))[:, 0].T * scale

    rest = weight.T[order].contiguous()
    for start in range(0, len(rest), options.block):
        round_part(rest, slice(start, min(start + options.block, len(rest))), factor, nearest, dim)
    return codes.T.contiguous()


def _assign(values: torch.Tensor, table: torch.Tensor, factor: torch.Tensor) -> torch.Tensor:
    """Indices [rows] of the entries that add least error: values [dim, rows], table [rows or 1, entries, dim].

    The error of a difference d is |d U^-1|^2 with the factor's block U, upper triangular.
    """
    if len(values) == 1:
        borders = (table[:, 1:, 0] + table[:, :-1, 0]) / 2
        if len(table) == 1:
            return torch.bucketize(values[0], borders[0])
        return torch.searchsorted(borders, values.T.contiguous())[:, 0]
    whitener: torch.Tensor = torch.linalg.solve_triangular(factor, torch.eye(len(factor)), upper=True)
    points, entries = values.T @ whitener, table @ whitener
    distance = entries.square().sum(2)
    if len(table) == 1:
        return torch.addmm(distance, points, entries[0].T, alpha=-2).argmin(1)
    for d in range(len(values)):
        distance = torch.addcmul(distance, points[:, d, None], entries[..., d], value=-2)
    return distance.argmin(1)


class _Descent:
    """Conjugate gradients on the entries of the tables, at fixed indices, of tr((Q - W) H (Q - W)^T).

    Rows of tables have nothing to do with each other: each takes steps of its own length.
    """

    def __init__(
        self, weight: torch.Tensor, scales: torch.Tensor, codes: torch.Tensor, scope: _Scope, hessian: torch.Tensor
    ) -> None:
        self.weight, self.scales, self.codes, self.scope, self.hessian = weight, scales, codes, scope, hessian
        self.shape = (*scope.grid, 1 << scope.encoding.bits, scope.encoding.dim)

    def descend(self, tables: torch.Tensor, steps: int) -> torch.Tensor:
        """Tables after some steps, preconditioned by the curvature along each entry."""
        curvature = self._collect(lambda part, scales: scales.square() * self.hessian.diagonal())
        inverse = torch.where(curvature > 0, 1 / curvature, 0)
        residual = -self._gradient(tables, self.weight)
        step = inverse * residual
        direction, energy = step, _dot(residual, step)
        for _ in range(steps):
            bent = self._gradient(direction, None)
            length = energy / _dot(direction, bent).clamp_min(1e-30)
            tables, residual = tables + length * direction, residual - length * bent
            step = inverse * residual
            before, energy = energy, _dot(residual, step)
            direction = step + energy / before.clamp_min(1e-30) * direction
        return tables

    def _gradient(self, tables: torch.Tensor, target: torch.Tensor | None) -> torch.Tensor:
        """Half the gradient by the tables' entries; without a target the product with the Hessian by them."""
        flat = tables.reshape(-1, self.shape[3])

        def by_weight(part: slice, scales: torch.Tensor) -> torch.Tensor:
            dense = flat[self._index(part)].flatten(1) * scales
            if target is not None:
                dense -= target[part]
            return (dense @ self.hessian).mul_(scales)

        return self._collect(by_weight)

    def _collect(self, by_weight: Callable[[slice, torch.Tensor], torch.Tensor]) -> torch.Tensor:
        """Sums by entry, in the shape of the tables, of what `by_weight` gives for rows and their scales."""
        dim = self.shape[3]
        total = torch.zeros(self.shape[0] * self.shape[1] * self.shape[2], dim, dtype=torch.float64)
        for part in self.scope.row_chunks():
            values = by_weight(part, self.scope.spread(self.scales[part]))
            index = self._index(part).flatten()
            for d in range(dim):
                total[:, d] += torch.bincount(index, values[:, d::dim].flatten().double(), len(total))
        return total.float().view(self.shape)

    def _index(self, part: slice) -> torch.Tensor:
        """Numbers of the entries [rows, columns / dim] of all tables one after the other."""
        _, across, entries, dim = self.shape
        table = torch.arange(0, self.scope.columns, dim) // self.scope.table_columns
        return (self.scope.blocks(part)[:, None] * across + table) * entries + self.codes[part]


def _dot(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    return (a * b).sum((1, 2, 3), keepdim=True)
