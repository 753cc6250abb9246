"""Matrices for our own operators (domain `edge`): one packed byte array, which the kernels read in place."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import onnx_ir as ir

from edge.core.weight import CompressedTensor, Encoding
from edge.exporters.onnx.builder import Array, GraphBuilder
from edge.kernels.lib import ACTIVATIONS
from edge.kernels.pack import pack, supported, unpack

LINEAR = "Linear"
EMBEDDING = "Embedding"


def refusal(encoding: Encoding) -> str:
    """Why no kernel serves an encoding and what to use instead; empty when one does."""
    return supported(encoding)


def linear(
    graph: GraphBuilder,
    x: ir.Value,
    tensor: CompressedTensor,
    bias: ir.Value | None,
    *,
    layer: str,
    activations: Literal["a8", "f32"],
) -> ir.Value:
    """y [.., rows] = x [.., columns] W^T (+ bias). `a8` makes the kernel quantize x to int8, token by token."""
    inputs = [x, packed(graph, tensor), *([] if bias is None else [bias])]
    attributes = {"rows": tensor.shape[0], "activations": ACTIVATIONS[activations]}
    return graph.node(LINEAR, layer, inputs, domain="edge", **attributes)


def embedding(graph: GraphBuilder, ids: ir.Value, tensor: CompressedTensor, *, layer: str) -> ir.Value:
    """Rows of the matrix by token id. A tied head reads the same bytes."""
    return graph.node(EMBEDDING, layer, [ids, packed(graph, tensor)], domain="edge", columns=tensor.shape[1])


def read(operator: str, inputs: Sequence[Array | None], wanted: CompressedTensor) -> CompressedTensor:
    """The matrix as it was written, from the constant inputs of its node."""
    return unpack(inputs[1])


def packed(graph: GraphBuilder, tensor: CompressedTensor) -> ir.Value:
    """A matrix as the kernels read it, as a weight of the graph."""
    return graph.weight(tensor.name, lambda: pack(tensor))
