"""From a matrix to a codebook and back: scales, tables fitted by k-means, codes, and what is stored of them.

Blocks are the weights that share a table: `blocked` lays them out as [blocks, n, dim], row of tables by row of tables,
as `soft.py` and k-means take them.
"""

from __future__ import annotations

from typing import Literal

import msgspec
import torch
import torch.nn.functional as F

from edge.compress.clustering.exact_kmeans import exact_kmeans
from edge.compress.clustering.vector_kmeans import nearest, weighted_means
from edge.core.errors import EdgeError, UsageError
from edge.core.weight import Codebook, CompressedTensor

SAMPLE = 1 << 20  # points of a table that its k-means sees, unless it is exact: 256 entries need no more
POINTS_AT_ONCE = 1 << 22  # bounds the memory
PRUNED = 0.05  # the share of zeros of a matrix that was pruned, or more
ITERATIONS = 30  # of k-means on vectors
LARGEST = {"int8": 127, "int16": 2047}
"""What the largest entry of a table becomes. 32767 would leave scales below float16's normal range: less exact."""


class ClusterOptions(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """bits: of an index; dim: columns that an index serves, so that a weight takes bits / dim.

    table_rows, table_columns: that share a table, 0 is all of them. entry: type of the tables' entries. scale: one per
    row and group of `group_size`, or one per row (`group_size` is then that of the activations alone).
    """

    bits: int = 4
    dim: int = 1
    entry: Literal["int8", "int16"] = "int8"
    table_rows: int = 0
    table_columns: int = 0
    group_size: int = 64
    scale: Literal["group", "row"] = "row"

    def __post_init__(self) -> None:
        _ = self.encoding  # raises for what can't be stored

    @property
    def encoding(self) -> Codebook:
        return Codebook(
            self.bits, self.dim, self.entry, self.table_rows, self.table_columns, self.group_size, self.scale
        )


def normalized(weight: torch.Tensor, encoding: Codebook) -> tuple[torch.Tensor, torch.Tensor]:
    """Points [rows, columns] = weight / scales, and the scales float32 [rows, groups] ([rows, 1] for one per row).

    A scale is the signed extreme of its weights, so that the extreme is 1 and tables need their reach on one side only.
    For rows at 2 bits and fewer per weight it is the root mean square: 4 entries don't reach the extremes anyway.
    """
    groups = _grouped(weight, encoding)
    if encoding.scale == "row" and encoding.bits <= 2 * encoding.dim:
        scales = groups.square().mean(-1).sqrt() * (groups.shape[-1] / weight.shape[1]) ** 0.5
    else:
        low, high = groups.amin(-1), groups.amax(-1)
        scales = torch.where(high >= -low, high, low)
    return divided(weight, scales, encoding), scales


def divided(weight: torch.Tensor, scales: torch.Tensor, encoding: Codebook) -> torch.Tensor:
    """Points [rows, columns] = weight / scales [rows, groups]; a scale of 0 counts as 1."""
    return weight / _nonzero(spread(scales, encoding, weight.shape[1]))


def fitted_scales(
    weight: torch.Tensor,
    values: torch.Tensor,
    scales: torch.Tensor,
    encoding: Codebook,
    importance: torch.Tensor | None = None,
) -> torch.Tensor:
    """Scales [rows, groups] that lower sum(importance * (weight - scale * value)^2) most, by values [rows, columns] of
    the tables; where these are all zero, those of before.
    """
    weighted = values if importance is None else values * importance
    products, squares = (_grouped(weighted * x, encoding).sum(-1) for x in (weight, values))
    return torch.where(squares > 0, products / _nonzero(squares), scales)


def is_pruned(weight: torch.Tensor) -> bool:
    """Whether so many weights of a matrix are zero that something pruned it: its tables have a zero that stays one."""
    return bool((weight == 0).float().mean() >= PRUNED)


def spread(scales: torch.Tensor, encoding: Codebook, columns: int) -> torch.Tensor:
    """Scales [rows, groups] by weight: [rows, columns], or [rows, 1] for one per row."""
    if scales.shape[1] == 1:
        return scales
    return scales.repeat_interleave(encoding.group_size, 1)[:, :columns]


def blocked(matrix: torch.Tensor, encoding: Codebook) -> torch.Tensor:
    """[rows, columns] as [blocks, n, dim], a block per table; zeros where the last row or column of tables is short."""
    (rows, columns), dim = matrix.shape, encoding.dim
    height, width = encoding.table_rows or rows, encoding.table_columns or columns
    padded = F.pad(matrix, (0, -columns % width, 0, -rows % height))
    down, across = padded.shape[0] // height, padded.shape[1] // width
    blocks = padded.view(down, height, across, width).transpose(1, 2)
    return blocks.reshape(down * across, height * width // dim, dim)


def unblocked(blocks: torch.Tensor, encoding: Codebook, rows: int, columns: int) -> torch.Tensor:
    """The inverse of `blocked`, without the padding. [blocks, n, 1] of pairs and so on, such as codes, become
    [rows, columns / dim].
    """
    dim, kept = encoding.dim, blocks.shape[2]
    height, width = encoding.table_rows or rows, encoding.table_columns or columns
    down, across = -(-rows // height), -(-columns // width)
    matrix = blocks.view(down, across, height, width // dim * kept).transpose(1, 2).flatten(2).flatten(0, 1)
    return matrix[:rows, : columns // dim * kept]


def fit_tables(
    points: torch.Tensor,
    encoding: Codebook,
    importance: torch.Tensor | None = None,
    *,
    exact: bool = False,
    pinned_zero: bool = False,
    seed: int = 0,
) -> torch.Tensor:
    """Tables float32 [row_blocks, column_blocks, 2**bits, dim] of points [rows, columns], by k-means.

    importance: weight of each point's squared error, anything that broadcasts to [rows, columns]; for the error of the
    weights that is `spread(scales) ** 2`, times what makes a weight important. exact: the optimum over all points, in
    one dimension. pinned_zero: entry 0 is zero, and points that are zero have no say in the others. seed: of the points
    that a table of very many sees. On the points' device. Raises `UsageError` for `exact` with vectors.
    """
    if exact and encoding.dim > 1:
        raise UsageError(
            "clustering.exact", "the optimum is known in one dimension only", "use dim 1, or exact = false"
        )
    if importance is None:
        importance = torch.ones(1, 1, device=points.device)
    if not exact:
        points, importance = _sampled(points, importance, encoding, seed)
    # Padding, where the last row or column of tables is short, is as unimportant as points of weight 0.
    values, weights = blocked(points, encoding), blocked(importance.expand_as(points), encoding)
    count = 1 << encoding.bits
    if pinned_zero:
        weights = torch.where((values == 0).all(-1, keepdim=True), 0, weights)
        count -= 1
    step = max(1, POINTS_AT_ONCE // (values.shape[1] * encoding.dim))
    parts = zip(values.split(step), weights.split(step), strict=True)
    if exact:
        tables = torch.cat([exact_kmeans(x[..., 0], w[..., 0], count)[..., None] for x, w in parts])
    else:
        tables = torch.cat([weighted_means(x, w, count, ITERATIONS) for x, w in parts])
    if pinned_zero:
        tables = F.pad(tables, (0, 0, 1, 0))
    rows = encoding.table_rows or len(points)
    return tables.view(-(-len(points) // rows), -1, *tables.shape[1:])


def assign(
    points: torch.Tensor, tables: torch.Tensor, encoding: Codebook, importance: torch.Tensor | None = None
) -> torch.Tensor:
    """Codes uint8 [rows, columns / dim] of the entries next to points [rows, columns]; tables in any order.

    importance: as in `fit_tables`; it counts where vectors are assigned, by column.
    """
    values, entries = blocked(points, encoding), tables.float().flatten(0, 1)
    if encoding.dim == 1:
        codes = _assign_scalars(values[..., 0], entries[..., 0])
    else:
        weights = torch.ones_like(values)
        if importance is not None:
            weights = blocked(importance.expand_as(points), encoding)
        codes = nearest(torch.cat([weights, weights * values], 2), entries).to(torch.uint8)
    return unblocked(codes[..., None], encoding, *points.shape)


def reconstructed(tables: torch.Tensor, codes: torch.Tensor, encoding: Codebook) -> torch.Tensor:
    """Points [rows, columns] that codes stand for: the entries of their tables."""
    rows, columns = codes.shape[0], codes.shape[1] * encoding.dim
    row = torch.arange(rows, device=codes.device) // (encoding.table_rows or rows)
    column = torch.arange(0, columns, encoding.dim, device=codes.device) // (encoding.table_columns or columns)
    return tables[row[:, None], column, codes.long()].flatten(1)


def clustered_tensor(
    name: str,
    scales: torch.Tensor,
    tables: torch.Tensor,
    codes: torch.Tensor,
    encoding: Codebook,
    *,
    weight: torch.Tensor | None = None,
    importance: torch.Tensor | None = None,
) -> CompressedTensor:
    """What is stored: entries rounded to integers, the largest of all that share a scale to the type's largest value.

    scales float32 [rows, groups], tables [row_blocks, column_blocks, 2**bits, dim], codes [rows, columns / dim].
    weight: the matrix [rows, columns]; if given, codes are chosen anew for what scales and entries were rounded to, as
    `assign` does by `importance`.
    Raises `EdgeError` for a weight that is too large for a float16 scale.
    """
    rows, columns = len(scales), codes.shape[1] * encoding.dim
    height, width = encoding.table_rows or rows, encoding.table_columns or columns
    top = LARGEST[encoding.entry]
    largest = tables.abs().amax((2, 3))
    if encoding.scale == "row":
        largest = largest.amax(1, keepdim=True).expand_as(largest)
    unit = _nonzero(largest) / top
    entries = (tables / unit[:, :, None, None]).round().clamp_(-top, top)
    row = torch.arange(rows, device=scales.device) // height
    group = columns if encoding.scale == "row" else encoding.group_size or columns
    column = torch.arange(scales.shape[1], device=scales.device) * group // width
    stored = (scales * unit[row][:, column]).half()
    if not torch.isfinite(stored).all():
        hint = "leave the tensor out with a rule (exclude = true)"
        raise EdgeError("compress.range", f"{name}: a weight is too large for a float16 scale", hint)
    if weight is not None:
        codes = assign(divided(weight, stored.float(), encoding), entries, encoding, importance)
    integer = torch.int8 if encoding.entry == "int8" else torch.int16
    parts = {"codes": codes.to(torch.uint8), "tables": entries.to(integer), "scales": stored}
    arrays = {part: values.cpu().contiguous().numpy() for part, values in parts.items()}
    return CompressedTensor(name, (rows, columns), encoding, arrays)


def _grouped(weight: torch.Tensor, encoding: Codebook) -> torch.Tensor:
    """[rows, groups, width] by scale; zeros where the last group is short."""
    columns = weight.shape[1]
    width = columns if encoding.scale == "row" else encoding.group_size or columns
    return F.pad(weight, (0, -columns % width)).unflatten(1, (-1, width))


def _nonzero(scales: torch.Tensor) -> torch.Tensor:
    return torch.where(scales == 0, 1, scales)


def _sampled(
    points: torch.Tensor, importance: torch.Tensor, encoding: Codebook, seed: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Some rows, where all rows share a table and there are very many."""
    kept = max(1, SAMPLE // points.shape[1])
    if encoding.table_rows or kept >= len(points):
        return points, importance
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randperm(len(points), generator=generator)[:kept].sort()[0].to(points.device)
    return points[rows], importance[rows] if len(importance) == len(points) else importance


def _assign_scalars(values: torch.Tensor, entries: torch.Tensor) -> torch.Tensor:
    """Codes uint8 [blocks, n] of values [blocks, n] by tables [blocks, entries]."""
    rising, order = entries.sort(-1)
    borders = (rising[:, 1:] + rising[:, :-1]) / 2
    codes = torch.empty(values.shape, dtype=torch.uint8, device=values.device)
    step = max(1, POINTS_AT_ONCE // len(values))
    for part in torch.arange(values.shape[1], device=values.device).split(step):
        columns = slice(int(part[0]), int(part[-1]) + 1)
        found = torch.searchsorted(borders, values[:, columns].contiguous())
        codes[:, columns] = order.gather(1, found).to(torch.uint8)
    return codes
