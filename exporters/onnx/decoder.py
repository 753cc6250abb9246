"""The walk through a decoder, with the operators of a stock ONNX Runtime; `fused.py` has it with edge's own.

input_ids [1, S] -> embedding -> per layer: norm · QKV · attention with rotary embedding and cache · output ·
norm with the residual · gate and up · activation · down -> norm -> last num_logits positions -> head -> logits
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from edge.core.concatenate import concatenate_rows
from edge.core.errors import EdgeError
from edge.core.target import Kernels, KvCacheType
from edge.core.weight import CompressedTensor, Encoding
from edge.exporters._fusion import fused_name
from edge.exporters._manifest import Caches
from edge.exporters.onnx.builder import GraphBuilder
from edge.exporters.onnx.linear import operators
from edge.models.checkpoint import Checkpoint
from edge.models.spec import Attention, Layer, Linear, Mlp, Norm
from edge.models.torch_model import rope_tables

MICROSOFT = "com.microsoft"
INT64_MAX = np.iinfo(np.int64).max
PARTS = ("key", "value")


@dataclass(frozen=True)
class Stream:
    """What the next block reads: norm(x + residual). Its sum x + residual is the residual of the block after."""

    norm: Norm
    x: ir.Value
    residual: ir.Value | None = None


class DecoderGraph:
    """Builds the graph of one checkpoint. `encodings` tells afterwards how every matrix was stored."""

    rotary_multiple = 16  # columns that GroupQueryAttention rotates on CPU
    default_cache: KvCacheType = "float32"

    def __init__(
        self, graph: GraphBuilder, checkpoint: Checkpoint, kernels: Kernels, context_length: int, caches: Caches
    ) -> None:
        self.graph = graph
        self.checkpoint = checkpoint
        self.spec = checkpoint.spec
        self.kernels = kernels
        self.context_length = context_length
        self.caches = caches
        self.encodings: dict[str, Encoding] = {}

    def build(self) -> None:
        """Write all nodes and weights."""
        spec = self.spec
        self.ids = self.graph.input("input_ids", np.int64, [1, "sequence"])
        self.past_length = self.graph.input("seqlens_k", np.int32, [1])
        self.total_length = self.graph.input("total_sequence_length", np.int32, [])
        count = self.graph.input("num_logits", np.int64, [1])
        self.rope = self._rope_tables()
        stream = Stream(spec.layers[0].input_norm, self._embed())
        following = [layer.input_norm for layer in spec.layers[1:]] + [spec.final_norm]
        for index, (layer, next_norm) in enumerate(zip(spec.layers, following, strict=True)):
            stream = self._layer(index, layer, stream, next_norm)
            self.checkpoint.release()
        self._logits(self._head(stream, count))

    def _embed(self) -> ir.Value:
        spec, layer = self.spec, self.spec.embedding
        tensor = self._matrix(f"{layer}.weight")
        x = operators(tensor.encoding, self.kernels).embedding(self.graph, self.ids, tensor, layer=layer)
        if spec.embedding_scale != 1.0:
            scale = self.graph.scalar("embedding_scale", spec.embedding_scale, np.float32)
            x = self.graph.node("Mul", layer, [x, scale])
        if spec.position_embedding is not None:
            x = self.graph.node("Add", layer, [x, self._positions(spec.position_embedding)])
        return x

    def _positions(self, layer: str) -> ir.Value:
        """Rows of a learned position table for positions total - S .. total - 1."""
        graph = self.graph
        table = graph.weight(f"{layer}.weight", lambda: self._vector(f"{layer}.weight")[: self.context_length])
        length = graph.node("Shape", layer, [self.ids], start=1, end=2)
        length = graph.node("Cast", layer, [graph.node("Squeeze", layer, [length])], to=ir.DataType.INT32)
        first = graph.node("Sub", layer, [self.total_length, length])
        step = graph.scalar("one", 1, np.int32)
        return graph.node("Gather", layer, [table, graph.node("Range", layer, [first, self.total_length, step])])

    def _layer(self, index: int, layer: Layer, stream: Stream, next_norm: Norm) -> Stream:
        """From what this layer reads to what the next one does."""
        qkv = fused_name(layer.attention.qkv, "qkv_proj")
        y, residual = self._normed_linear(qkv, layer.attention.qkv, stream)
        y = self._attend(index, layer.attention, qkv.rpartition(".")[0], y)
        y = self._linear(layer.attention.o.name, (layer.attention.o,), y)
        if layer.post_attention_norm is not None:
            y = self._norm(layer.post_attention_norm, y)
        up = fused_name(layer.mlp.up, "gate_up_proj")
        y, residual = self._normed_linear(up, layer.mlp.up, Stream(layer.mlp_norm, y, residual), layer.mlp)
        y = self._linear(layer.mlp.down.name, (layer.mlp.down,), y)
        if layer.post_mlp_norm is not None:
            y = self._norm(layer.post_mlp_norm, y)
        return Stream(next_norm, y, residual)

    def _normed_linear(
        self, name: str, linears: Sequence[Linear], stream: Stream, mlp: Mlp | None = None
    ) -> tuple[ir.Value, ir.Value]:
        """The product of what a stream brings, through an activation where it is that of `mlp`; and the residual."""
        x, residual = self._enter(stream)
        y = self._linear(name, linears, x)
        return (y if mlp is None else self._activate(mlp, name, y)), residual

    def _enter(self, stream: Stream) -> tuple[ir.Value, ir.Value]:
        """norm(x + residual), and x + residual."""
        if stream.residual is None:
            return self._norm(stream.norm, stream.x), stream.x
        return self._add_and_norm(stream.norm, stream.x, stream.residual)

    def _attend(self, index: int, spec: Attention, name: str, qkv: ir.Value) -> ir.Value:
        query, key, value = self._normed_heads(spec, name, qkv)
        shape = [1, spec.num_kv_heads, self.context_length, spec.head_dim]
        past = self._past(index, np.float32, [shape] * 2)
        inputs = [query, key, value, *past, self.past_length, self.total_length, *self.rope.get(spec.rope, ())]
        attributes = {"num_heads": spec.num_heads, "kv_num_heads": spec.num_kv_heads, "scale": spec.scale}
        attributes |= {"do_rotary": int(spec.rope is not None), "local_window_size": spec.window or -1}
        if spec.softcap:
            attributes["softcap"] = spec.softcap
        y, *present = self.graph.nodes("GroupQueryAttention", name, inputs, 3, domain=MICROSOFT, **attributes)
        self._present(index, present, np.float32, [shape] * 2)
        return y

    def _past(self, index: int, dtype: type[np.generic], shapes: Sequence[Sequence[int]]) -> list[ir.Value]:
        """Key and value cache of a layer as inputs of the graph."""
        names = [f"past_key_values.{index}.{part}" for part in PARTS]
        return [self.graph.input(name, dtype, shape) for name, shape in zip(names, shapes, strict=True)]

    def _present(
        self, index: int, caches: Sequence[ir.Value], dtype: type[np.generic], shapes: Sequence[Sequence[int]]
    ) -> None:
        """The same as outputs, which the runtime binds to the same memory."""
        for part, cache, shape in zip(PARTS, caches, shapes, strict=True):
            self.graph.output(cache, f"present.{index}.{part}", dtype, shape)

    def _normed_heads(
        self, spec: Attention, layer: str, qkv: ir.Value
    ) -> tuple[ir.Value, ir.Value | None, ir.Value | None]:
        """Query, key and value. Packed in one, as attention takes them, unless queries and keys are normalised."""
        if spec.q_norm is None or spec.k_norm is None:
            return qkv, None, None
        widths = [spec.num_heads * spec.head_dim, *[spec.num_kv_heads * spec.head_dim] * 2]
        sizes = self.graph.integers(f"split.{'.'.join(map(str, widths))}", widths)
        query, key, value = self.graph.nodes("Split", layer, [qkv, sizes], 3, axis=-1)
        return (
            self._head_norm(spec.q_norm, query, spec.num_heads, spec.head_dim),
            self._head_norm(spec.k_norm, key, spec.num_kv_heads, spec.head_dim),
            value,
        )

    def _head_norm(self, norm: Norm, x: ir.Value, heads: int, head_dim: int) -> ir.Value:
        """A norm over each head: ONNX Runtime's attention does it on GPUs only."""
        apart = self.graph.integers(f"shape.{heads}.{head_dim}", [1, -1, heads, head_dim])
        together = self.graph.integers(f"shape.{heads * head_dim}", [1, -1, heads * head_dim])
        y = self._norm(norm, self.graph.node("Reshape", norm.name, [x, apart]))
        return self.graph.node("Reshape", norm.name, [y, together])

    def _activate(self, spec: Mlp, layer: str, x: ir.Value) -> ir.Value:
        name = layer.rpartition(".")[0]
        if not spec.gated:
            return self._activation(spec, name, x)
        gate, up = self.graph.nodes("Split", name, [x], 2, axis=-1, num_outputs=2)
        return self.graph.node("Mul", name, [self._activation(spec, name, gate), up])

    def _activation(self, spec: Mlp, layer: str, x: ir.Value) -> ir.Value:
        if spec.activation == "silu":
            return self.graph.node("QuickGelu", layer, [x], domain=MICROSOFT, alpha=1.0)
        approximate = "tanh" if spec.activation == "gelu_tanh" else "none"
        return self.graph.node("Gelu", layer, [x], approximate=approximate)

    def _last(self, x: ir.Value, count: ir.Value) -> ir.Value:
        """The last `count` positions: a prefill wants one row of logits, an evaluation all."""
        start = self.graph.node("Neg", self.spec.head, [count])
        end = self.graph.integers("end", [INT64_MAX])
        return self.graph.node("Slice", self.spec.head, [x, start, end, self.graph.integers("axis.1", [1])])

    def _head_matrix(self) -> CompressedTensor:
        spec = self.spec
        return self._matrix(f"{spec.embedding if spec.tied else spec.head}.weight")

    def _head(self, stream: Stream, count: ir.Value) -> ir.Value:
        x, _ = self._enter(stream)
        return self._product(self.spec.head, self._head_matrix(), None, self._last(x, count))

    def _logits(self, logits: ir.Value) -> None:
        spec, graph = self.spec, self.graph
        if spec.logit_softcap:
            cap = graph.scalar("logit_softcap", spec.logit_softcap, np.float32)
            logits = graph.node("Tanh", spec.head, [graph.node("Div", spec.head, [logits, cap])])
            logits = graph.node("Mul", spec.head, [logits, cap])
        graph.output(logits, "logits", np.float32, [1, "num_logits", spec.vocab_size])

    def _linear(self, name: str, linears: Sequence[Linear], x: ir.Value) -> ir.Value:
        """Matrices with the same input: one product where their encodings agree, else one each and a Concat."""
        tensors = [self._matrix(linear) for linear in linears]
        fused = concatenate_rows(f"{name}.weight", tensors)
        if fused is not None:
            return self._product(name, fused, self._bias(name, linears), x)
        products = [self._product(m.name, t, self._bias(m.name, [m]), x) for m, t in zip(linears, tensors, strict=True)]
        return self.graph.node("Concat", name, products, axis=-1)

    def _product(self, layer: str, tensor: CompressedTensor, bias: ir.Value | None, x: ir.Value) -> ir.Value:
        module = operators(tensor.encoding, self.kernels)
        activations = self.checkpoint.activations
        return module.linear(self.graph, x, tensor, bias, layer=layer, activations=activations)

    def _bias(self, name: str, linears: Sequence[Linear]) -> ir.Value | None:
        if not any(linear.bias for linear in linears):
            return None

        def together() -> NDArray[np.float32]:
            absent = partial(np.zeros, dtype=np.float32)
            return np.concatenate(
                [self._vector(f"{m.name}.bias") if m.bias else absent(m.out_features) for m in linears]
            )

        return self.graph.weight(f"{name}.bias", together)

    def _norm(self, norm: Norm, x: ir.Value) -> ir.Value:
        operator = "SimplifiedLayerNormalization" if norm.kind == "rms" else "LayerNormalization"
        return self.graph.node(operator, norm.name, [x, *self._norm_weights(norm)], epsilon=norm.eps, axis=-1)

    def _add_and_norm(self, norm: Norm, x: ir.Value, residual: ir.Value) -> tuple[ir.Value, ir.Value]:
        """norm(x + residual), and x + residual."""
        operator = "SkipSimplifiedLayerNormalization" if norm.kind == "rms" else "SkipLayerNormalization"
        inputs = [x, residual, *self._norm_weights(norm)]
        y = self.graph.nodes(operator, norm.name, inputs, 4, domain=MICROSOFT, epsilon=norm.eps)
        return y[0], y[3]

    def _norm_weights(self, norm: Norm) -> list[ir.Value]:
        name = f"{norm.name}.weight"
        weight = self.graph.weight(name, lambda: self._vector(name) + np.float32(norm.unit_offset))
        if norm.kind == "rms":
            return [weight]
        return [weight, self.graph.weight(f"{norm.name}.bias", lambda: self._vector(f"{norm.name}.bias"))]

    def _rope_tables(self) -> dict[str | None, tuple[ir.Value, ir.Value]]:
        used = {layer.attention.rope for layer in self.spec.layers} - {None}
        if not used:
            return {}
        tables = rope_tables(self.checkpoint.config, self.context_length)
        weights = {}
        for key in sorted(used):
            cos, sin = (np.asarray(table) for table in tables[key])
            _check_rotary_dim(2 * cos.shape[1], self.rotary_multiple)
            weights[key] = (
                self.graph.weight(f"rope.{key}.cos", partial(np.array, cos)),
                self.graph.weight(f"rope.{key}.sin", partial(np.array, sin)),
            )
        return weights

    def _matrix(self, linear: Linear | str) -> CompressedTensor:
        tensor = self.checkpoint.matrix(linear)
        self.encodings[tensor.name] = tensor.encoding
        return tensor

    def _vector(self, name: str) -> NDArray[np.float32]:
        return self.checkpoint.vector(name)


def check_attention(attention: Attention) -> None:
    """Raise for a shape that ONNX Runtime's GroupQueryAttention doesn't take on CPU."""
    multiple = 8 if attention.rope is None else 16
    if attention.head_dim % multiple:
        message = f"{attention.o.name}: a head of {attention.head_dim} columns can't be exported"
        raise EdgeError("export.head_dim", message, f"GroupQueryAttention takes multiples of {multiple}")


def _check_rotary_dim(width: int, multiple: int) -> None:
    if width % multiple:
        message = f"rotary embedding over {width} columns can't be exported"
        raise EdgeError("export.rotary_dim", message, f"the attention operator takes multiples of {multiple}")
