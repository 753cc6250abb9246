"""eDKM's uniquification: DKM for 16-bit points, on the at most 65,536 values that there are.

Cho, Alizadeh-Vahid, Fu, Adya, Rastegari and others: "eDKM: An Efficient and Accurate Train-time Weight Clustering for
Large Language Models", 2023, arXiv:2309.00964, section 2.2. Equal points have equal rows in the attention map, so that
a table with a row for each bit pattern present, and an index per point, replace it. The bit pattern is that index: the
16-bit points are all that is saved, and the table is made anew for the backward pass, in double precision as it is so
small.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch.autograd.function import once_differentiable

from edge.compress.clustering.soft import attend, nearest_to_zero, settle
from edge.core.errors import UsageError

PATTERNS = 1 << 16
_NONE = PATTERNS  # the column of rows that only fill up blocks with fewer patterns than others
BLOCKS_AT_ONCE = 16  # these two bound the memory of 64-bit indices and of tables by pattern
POINTS_AT_ONCE = 1 << 18


def soft_assign_unique(
    points: torch.Tensor,
    centroids: torch.Tensor,
    temperature: float,
    *,
    iterations: int = 3,
    tolerance: float = 1e-4,
    pinned_zero: bool = False,
    narrow: torch.dtype = torch.bfloat16,
) -> tuple[torch.Tensor, torch.Tensor]:
    """`soft.soft_assign` of points [blocks, n, 1] rounded to 16 bits, saving 2 bytes a point for the backward pass.

    Wider points are rounded to `narrow`, bfloat16 or float16 (where values below 3e-8 are zeros), and get the gradient
    of the rounded ones in their own type; 16-bit points are taken, and saved, as they are. Clustered and centroids have
    the wider type of points and centroids. Raises `UsageError` for vectors.
    """
    if points.shape[-1] != 1:
        message = f"vectors of {points.shape[-1]} weights have no table by bit pattern"
        raise UsageError("uniquify.dim", message, "use dim 1, or dkm")
    narrow = points.dtype if points.dtype in (torch.bfloat16, torch.float16) else narrow
    settings = (temperature, iterations, tolerance, pinned_zero)
    return _SoftAssignUnique.apply(points, centroids.detach(), narrow, settings)


class _SoftAssignUnique(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, exact: torch.Tensor, centroids: torch.Tensor, narrow: torch.dtype, settings: tuple
    ) -> tuple[torch.Tensor, torch.Tensor]:
        points = exact.to(narrow)
        ctx.save_for_backward(points, centroids)
        ctx.settings, ctx.dtype = settings, exact.dtype
        patterns, counts = _distinct(points)
        pinned = nearest_to_zero(centroids) if settings[-1] else None
        attention, _, moved = settle(_values(patterns, points), centroids.double(), *settings[:-1], pinned, counts)
        dtype = torch.promote_types(exact.dtype, centroids.dtype)
        table = _by_pattern(patterns, (attention @ moved).to(dtype))
        clustered = torch.empty_like(points, dtype=dtype)
        for blocks, keys, piece in _pieces(points):
            clustered[piece] = table[blocks].flatten()[keys].reshape(clustered[piece].shape)
        moved = moved.to(dtype)
        ctx.mark_non_differentiable(moved)
        return clustered, moved

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: torch.Tensor, _: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        """A point moves its own mixture, by the gradient that arrives at it, and the centroids, like all its equals."""
        points, centroids = ctx.saved_tensors
        patterns, counts = _distinct(points)
        own, shared = _slopes(patterns, counts, _sums(points, patterns, gradient), points, centroids, ctx.settings)
        own, shared = _by_pattern(patterns, own), _by_pattern(patterns, shared)
        slopes = torch.empty_like(points, dtype=ctx.dtype)
        for blocks, keys, piece in _pieces(points):
            some = own[blocks].flatten()[keys] * gradient[piece].flatten() + shared[blocks].flatten()[keys]
            slopes[piece] = some.reshape(slopes[piece].shape)
        return slopes, None, None, None


def _slopes(
    patterns: torch.Tensor,
    counts: torch.Tensor,
    gradients: torch.Tensor,
    points: torch.Tensor,
    centroids: torch.Tensor,
    settings: tuple,
) -> tuple[torch.Tensor, torch.Tensor]:
    """For each row the derivative of its mixture by its value, and the loss's derivative by one point's pull on
    the centroids, both float32 [blocks, rows, 1]. gradients: arriving at each row, summed over its points.
    """
    temperature, pinned = settings[0], nearest_to_zero(centroids) if settings[-1] else None
    values = _values(patterns, points)
    with torch.enable_grad():
        pulling, mixing = values.clone().requires_grad_(), values.clone().requires_grad_()
        _, before, after = settle(pulling, centroids.double(), *settings[:-1], pinned, counts)
        mixture = attend(mixing, before, temperature, pinned) @ after
        (shared,) = torch.autograd.grad(mixture, pulling, gradients, retain_graph=True)
        (own,) = torch.autograd.grad(mixture, mixing, torch.ones_like(mixture))
    return own.float(), (shared / counts.clamp(min=1)).float()


def _distinct(points: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The bit patterns int64 [blocks, rows] that each block has, and how often, float64 [blocks, rows, 1]."""
    found = []
    for first in range(0, len(points), BLOCKS_AT_ONCE):
        group = points[first : first + BLOCKS_AT_ONCE]
        counts = torch.zeros(len(group) * (PATTERNS + 1), dtype=torch.int64, device=points.device)
        for _, keys, _ in _pieces(group):
            counts += torch.bincount(keys, minlength=len(counts))
        for block in counts.view(len(group), -1):
            present = block.nonzero().squeeze(1)
            found.append((present, block[present].double()[:, None]))
    patterns, counts = zip(*found, strict=True)
    pad = torch.nn.utils.rnn.pad_sequence
    return pad(patterns, batch_first=True, padding_value=_NONE), pad(counts, batch_first=True)


