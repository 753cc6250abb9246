"""Standard operators only: XNNPACK's int8 activations with 4 or 8 bit weights, quantized embeddings, float caches.

Everything between them is written with operators that XNNPACK takes too, so that a layer is two delegates: up to the
new keys and values, which `index_put_` writes where they belong, and from there on.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from edge.core.weight import Affine, Array, CompressedTensor, Encoding
from edge.exporters.executorch import modules
from edge.models.spec import Attention, Layer
from edge.models.torch_model import RopeTables

FAR = 1e9  # taken off the scores of what a token doesn't see: exp makes an exact 0 of it


def refusal(encoding: Encoding, columns: int, is_embedding: bool) -> str:
    """Why a stock ExecuTorch can't run a matrix and what to use instead; empty when it can."""
    if not isinstance(encoding, Affine) or encoding.grid != "symmetric" or encoding.bits not in (4, 8):
        return "use --kernels edge, or a recipe with 4 bits on the symmetric grid"
    if columns % (encoding.group_size or 32):
        return "use --kernels edge, or a group size that divides the columns"
    if encoding.bits == 8 and encoding.group_size and not is_embedding:
        return "XNNPACK has 8 bits with one scale per row only: use --kernels edge, group_size = 0, or 4 bits"
    return ""


def partitioners() -> list[Any]:
    """XNNPACK, for all that it takes.

    The one setting makes it run one of its 17 passes over every part, as for products alone: the others are for
    convolutions, layouts and what exporting writes otherwise. That takes two thirds off the time.
    """
    from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
    from executorch.exir.backend.compile_spec_schema import CompileSpec
    from executorch.exir.backend.partitioner import DelegationSpec

    partitioner = XnnpackPartitioner()
    partitioner.delegation_spec = DelegationSpec("XnnpackBackend", [CompileSpec("dqlinear_partitioner", b"")])
    return [partitioner]


def preserved() -> list[Any]:
    """Operators that XNNPACK takes whole."""
    import torchao.quantization.quant_primitives  # noqa: F401 (registers the operators)

    ao = torch.ops.torchao
    quantization = [ao.choose_qparams_affine.default, ao.quantize_affine.default, ao.dequantize_affine.default]
    return [torch.ops.aten.linear.default, *quantization]


def signed(tensor: CompressedTensor) -> tuple[Array, Array]:
    """Codes int8 [rows, columns] around 0 and scales float32 [rows, groups]."""
    zero = tensor.encoding.symmetric_zero  # type: ignore[union-attr]
    return (tensor.parts["codes"].astype(np.int16) - zero).astype(np.int8), tensor.parts["scales"].astype(np.float32)


