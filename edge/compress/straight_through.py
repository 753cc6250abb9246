"""Rounding that gradients pass straight through."""

from __future__ import annotations

from typing import Any

import torch


def straight(exact: torch.Tensor, rounded: torch.Tensor) -> torch.Tensor:
    """The value of `rounded` with the gradient of `exact`."""
    return rounded.detach() + (exact - exact.detach())


def coded(codes: torch.Tensor, bits: int) -> torch.Tensor:
    """Codes that exist, nearest to those wanted."""
    return codes.round().clamp_(0, (1 << bits) - 1)


def dequantize_rounded(
    levels: torch.Tensor, offsets: torch.Tensor, scales: torch.Tensor, zeros: torch.Tensor, bits: int
) -> torch.Tensor:
    """scale (code - zero) with code = round(level + zero + offset), clipped: levels, offsets [rows, groups, size].

    Offsets get the gradient of their weight, none where the code is clipped; scales that of the rounded level.
    """
    result: torch.Tensor = _Rounded.apply(levels, offsets, scales, zeros, bits)
    return result


class _Rounded(torch.autograd.Function):
    """Keeps nothing of the size of the matrix but its arguments: codes are made again for the gradient."""

    @staticmethod
    def forward(
        ctx: Any, levels: torch.Tensor, offsets: torch.Tensor, scales: torch.Tensor, zeros: torch.Tensor, bits: int
    ) -> torch.Tensor:
        ctx.save_for_backward(levels, offsets, scales, zeros)
        ctx.bits = bits
        return (coded(levels + zeros[..., None] + offsets, bits) - zeros[..., None]).mul_(scales[..., None])

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:  # type: ignore[override]
        levels, offsets, scales, zeros = ctx.saved_tensors
        wanted = (levels + zeros[..., None] + offsets).round_()
        codes = wanted.clamp(0, (1 << ctx.bits) - 1)
        inside = wanted == codes
        by_scale = codes.sub_(zeros[..., None]).mul_(gradient).sum(-1)
        return None, gradient * inside * scales[..., None], by_scale, None, None
