"""The layers of a decoder, made from a checkpoint: one matrix at a time in memory beside what is kept."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from edge.core.target import Kernels
from edge.core.weight import CompressedTensor, Dense, Encoding
from edge.exporters import _fusion as fusion
from edge.exporters._manifest import Caches
from edge.exporters.executorch import builtin, modules, products
from edge.exporters.executorch.decoder import FRAME, Decoder
from edge.kernels.pack import pack
from edge.models.checkpoint import Checkpoint
from edge.models.spec import Attention, Layer, Linear, Norm
from edge.models.torch_model import rope_tables

Constants = dict[str, torch.Tensor | None]


class Filler:
    """Makes a `Decoder`. `encodings` tells afterwards how every matrix was stored."""

    def __init__(self, checkpoint: Checkpoint, kernels: Kernels, context_length: int, caches: Caches) -> None:
        self.checkpoint = checkpoint
        self.kernels = kernels
        self.context_length = context_length
        self.caches = caches
        self.encodings: dict[str, Encoding] = {}
        self.decoder = Decoder(checkpoint.spec)
        self._kept: dict[str, torch.Tensor] = {}  # a tied matrix is one constant

    def fill(self) -> Decoder:
        """The module with all weights."""
        spec = self.decoder.spec
        self.decoder.put(FRAME, self._frame())
        self._embedding()
        for index, layer in enumerate(spec.layers):
            self._layer(index, layer)
            self.checkpoint.release()
        head = self._matrix(f"{spec.embedding if spec.tied else spec.head}.weight")
        self._group(products.Group(spec.head, (), spec.final_norm), [head])
        return self.decoder.eval().requires_grad_(False)

    def _frame(self) -> nn.Module:
        spec = self.decoder.spec
        tables = rope_tables(self.checkpoint.config, self.context_length)
        if self.kernels == "edge":
            return modules.FusedFrame(tables)
        return builtin.StaticFrame(tables, spec.layers, self.context_length)

    def _embedding(self) -> None:
        spec = self.decoder.spec
        tensor = self._matrix(f"{spec.embedding}.weight")
        if isinstance(tensor.encoding, Dense):
            layer: nn.Module = modules.Embedding(weight=self._floats(tensor))
        elif self.kernels == "edge":
            layer = modules.FusedEmbedding(tensor.shape[1], self._packed(tensor))
        else:
            layer = builtin.QuantizedEmbedding(tensor)
        self.decoder.put(spec.embedding, layer)
        if spec.position_embedding is not None:
            table = self.checkpoint.vector(f"{spec.position_embedding}.weight")[: self.context_length]
            self.decoder.put(spec.position_embedding, modules.Embedding(weight=torch.from_numpy(table)))

    def _layer(self, index: int, layer: Layer) -> None:
        name = fusion.fused_name(layer.attention.qkv, "qkv_proj").rpartition(".")[0]
        self.decoder.put(name, self._attention(index, layer.attention))
        for group in products.groups(layer, self.kernels):
            self._group(group, [self._matrix(linear) for linear in group.linears])
        for post in filter(None, (layer.post_attention_norm, layer.post_mlp_norm)):
            self._norm(post)

    def _attention(self, index: int, spec: Attention) -> nn.Module:
        if self.kernels == "builtin":
            norms = [norm and self._normalization(norm) for norm in (spec.q_norm, spec.k_norm)]
            return builtin.StaticAttention(spec, self.context_length, *norms)
        weights = {"q_norm": spec.q_norm, "k_norm": spec.k_norm}
        constants = {name: norm and self._norm_constants(norm)["weight"] for name, norm in weights.items()}
        constants |= {name: torch.from_numpy(table) for name, table in self._cache_constants[index].items()}
        shapes = fusion.cache_shapes(spec, self.caches, index, self.context_length)
        attributes = fusion.attention_attributes(spec, self.caches, index)
        return modules.FusedAttention(spec, attributes, shapes, **constants)

    @cached_property
    def _cache_constants(self) -> list[dict[str, NDArray[np.float32]]]:
        return fusion.cache_constants(self.checkpoint)

    def _group(self, group: products.Group, tensors: Sequence[CompressedTensor]) -> None:
        found = products.parts(group, tensors, self.kernels)
        bias, start = self._bias(group.linears), 0
        self.decoder.parts[group.name] = [name for name, _ in found]
        for name, tensor in found:
            end = start + tensor.shape[0]
            self._product(group, name, tensor, None if bias is None else bias[start:end])
            start = end
        if group.norm is not None and not self.decoder.is_fused(group.name):
            self._norm(group.norm)

    def _product(self, group: products.Group, name: str, tensor: CompressedTensor, bias: torch.Tensor | None) -> None:
        if isinstance(tensor.encoding, Dense):
            layer: nn.Module = modules.Linear(weight=self._floats(tensor), bias=bias)
        elif self.kernels == "builtin":
            layer = builtin.QuantizedLinear(tensor, bias)
        else:
            whole = name == group.name
            norm, epilogue = (group.norm, fusion.epilogue_of(group.mlp)) if whole else (None, "none")
            attributes = fusion.linear_attributes(self.checkpoint, tensor.shape[0], norm, epilogue)
            norms = {} if norm is None else {f"norm_{k}": v for k, v in self._norm_constants(norm).items()}
            layer = modules.FusedLinear(attributes, weight=self._packed(tensor), bias=bias, **norms)
        self.decoder.put(name, layer)

    def _norm(self, norm: Norm) -> None:
        self.decoder.put(norm.name, self._normalization(norm))

    def _normalization(self, norm: Norm) -> modules.Normalization:
        return modules.Normalization(norm, **self._norm_constants(norm))

    def _norm_constants(self, norm: Norm) -> Constants:
        weight = self.checkpoint.vector(f"{norm.name}.weight") + np.float32(norm.unit_offset)
        bias = None if norm.kind == "rms" else torch.from_numpy(self.checkpoint.vector(f"{norm.name}.bias"))
        return {"weight": torch.from_numpy(weight), "bias": bias}

    def _bias(self, linears: Sequence[Linear]) -> torch.Tensor | None:
        if not any(linear.bias for linear in linears):
            return None
        vector = self.checkpoint.vector
        rows = [vector(f"{m.name}.bias") if m.bias else np.zeros(m.out_features, np.float32) for m in linears]
        return torch.from_numpy(np.concatenate(rows))

    def _matrix(self, linear: Linear | str) -> CompressedTensor:
        tensor = self.checkpoint.matrix(linear)
        self.encodings[tensor.name] = tensor.encoding
        return tensor

    def _packed(self, tensor: CompressedTensor) -> torch.Tensor:
        if tensor.name not in self._kept:
            self._kept[tensor.name] = torch.from_numpy(pack(tensor))
        return self._kept[tensor.name]

    def _floats(self, tensor: CompressedTensor) -> torch.Tensor:
        if tensor.name not in self._kept:
            self._kept[tensor.name] = torch.from_numpy(np.array(tensor.dequantize(), np.float32))
        return self._kept[tensor.name]