def positive(tensor: CompressedTensor) -> tuple[Array, Array, Array]:
    """The same matrix for XNNPACK, whose scales are above 0: codes, scales and lifts float32 [rows, groups].

    value = scale * code + lift. Below 0 it is |scale| * (-code - 1) + |scale|, as -code itself may be one too many for
    the bits; a group whose scale is 0 becomes zeros with the scale 1.
    """
    codes, scales = signed(tensor)
    below = scales < 0
    wide = np.repeat(below, codes.shape[1] // scales.shape[1], axis=1)
    codes = np.where(wide, ~codes, codes)  # ~c = -c - 1
    if not scales.all():
        codes[np.repeat(scales == 0, codes.shape[1] // scales.shape[1], axis=1)] = 0
        scales[scales == 0] = 1
    return codes, np.abs(scales), np.where(below, np.abs(scales), np.float32(0))


def stored(tensor: CompressedTensor) -> list[tuple[str, Array]]:
    """What XNNPACK stores for a product, with the beginnings of the names it goes by: codes, two a byte with the first
    one lower, scales (in bfloat16 with groups), and lifts where there are any.
    """
    codes, scales, lifts = positive(tensor)
    if tensor.encoding.bits == 4:  # type: ignore[union-attr]
        raised = (codes + 8).astype(np.uint8)
        codes = raised[:, 1::2] << 4 | raised[:, ::2]
        scales = torch.from_numpy(scales).to(torch.bfloat16).view(torch.int16).numpy()
    return [("", codes), ("scale_", scales), *([("", lifts)] if lifts.any() else [])]


def stored_rows(tensor: CompressedTensor) -> tuple[Array, Array]:
    """What ExecuTorch stores for an embedding: of two codes in a byte, the first is the upper one."""
    codes, scales = signed(tensor)
    if tensor.encoding.bits == 8:  # type: ignore[union-attr]
        return codes, scales
    raised = (codes + 8).astype(np.uint8)
    return raised[:, ::2] << 4 | raised[:, 1::2], scales


class QuantizedLinear(modules.Layer):
    """A product of int8 activations, a scale and a zero point per token, with a matrix of 4 or 8 bits."""

    def __init__(self, tensor: CompressedTensor, bias: torch.Tensor | None) -> None:
        import torchao.quantization.quant_primitives  # noqa: F401 (registers the operators)

        codes, scales, lifts = map(torch.from_numpy, positive(tensor))
        block = tensor.shape[1] // scales.shape[1]
        sums = torch.eye(scales.shape[1]).repeat_interleave(block, dim=1) if lifts.any() else None
        zeros = torch.zeros(scales.shape, dtype=torch.int8)
        super().__init__(weight=codes, scales=scales, zeros=zeros, bias=bias, sums=sums, lifts=lifts)
        self.bits, self.block = tensor.encoding.bits, [1, block]  # type: ignore[union-attr]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        ao, token = torch.ops.torchao, [1] * (x.dim() - 1) + [x.shape[-1]]
        scale, zero = ao.choose_qparams_affine(x, "ASYMMETRIC", token, torch.int8, -128, 127, None, None, torch.int8)
        rounded = ao.quantize_affine(x, token, scale, zero, torch.int8, -128, 127)
        rounded = ao.dequantize_affine(rounded, token, scale, zero, torch.int8, -128, 127)
        half = 1 << (self.bits - 1)
        weight = ao.dequantize_affine(self.weight, self.block, self.scales, self.zeros, torch.int8, -half, half - 1)
        y = functional.linear(rounded, weight, self.bias)
        return y if self.sums is None else y + functional.linear(functional.linear(x, self.sums), self.lifts)


class QuantizedEmbedding(modules.Layer):
    """Rows of a matrix of 4 or 8 bits."""

    def __init__(self, tensor: CompressedTensor) -> None:
        import executorch.exir.passes._quant_patterns_and_replacements  # noqa: F401 (registers the operators)

        codes, scales = map(torch.from_numpy, stored_rows(tensor))
        super().__init__(weight=codes, scales=scales)
        self.bits = tensor.encoding.bits  # type: ignore[union-attr]

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        half, ops = 1 << (self.bits - 1), torch.ops.quantized_decomposed
        embedding = ops.embedding_4bit.default if self.bits == 4 else ops.embedding_byte.default
        return embedding(self.weight, self.scales, None, -half, half - 1, ids)


class StaticFrame(nn.Module):
    """What all layers' attention needs: positions, masks [S, context_length], and for each table of the rotation
    cos and sin [S, 1, head_dim] and the matrix that crosses the halves of a head: a slice would not be XNNPACK's.
    """

    def __init__(self, tables: RopeTables, layers: Sequence[Layer], context_length: int) -> None:
        super().__init__()
        self.windows = sorted({layer.attention.window for layer in layers})
        widths = {layer.attention.rope: layer.attention.head_dim for layer in layers}
        for name, (cos, sin) in tables.items():
            rest = (0, widths[name] - 2 * cos.shape[1])
            self.register_buffer(f"cos_{name}", functional.pad(cos.repeat(1, 2), rest, value=1.0))
            self.register_buffer(f"sin_{name}", functional.pad(sin.repeat(1, 2), rest))
            self.register_buffer(f"cross_{name}", _crossing(cos.shape[1], widths[name]))
        self.tables = list(tables)
        self.register_buffer("places", torch.arange(context_length, dtype=torch.float32)[None])

    def forward(self, ids: torch.Tensor, total: torch.Tensor) -> modules.Frame:
        positions = modules.positions(ids, total)
        frame = {"positions": positions}
        for table in self.tables:
            frame[f"cross_{table}"] = getattr(self, f"cross_{table}")
            for name in (f"cos_{table}", f"sin_{table}"):
                frame[name] = getattr(self, name).index_select(0, positions)[:, None]
        ahead = self.places - positions.to(torch.float32)[:, None]
        for window in self.windows:
            hidden = ahead.clamp(0, 1)
            if window:
                hidden = hidden + (-(ahead + (window - 1))).clamp(0, 1)
            frame[f"mask_{window}"] = hidden * -FAR
        return frame


def _crossing(half: int, width: int) -> torch.Tensor:
    """(x1, x2, rest) to (-x2, x1, 0) as a matrix [width, width]."""
    matrix = torch.zeros(width, width)
    index = torch.arange(half)
    matrix[index, index + half], matrix[index + half, index] = -1.0, 1.0
    return matrix


class StaticAttention(nn.Module):
    """Attention over a whole cache: keys [kv_heads, head_dim, context], values [kv_heads, context, head_dim]."""

    def __init__(
        self, spec: Attention, context_length: int, q_norm: nn.Module | None, k_norm: nn.Module | None
    ) -> None:
        super().__init__()
        self.spec, self.q_norm, self.k_norm = spec, q_norm, k_norm
        self.register_buffer("keys", torch.zeros(spec.num_kv_heads, spec.head_dim, context_length))
        self.register_buffer("values", torch.zeros(spec.num_kv_heads, context_length, spec.head_dim))

    def forward(self, parts: Sequence[torch.Tensor], frame: modules.Frame) -> torch.Tensor:
        spec, positions = self.spec, frame["positions"]
        query, key, value = (part.view(-1, part.shape[-1] // spec.head_dim, spec.head_dim) for part in parts)
        query, key = self._turned(query, self.q_norm, frame), self._turned(key, self.k_norm, frame)
        self.keys[:, :, positions] = key.permute(1, 2, 0)
        self.values[:, positions] = value.permute(1, 0, 2)
        groups, width = spec.num_heads // spec.num_kv_heads, spec.head_dim
        query = query.view(-1, spec.num_kv_heads, groups, width).permute(1, 2, 0, 3)
        scores = torch.bmm(query.reshape(spec.num_kv_heads, -1, width), self.keys) * spec.scale
        if spec.softcap:
            scores = torch.tanh(scores / spec.softcap) * spec.softcap
        context = self.keys.shape[-1]
        scores = scores.view(spec.num_kv_heads, groups, -1, context) + frame[f"mask_{spec.window}"]
        weights = torch.softmax(scores, dim=-1).view(spec.num_kv_heads, -1, context)
        out = torch.bmm(weights, self.values).view(spec.num_kv_heads, groups, -1, width)
        return out.permute(2, 0, 1, 3).reshape(1, -1, spec.num_heads * width)

    def _turned(self, x: torch.Tensor, norm: nn.Module | None, frame: modules.Frame) -> torch.Tensor:
        """Normalized and rotated heads [S, heads, head_dim]."""
        x = x if norm is None else norm(x)
        if self.spec.rope is None:
            return x
        cos, sin, cross = (frame[f"{part}_{self.spec.rope}"] for part in ("cos", "sin", "cross"))
        return x * cos + functional.linear(x, cross) * sin
