"""A decoder as a torch module, to be exported: what it computes. `fill.py` makes its layers.

input_ids [1, S], total [1] (tokens in all, these included), rows [R] -> logits [1, R, vocabulary] of these positions
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from edge.exporters import _fusion as fusion
from edge.exporters.executorch import modules
from edge.models.spec import DecoderSpec, Layer, Norm

FRAME = "frame"


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
        self.parts: dict[str, list[str]] = {}  # matrices that share an input and stand apart: their layers' names

    def at(self, name: str) -> nn.Module:
        """The layer of a name. torch would take its dots for a path."""
        return self.get_submodule(name.replace(".", "/"))

    def is_fused(self, name: str) -> bool:
        return isinstance(self._modules.get(name.replace(".", "/")), modules.FusedLinear)

    def put(self, name: str, layer: nn.Module) -> None:
        self.add_module(name.replace(".", "/"), layer)

    def forward(self, input_ids: torch.Tensor, total: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
        spec = self.spec
        frame = self.at(FRAME)(input_ids, total)
        stream = Stream(spec.layers[0].input_norm, self._embed(input_ids, total))
        following = [layer.input_norm for layer in spec.layers[1:]] + [spec.final_norm]
        for layer, next_norm in zip(spec.layers, following, strict=True):
            stream = self._layer(layer, stream, next_norm, frame)
        x = stream.x.index_select(1, rows)
        residual = None if stream.residual is None else stream.residual.index_select(1, rows)
        (logits,), _ = self._products(spec.head, Stream(stream.norm, x, residual))
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

    def _layer(self, layer: Layer, stream: Stream, next_norm: Norm, frame: modules.Frame) -> Stream:
        """From what this layer reads to what the next one does."""
        spec = layer.attention
        qkv = fusion.fused_name(spec.qkv, "qkv_proj")
        parts, residual = self._products(qkv, stream)
        y = self._linear(spec.o.name, self.at(qkv.rpartition(".")[0])(parts, frame))
        stream = Stream(layer.mlp_norm, self._post_norm(layer.post_attention_norm, y), residual)
        up = fusion.fused_name(layer.mlp.up, "gate_up_proj")
        parts, residual = self._products(up, stream)
        activated = self.is_fused(up) and fusion.epilogue_of(layer.mlp) != "none"
        y = parts[0] if activated else modules.activate(layer.mlp, parts)
        y = self._post_norm(layer.post_mlp_norm, self._linear(layer.mlp.down.name, y))
        return Stream(next_norm, y, residual)

    def _products(self, name: str, stream: Stream) -> tuple[list[torch.Tensor], torch.Tensor]:
        """The products of what a stream brings with the matrices of that name; and the residual."""
        if self.is_fused(name):
            y, residual = self.at(name)(stream.x, stream.residual)
            return [y], residual
        residual = stream.x if stream.residual is None else stream.x + stream.residual
        x = self.at(stream.norm.name)(residual)
        return [self._linear(part, x) for part in self.parts.get(name, [name])], residual

    def _linear(self, name: str, x: torch.Tensor) -> torch.Tensor:
        return self.at(name)(x)[0] if self.is_fused(name) else self.at(name)(x)

    def _post_norm(self, norm: Norm | None, x: torch.Tensor) -> torch.Tensor:
        return x if norm is None else self.at(norm.name)(x)
