"""The walk through a decoder with edge's own operators: five nodes a layer.

Norm, residual and activation function are part of the product that needs them; attention rotates, normalizes heads and
keeps its cache by itself, in tiles of 16 positions as the kernels read them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from edge.core.concatenate import concatenate_rows
from edge.core.target import Kernels, KvCacheType
from edge.core.weight import CompressedTensor, Dense
from edge.exporters.onnx.decoder import DecoderGraph, Stream
from edge.exporters.onnx.edge_ops import LINEAR, packed
from edge.kernels import reference_ops as kernel
from edge.kernels.lib import ACTIVATIONS, CACHES, EPILOGUES, NORMS, Epilogue
from edge.models.checkpoint import Checkpoint
from edge.models.spec import Activation, Attention, Linear, Mlp

TILE_POSITIONS = 16
CACHE: dict[KvCacheType, kernel.Cache] = {"float32": "f32", "float16": "f16", "int8": "int8"}
# What the end of a product can be, by the activation function and whether it is a gate's.
EPILOGUE: dict[tuple[Activation, bool], Epilogue] = {
    **{("silu", True): "silu_gated", ("gelu", True): "gelu_gated", ("gelu_tanh", True): "gelu_tanh_gated"},
    **{("gelu", False): "gelu", ("gelu_tanh", False): "gelu_tanh"},
}


def is_fused(checkpoint: Checkpoint, kernels: Kernels) -> bool:
    """Whether a checkpoint is exported with edge's operators: when it has matrices for them."""
    return kernels == "edge" and any(not isinstance(e, Dense) for e in checkpoint.encodings.values())


class FusedDecoderGraph(DecoderGraph):
    """Matrices that are left dense, or that can't be joined with those beside them, go by the stock operators."""

    rotary_multiple = 2
    kv_cache: KvCacheType = "float16"

    def _normed_linear(
        self, name: str, linears: Sequence[Linear], stream: Stream, mlp: Mlp | None = None
    ) -> tuple[ir.Value, ir.Value]:
        tensor = concatenate_rows(f"{name}.weight", [self._matrix(linear) for linear in linears])
        if tensor is None or isinstance(tensor.encoding, Dense):
            return super()._normed_linear(name, linears, stream, mlp)
        bias = self._bias(name, linears)
        if mlp is None or (mlp.activation, mlp.gated) not in EPILOGUE:
            y, residual = self._fused(name, tensor, bias, stream)
            return (y if mlp is None else self._activate(mlp, name, y)), residual
        return self._fused(name, tensor, bias, stream, EPILOGUE[mlp.activation, mlp.gated])

    def _fused(
        self, layer: str, tensor: CompressedTensor, bias: ir.Value | None, stream: Stream, epilogue: Epilogue = "none"
    ) -> tuple[ir.Value, ir.Value]:
        norm = stream.norm
        inputs = [stream.x, packed(self.graph, tensor), bias, stream.residual, *self._norm_weights(norm)]
        attributes = {"rows": tensor.shape[0], "activations": ACTIVATIONS[self.checkpoint.activations]}
        attributes |= {"norm": NORMS[norm.kind], "epsilon": norm.eps, "epilogue": EPILOGUES[epilogue]}
        outputs = 1 if stream.residual is None else 2
        y, *total = self.graph.nodes(LINEAR, layer, inputs, outputs, domain="edge", **attributes)
        return y, total[0] if total else stream.x

    def _attend(self, index: int, spec: Attention, name: str, qkv: ir.Value) -> ir.Value:
        fields: dict[str, Any] = {"heads": spec.num_heads, "kv_heads": spec.num_kv_heads, "head_dim": spec.head_dim}
        fields |= {"window": spec.window, "scale": float(spec.scale), "softcap": float(spec.softcap)}
        if spec.q_norm is not None:
            fields["epsilon"] = spec.q_norm.eps
        cache = CACHE[self.kv_cache]
        capacity = -(-self.context_length // TILE_POSITIONS) * TILE_POSITIONS
        shape = [1, *kernel.Attention(**fields, cache=cache).empty_cache(capacity).shape]
        norms = [norm and self._norm_weights(norm)[0] for norm in (spec.q_norm, spec.k_norm)]
        tables = self.rope.get(spec.rope, (None, None))
        inputs = [qkv, self.total_length, *self._caches(index, np.uint8, shape), *tables, *norms]
        y, *present = self.graph.nodes("Attention", name, inputs, 3, domain="edge", **fields, cache=CACHES[cache])
        self._present(index, present, np.uint8, shape)
        return y

    def _head(self, stream: Stream, count: ir.Value) -> ir.Value:
        tensor = self._head_matrix()
        if isinstance(tensor.encoding, Dense):
            return super()._head(stream, count)
        residual = None if stream.residual is None else self._last(stream.residual, count)
        last = Stream(stream.norm, self._last(stream.x, count), residual)
        return self._fused(self.spec.head, tensor, None, last)[0]
