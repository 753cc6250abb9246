"""The layers of a decoder, made from a checkpoint: one matrix at a time in memory beside what is kept."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import nn

from edge.core.concatenate import concatenate_rows
from edge.core.target import Kernels, KvCacheType
from edge.core.weight import CompressedTensor, Dense, Encoding
from edge.exporters import _fusion as fusion
from edge.exporters.executorch import builtin, modules
from edge.exporters.executorch.decoder import Decoder
from edge.kernels.lib import Epilogue
from edge.kernels.pack import pack
from edge.models.checkpoint import Checkpoint
from edge.models.spec import Attention, Layer, Linear, Mlp, Norm
from edge.models.torch_model import rope_tables


class Filler:
    """Makes a `Decoder`. `encodings` tells afterwards how every matrix was stored."""

    def __init__(self, checkpoint: Checkpoint, kernels: Kernels, context_length: int, kv_cache: KvCacheType) -> None:
        self.checkpoint = checkpoint
        self.kernels = kernels
        self.context_length = context_length
        self.kv_cache = kv_cache
        self.encodings: dict[str, Encoding] = {}
        self.decoder = Decoder(checkpoint.spec)
        self._packed: dict[str, torch.Tensor] = {}  # a tied matrix is one constant

    def fill(self) -> Decoder:
        """The module with all weights."""
        spec = self.decoder.spec
        for key, (cos, sin) in rope_tables(self.checkpoint.config, self.context_length).items():
            self.decoder.put(f"rope.{key}", modules.RotaryTables(cos=cos, sin=sin))
        self._embedding()
        for layer in spec.layers:
            self._layer(layer)
            self.checkpoint.release()
        head = self._matrix(f"{spec.embedding if spec.tied else spec.head}.weight")
        self._product(spec.head, head, (), spec.final_norm)
        return self.decoder.eval().requires_grad_(False)

    def _embedding(self) -> None:
        spec = self.decoder.spec
        tensor = self._matrix(f"{spec.embedding}.weight")
        if isinstance(tensor.encoding, Dense):
            layer: nn.Module = modules.Embedding(weight=self._floats(tensor))
        elif self.kernels == "edge":
            layer = modules.FusedEmbedding(tensor.shape[1], weight=self._pack(tensor))
        else:
            layer = builtin.QuantizedEmbedding(tensor)
        self.decoder.put(spec.embedding, layer)
        if spec.position_embedding is not None:
            table = self.checkpoint.vector(f"{spec.position_embedding}.weight")[: self.context_length]
            self.decoder.put(spec.position_embedding, modules.Embedding(weight=torch.from_numpy(table)))

    def _layer(self, layer: Layer) -> None:
        spec = layer.attention
        qkv = fusion.fused_name(spec.qkv, "qkv_proj")
        self.decoder.put(qkv.rpartition(".")[0], self._attention(spec))
        self._linears(qkv, spec.qkv, layer.input_norm)
        self._linears(spec.o.name, (spec.o,))
        self._linears(fusion.fused_name(layer.mlp.up, "gate_up_proj"), layer.mlp.up, layer.mlp_norm, layer.mlp)
        self._linears(layer.mlp.down.name, (layer.mlp.down,))
        for post in filter(None, (layer.post_attention_norm, layer.post_mlp_norm)):
            self._norm(post)

    def _attention(self, spec: Attention) -> nn.Module:
        norms = {
            part: norm and self._norm_constants(norm)["weight"]
            for part, norm in (("q_norm", spec.q_norm), ("k_norm", spec.k_norm))
        }
        if self.kernels == "builtin":
            return builtin.StaticAttention(spec, self.context_length, **norms)
        shape = fusion.cache_shape(spec, self.kv_cache, self.context_length)
        return modules.FusedAttention(fusion.attention_attributes(spec, self.kv_cache), shape, **norms)

    def _linears(self, name: str, linears: Sequence[Linear], norm: Norm | None = None, mlp: Mlp | None = None) -> None:
        """Matrices with the same input: one product where their encodings agree, else one each."""
        tensors = [self._matrix(linear) for linear in linears]
        fused = concatenate_rows(f"{name}.weight", tensors)
        if fused is not None:
            self._product(name, fused, linears, norm, fusion.epilogue_of(mlp))
            return
        if norm is not None:
            self._norm(norm)
        for linear, tensor in zip(linears, tensors, strict=True):
            self._product(linear.name, tensor, [linear])

    def _product(
        self,
        name: str,
        tensor: CompressedTensor,
        linears: Sequence[Linear],
        norm: Norm | None = None,
        epilogue: Epilogue = "none",
    ) -> None:
        bias = self._bias(linears)
        if self.kernels == "edge" and not isinstance(tensor.encoding, Dense):
            attributes = fusion.linear_attributes(self.checkpoint, tensor.shape[0], norm, epilogue)
            norms = {} if norm is None else {f"norm_{k}": v for k, v in self._norm_constants(norm).items()}
            layer: nn.Module = modules.FusedLinear(attributes, weight=self._pack(tensor), bias=bias, **norms)
        else:
            if norm is not None:
                self._norm(norm)
            dense = isinstance(tensor.encoding, Dense)
            layer = (
                modules.Linear(weight=self._floats(tensor), bias=bias)
                if dense
                else builtin.QuantizedLinear(tensor, bias)
            )
        self.decoder.put(name, layer)

    def _norm(self, norm: Norm) -> None:
        self.decoder.put(norm.name, modules.Normalization(norm, **self._norm_constants(norm)))

    def _norm_constants(self, norm: Norm) -> dict[str, torch.Tensor | None]:
        weight = self.checkpoint.vector(f"{norm.name}.weight") + np.float32(norm.unit_offset)
        bias = None if norm.kind == "rms" else torch.from_numpy(self.checkpoint.vector(f"{norm.name}.bias"))
        return {"weight": torch.from_numpy(weight), "bias": bias}

    def _bias(self, linears: Sequence[Linear]) -> torch.Tensor | None:
        if not any(linear.bias for linear in linears):
            return None
        absent = np.zeros
        parts = [
            self.checkpoint.vector(f"{m.name}.bias") if m.bias else absent(m.out_features, np.float32) for m in linears
        ]
        return torch.from_numpy(np.concatenate(parts))

    def _matrix(self, linear: Linear | str) -> CompressedTensor:
        tensor = self.checkpoint.matrix(linear)
        self.encodings[tensor.name] = tensor.encoding
        return tensor

    def _pack(self, tensor: CompressedTensor) -> torch.Tensor:
        if tensor.name not in self._packed:
            self._packed[tensor.name] = torch.from_numpy(pack(tensor))
        return self._packed[tensor.name]

    def _floats(self, tensor: CompressedTensor) -> torch.Tensor:
        if tensor.name not in self._packed:
            self._packed[tensor.name] = torch.from_numpy(tensor.dequantize().copy())
        return self._packed[tensor.name]
