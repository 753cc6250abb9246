"""Models that run in one call, as ONNX: torch's own graph, rewritten node by node with the writers of decoders."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from edge.core.bundle import Input, Manifest
from edge.core.errors import EdgeError, UsageError
from edge.core.target import Kernels, KvCacheType
from edge.core.weight import Dense, Encoding
from edge.exporters._manifest import manifest_of
from edge.exporters._samples import OUTPUT, write_samples
from edge.exporters._trace import inputs_of, trace
from edge.exporters.onnx.builder import DATA, MODEL, GraphBuilder
from edge.exporters.onnx.linear import operators, refuse_unserved
from edge.exporters.onnx.readback import stored
from edge.exporters.onnx.slow_path import slow_nodes
from edge.exporters.onnx.torch_graph import convert, layer_of
from edge.models.checkpoint import Checkpoint

__all__ = ["codes_equal", "slow_nodes", "write", "write_samples"]
OPSET = 23  # its Attention runs twice as fast as the nodes that older versions make of it
INLINE_BYTES = 1024


def write(
    checkpoint: Checkpoint,
    folder: Path,
    *,
    kernels: Kernels,
    context_length: int,
    kv_cache: KvCacheType | None = None,
) -> Manifest:
    """Write an encoder or a vision model into an existing folder and say what was written.

    Takes what `exporters.onnx.export.write` takes. Raises `EdgeError` before the first byte for an encoding that the
    kernels don't serve and for a model that torch can't trace.
    """
    if kv_cache is not None:
        raise UsageError("export.kv_cache", f"a {checkpoint.spec.task} model has no cache", "leave out --kv-cache")
    for name, encoding in checkpoint.encodings.items():
        refuse_unserved(name, encoding, kernels)
    inputs = inputs_of(checkpoint)
    model = convert(trace(checkpoint, context_length), OPSET, dense=True)
    with GraphBuilder(folder, opset=OPSET) as graph:
        rewriter = _Rewriter(graph, checkpoint, kernels)
        rewriter.rewrite(model, inputs)
        graph.save()
    checkpoint.save_tokenizer(folder)
    checkpoint.config.save_pretrained(folder)
    return _manifest(rewriter, folder, inputs, context_length)


def codes_equal(checkpoint: Checkpoint, folder: Path, manifest: Manifest) -> bool:
    """Whether every compressed matrix is in the graph with exactly the codes, scales and zero points it was made of."""
    nodes = {node.name: node for node in ir.load(folder / manifest.artefact).graph}
    for name in checkpoint.encodings:
        places = [name, *(copy for copy, source in checkpoint.spec.tied_copies.items() if source == name)]
        layers = [place.removesuffix(".weight") for place in places]
        tensor = checkpoint.matrix(name)
        found = [
            stored(nodes, manifest, layer, tensor, kind)
            for layer in layers
            for kind in ("LINEAR", "EMBEDDING")
            if f"{layer}/{getattr(operators(tensor.encoding, manifest.kernels), kind)}" in nodes
        ]
        # A matrix that the first output doesn't depend on, such as a pooler's, is in no graph.
        if not all(found):
            return False
    return True


class _Rewriter:
    """Copies a graph of torch's into a `GraphBuilder`. `encodings` tells afterwards how matrices were stored."""

    def __init__(self, graph: GraphBuilder, checkpoint: Checkpoint, kernels: Kernels) -> None:
        self.graph = graph
        self.checkpoint = checkpoint
        self.kernels = kernels
        self.encodings: dict[str, Encoding] = {}
        self._values: dict[ir.Value, ir.Value] = {}

    def rewrite(self, model: ir.Model, inputs: Mapping[str, Input]) -> None:
        """Write inputs, nodes and the first output."""
        for value, (name, wanted) in zip(model.graph.inputs, inputs.items(), strict=True):
            shape = [size or "sequence" for size in wanted.shape]
            self._values[value] = self.graph.input(name, np.dtype(wanted.dtype).type, shape)
        for node in model.graph:
            self._node(node)
        output = model.graph.outputs[0]
        shape = [size if isinstance(size, int) else "sequence" for size in output.shape or ()]
        self.graph.output(self._value(output), OUTPUT, np.float32, shape)

    def _node(self, node: ir.Node) -> None:
        layer = layer_of(node)
        if node.domain == "edge":
            self._values[node.outputs[0]] = getattr(self, f"_{node.op_type.lower()}")(node, layer)
            return
        if any(
            attribute.type in (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS)
            for attribute in node.attributes.values()
        ):
            message = f"'{layer}' branches or loops at run time ({node.op_type})"
            raise EdgeError("export.trace", message, "report the model")
        inputs = [None if value is None else self._value(value) for value in node.inputs]
        found = self.graph.nodes(
            node.op_type, layer, inputs, len(node.outputs), domain=node.domain, **dict(node.attributes)
        )
        self._values.update(zip(node.outputs, found, strict=True))

    def _linear(self, node: ir.Node, layer: str) -> ir.Value:
        x, bias = self._value(node.inputs[0]), self._optional(node, 2)
        tensor = self._matrix(layer)
        write = operators(tensor.encoding, self.kernels).linear
        return write(self.graph, x, tensor, bias, layer=layer, activations=self.checkpoint.activations)

    def _embedding(self, node: ir.Node, layer: str) -> ir.Value:
        tensor = self._matrix(layer)
        write = operators(tensor.encoding, self.kernels).embedding
        return write(self.graph, self._value(node.inputs[0]), tensor, layer=layer)

    def _denselinear(self, node: ir.Node, layer: str) -> ir.Value:
        """A product with a weight [out, in] that is left as it is: ONNX Runtime packs it at load."""
        x, weight, bias = self._value(node.inputs[0]), self._value(node.inputs[1]), self._optional(node, 2)
        y = self.graph.node("FusedMatMul", layer, [x, weight], domain="com.microsoft", transB=1)
        return y if bias is None else self.graph.node("Add", layer, [y, bias])

    def _matrix(self, layer: str) -> Any:
        name = self.checkpoint.spec.tied_copies.get(f"{layer}.weight", f"{layer}.weight")
        tensor = self.checkpoint.matrix(name)
        self.encodings[name] = tensor.encoding
        return tensor

    def _optional(self, node: ir.Node, index: int) -> ir.Value | None:
        value = node.inputs[index] if len(node.inputs) > index else None
        return None if value is None else self._value(value)

    def _value(self, value: ir.Value) -> ir.Value:
        if value not in self._values:
            self._values[value] = self._constant(value)
        return self._values[value]

    def _constant(self, value: ir.Value) -> ir.Value:
        if value.const_value is None:
            raise EdgeError("export.graph", f"nothing computes '{value.name}'", "this is a defect of edge")
        name = str(value.name).removeprefix("model.")
        tensor = value.const_value
        if tensor.nbytes < INLINE_BYTES:
            return self.graph.constant(name, tensor.numpy())
        self.encodings.setdefault(name, Dense("float32"))
        return self.graph.weight(name, tensor.numpy)


def _manifest(rewriter: _Rewriter, folder: Path, inputs: dict[str, Input], context_length: int) -> Manifest:
    checkpoint, graph = rewriter.checkpoint, rewriter.graph
    matrices = {name for name, _ in checkpoint.spec.matrices()}
    return manifest_of(
        checkpoint,
        [folder / MODEL, folder / DATA],
        runtime="onnx",
        tools=("onnx-ir", "onnxruntime", "torch"),
        kernels=rewriter.kernels,
        context_length=context_length,
        inputs=inputs,
        encodings={name: encoding for name, encoding in rewriter.encodings.items() if name in matrices},
        layer_of_node=graph.layer_of_node,
    )
