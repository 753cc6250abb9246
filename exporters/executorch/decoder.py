"""A decoder as a torch module, to be exported: what it computes. `fill.py` makes its layers.

input_ids [1, S], total [1] (tokens in all, these included), rows [R] -> logits [1, R, vocabulary] of these positions
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn

from edge.exporters import _fusion as fusion
from edge.exporters.executorch import modules
from edge.models.spec import DecoderSpec, Layer, Linear, Mlp, Norm


@dataclass(frozen=True)
class Stream:
    """What the next block reads: norm(x + residual). Its sum x + residual is the residual of the block after."""

    norm: Norm
    x: torch.Tensor
    residual: torch.Tensor | None = None


class Decoder(nn.Module):
    """The walk through the layers, which are held under their own names."""

    def __init__(self, spec: DecoderSpec) -> None:
        super().__init__()
        self.spec = spec

    def at(self, name: str) -> nn.Module:
        """The layer of a name. torch would take its dots for a path."""
        return self.get_submodule(name.replace(".", "/"))

    def has(self, name: str) -> bool:
        return name.replace(".", "/") in self._modules

    def put(self, name: str, layer: nn.Module) -> None:
        self.add_module(name.replace(".", "/"), layer)

    def forward(self, input_ids: torch.Tensor, total: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
        spec = self.spec
        stream = Stream(spec.layers[0].input_norm, self._embed(input_ids, total))
        following = [layer.input_norm for layer in spec.layers[1:]] + [spec.final_norm]
        for layer, next_norm in zip(spec.layers, following, strict=True):
            stream = self._layer(layer, stream, next_norm, total)
        x = stream.x.index_select(1, rows)
        residual = None if stream.residual is None else stream.residual.index_select(1, rows)
        logits, _ = self._normed_linear(spec.head, (), Stream(stream.norm, x, residual))
        if spec.logit_softcap:
            logits = torch.tanh(logits / spec.logit_softcap) * spec.logit_softcap
        return logits

    def _embed(self, ids: torch.Tensor, total: torch.Tensor) -> torch.Tensor:
        spec = self.spec
        x = self.at(spec.embedding)(ids)
        if spec.embedding_scale != 1.0:
            x = x * spec.embedding_scale
        if spec.position_embedding is not None:
            x = x + self.at(spec.position_embedding)(modules.positions(ids, total)[None])
        return x

    def _layer(self, layer: Layer, stream: Stream, next_norm: Norm, total: torch.Tensor) -> Stream:
        """From what this layer reads to what the next one does."""
        spec = layer.attention
        qkv = fusion.fused_name(spec.qkv, "qkv_proj")
        y, residual = self._normed_linear(qkv, spec.qkv, stream)
        tables = (None, None) if spec.rope is None else self.at(f"rope.{spec.rope}")()
        y = self.at(qkv.rpartition(".")[0])(y, total, *tables)
        y = self._post_norm(layer.post_attention_norm, self._linear(spec.o.name, y))
        up = fusion.fused_name(layer.mlp.up, "gate_up_proj")
        y, residual = self._normed_linear(up, layer.mlp.up, Stream(layer.mlp_norm, y, residual), layer.mlp)
        y = self._post_norm(layer.post_mlp_norm, self._linear(layer.mlp.down.name, y))
        return Stream(next_norm, y, residual)

    def _normed_linear(
        self, name: str, linears: Sequence[Linear], stream: Stream, mlp: Mlp | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The product of what a stream brings, through an activation where it is that of `mlp`; and the residual."""
        layer = self.at(name) if self.has(name) else None
        if isinstance(layer, modules.FusedLinear):
            y, residual = layer(stream.x, stream.residual)
            return (y if mlp is None or fusion.epilogue_of(mlp) != "none" else modules.activate(mlp, y)), residual
        residual = stream.x if stream.residual is None else stream.x + stream.residual
        x = self.at(stream.norm.name)(residual)
        y = torch.cat([self._linear(m.name, x) for m in linears], dim=-1) if layer is None else layer(x)
        return (y if mlp is None else modules.activate(mlp, y)), residual

    def _linear(self, name: str, x: torch.Tensor) -> torch.Tensor:
        layer = self.at(name)
        return layer(x)[0] if isinstance(layer, modules.FusedLinear) else layer(x)

    def _post_norm(self, norm: Norm | None, x: torch.Tensor) -> torch.Tensor:
        return x if norm is None else self.at(norm.name)(x)
