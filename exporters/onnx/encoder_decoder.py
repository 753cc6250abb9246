"""Encoder-decoders as two graphs, `encoder.onnx` and `model.onnx` (the decoder), with one data file."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.onnx.ops import symbolic, symbolic_multi_out

from edge.exporters.encoder_decoder import Pair

MICROSOFT = "com.microsoft"


class OnnxDialect:
    """ONNX Runtime's fused attention: its cached one writes new keys and values where they belong, and copies nothing."""

    def attend(
        self, query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, bias: torch.Tensor | None, scale: float
    ) -> torch.Tensor:
        heads, joined = query.shape[1], _joined(query)
        return symbolic(
            f"{MICROSOFT}::MultiHeadAttention",
            [joined, keys, values, None, None, bias],
            {"num_heads": heads, "scale": float(scale)},
            dtype=query.dtype,
            shape=joined.shape,
            version=1,
        )

    def attend_cached(
        self,
        query: torch.Tensor,
        new: Pair,
        cached: Pair,
        bias: torch.Tensor | None,
        scale: float,
        total: torch.Tensor,
    ) -> tuple[torch.Tensor, Pair]:
        heads = query.shape[1]
        joined, (keys, values) = _joined(query), cached
        last, count = total - 1, total.reshape(())
        if bias is not None:
            bias = self._up_to(bias, total)
        y, present_keys, present_values = symbolic_multi_out(
            f"{MICROSOFT}::GroupQueryAttention",
            [joined, _joined(new[0]), _joined(new[1]), keys, values, last, count, None, None, None, bias],
            {"num_heads": heads, "kv_num_heads": heads, "scale": float(scale), "do_rotary": 0},
            dtypes=[torch.float32] * 3,
            shapes=[joined.shape, keys.shape, values.shape],
            version=1,
        )
        return y, (present_keys, present_values)

    def _up_to(self, bias: torch.Tensor, total: torch.Tensor) -> torch.Tensor:
        """The bias of the keys that there are. Its true width is known at run time only."""
        start, axis = torch.zeros(1, dtype=torch.int64), torch.full((1,), 3)
        inputs = [bias, start, total.to(torch.int64), axis]
        return symbolic("::Slice", inputs, {}, dtype=bias.dtype, shape=bias.shape)


def _joined(x: torch.Tensor) -> torch.Tensor:
    """[1, heads, tokens, head_dim] -> [1, tokens, heads * head_dim]."""
    return x.transpose(1, 2).flatten(2)
