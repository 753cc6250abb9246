"""The walk through a decoder with edge's own operators: five nodes a layer, laid out as `_fusion.py` says."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property, partial

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from edge.core.concatenate import concatenate_rows
from edge.core.target import KvCacheType
from edge.core.weight import CompressedTensor, Dense
from edge.exporters import _fusion as fusion
from edge.exporters.onnx.decoder import DecoderGraph, Stream
from edge.exporters.onnx.edge_ops import LINEAR, packed
from edge.kernels.lib import Epilogue
from edge.models.spec import Attention, Linear, Mlp


class FusedDecoderGraph(DecoderGraph):
    """Matrices that are left dense, or that can't be joined with those beside them, go by the stock operators."""

    rotary_multiple = 2
    default_cache: KvCacheType = "float16"

    def _normed_linear(
        self, name: str, linears: Sequence[Linear], stream: Stream, mlp: Mlp | None = None
    ) -> tuple[ir.Value, ir.Value]:
        tensor = concatenate_rows(f"{name}.weight", [self._matrix(linear) for linear in linears])
        if tensor is None or isinstance(tensor.encoding, Dense):
            return super()._normed_linear(name, linears, stream, mlp)
        bias = self._bias(name, linears)
        epilogue = fusion.epilogue_of(mlp)
        y, residual = self._fused(name, tensor, bias, stream, epilogue)
        return (y if mlp is None or epilogue != "none" else self._activate(mlp, name, y)), residual

    def _fused(
        self, layer: str, tensor: CompressedTensor, bias: ir.Value | None, stream: Stream, epilogue: Epilogue = "none"
    ) -> tuple[ir.Value, ir.Value]:
        norm = stream.norm
        inputs = [stream.x, packed(self.graph, tensor), bias, stream.residual, *self._norm_weights(norm)]
        attributes = fusion.linear_attributes(self.checkpoint, tensor.shape[0], norm, epilogue)
        outputs = 1 if stream.residual is None else 2
        y, *total = self.graph.nodes(LINEAR, layer, inputs, outputs, domain="edge", **attributes)
        return y, total[0] if total else stream.x

    def _attend(self, index: int, spec: Attention, name: str, qkv: ir.Value) -> ir.Value:
        shapes = fusion.cache_shapes(spec, self.caches, index, self.context_length)
        attributes = fusion.attention_attributes(spec, self.caches, index)
        norms = [norm and self._norm_weights(norm)[0] for norm in (spec.q_norm, spec.k_norm)]
        constants = self._cache_constants[index].items()
        tables = [self.graph.weight(f"{name}.{part}", partial(np.array, table)) for part, table in constants]
        rope = self.rope.get(spec.rope, (None, None))
        inputs = [qkv, self.total_length, *self._past(index, np.uint8, shapes), *rope, *norms, *tables]
        y, *present = self.graph.nodes("Attention", name, inputs, 3, domain="edge", **attributes)
        self._present(index, present, np.uint8, shapes)
        return y

    @cached_property
    def _cache_constants(self) -> list[dict[str, NDArray[np.float32]]]:
        return fusion.cache_constants(self.checkpoint)

    def _head(self, stream: Stream, count: ir.Value) -> ir.Value:
        tensor = self._head_matrix()
        if isinstance(tensor.encoding, Dense):
            return super()._head(stream, count)
        residual = None if stream.residual is None else self._last(stream.residual, count)
        last = Stream(stream.norm, self._last(stream.x, count), residual)
        return self._fused(self.spec.head, tensor, None, last)[0]
