"""Matrices read back out of an exported model, to hold them against the checkpoint code by code."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir

from edge.core.bundle import Manifest
from edge.core.concatenate import concatenate_rows
from edge.core.errors import EdgeError
from edge.core.weight import CompressedTensor, Dense
from edge.exporters._fusion import fused_linears
from edge.exporters.onnx.linear import operators
from edge.kernels.pack import as_packed
from edge.models.checkpoint import Checkpoint


def codes_equal(checkpoint: Checkpoint, folder: Path, manifest: Manifest) -> bool:
    """Whether every matrix of the exported model holds exactly the codes, scales and zero points of the checkpoint."""
    nodes = {node.name: node for node in ir.load(folder / manifest.artefact).graph}
    spec = checkpoint.spec
    embedding = checkpoint.matrix(f"{spec.embedding}.weight")
    head = embedding if spec.tied else checkpoint.matrix(f"{spec.head}.weight")
    if not stored(nodes, manifest, spec.embedding, embedding, "EMBEDDING"):
        return False
    if not stored(nodes, manifest, spec.head, head, "LINEAR"):
        return False
    for name, linears in fused_linears(spec):
        tensors = [checkpoint.matrix(linear) for linear in linears]
        fused = concatenate_rows(f"{name}.weight", tensors)
        pairs = [(name, fused)] if fused is not None else zip((m.name for m in linears), tensors, strict=True)
        if not all(stored(nodes, manifest, layer, tensor, "LINEAR") for layer, tensor in pairs):
            return False
        checkpoint.release()
    return True


def stored(
    nodes: dict[str | None, ir.Node], manifest: Manifest, layer: str, wanted: CompressedTensor, kind: str
) -> bool:
    """Whether the layer's node holds `wanted`."""
    module = operators(wanted.encoding, manifest.kernels)
    node = nodes.get(f"{layer}/{getattr(module, kind)}")
    if node is None:
        return False
    constants = [v.const_value.numpy() if v is not None and v.const_value is not None else None for v in node.inputs]
    try:
        return equal(module.read(node.op_type, constants, wanted), as_packed(wanted))
    except EdgeError:  # the packed bytes don't add up, or have another shape
        return False


def equal(stored: CompressedTensor, wanted: CompressedTensor) -> bool:
    """Bit for bit the same matrix; a dense one by its values, which are stored as float32."""
    if isinstance(wanted.encoding, Dense):
        return np.array_equal(stored.dequantize(), wanted.dequantize())
    same_kind = (stored.encoding, stored.shape) == (wanted.encoding, wanted.shape)
    return same_kind and all(np.array_equal(stored.parts[p], wanted.parts[p]) for p in wanted.parts)