def _values(patterns: torch.Tensor, points: torch.Tensor) -> torch.Tensor:
    """What the patterns stand for, float64 [blocks, rows, 1]; 0 for rows that fill up."""
    return patterns.to(torch.int16).view(points.dtype).double()[..., None]


def _by_pattern(patterns: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
    """Rows [blocks, rows, 1] where their patterns say, [blocks, 65537]."""
    table = rows.new_zeros(len(rows), PATTERNS + 1)
    return table.scatter_(1, patterns, rows[..., 0])


def _sums(points: torch.Tensor, patterns: torch.Tensor, gradient: torch.Tensor) -> torch.Tensor:
    """The gradient's sum over the points of each row, float64 [blocks, rows, 1]."""
    sums = torch.zeros(len(points), PATTERNS + 1, dtype=torch.float64, device=points.device)
    for blocks, keys, piece in _pieces(points):
        some = sums[blocks].view(-1)
        some += torch.bincount(keys, gradient[piece].flatten().double(), len(some))
    return sums.gather(1, patterns)[..., None]


def _pieces(points: torch.Tensor) -> Iterator[tuple[slice, torch.Tensor, tuple[slice, slice]]]:
    """Some blocks, positions int64 [m] of some of their points in the blocks' tables by pattern, and those points."""
    for first in range(0, len(points), BLOCKS_AT_ONCE):
        blocks = slice(first, first + BLOCKS_AT_ONCE)
        for start in range(0, points.shape[1], POINTS_AT_ONCE):
            piece = (blocks, slice(start, start + POINTS_AT_ONCE))
            keys = points[piece].squeeze(-1).view(torch.int16).long() & (PATTERNS - 1)
            keys += torch.arange(len(keys), device=points.device)[:, None] * (PATTERNS + 1)
            yield blocks, keys.flatten(), piece
