"""Matrices read back out of an exported program, to hold them against the checkpoint code by code."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from edge.core.bundle import Manifest
from edge.core.concatenate import concatenate_rows
from edge.core.errors import EdgeError
from edge.core.weight import CompressedTensor, Dense
from edge.exporters._fusion import fused_linears
from edge.exporters.executorch.program import Array, ProgramFile
from edge.kernels.pack import unpack
from edge.models.checkpoint import Checkpoint


def codes_equal(checkpoint: Checkpoint, folder: Path, manifest: Manifest) -> bool:
    """Whether every matrix of the exported model holds exactly the codes, scales and zero points of the checkpoint.

    edge's matrices are read where the instructions of their layer say. XNNPACK's and stock ones are looked up by
    content: that they stand in the right place is for the parity gate to say.
    """
    program = ProgramFile(folder / manifest.artefact)
    try:
        stored = _Stored(program, manifest)
        return all(stored.holds(layer, tensor) for layer, tensor in _matrices(checkpoint))
    except EdgeError:  # packed bytes don't add up
        return False


def _matrices(checkpoint: Checkpoint) -> Iterator[tuple[str, CompressedTensor]]:
    """Every matrix under the name of its layer, as exporting joins them."""
    spec = checkpoint.spec
    embedding = checkpoint.matrix(f"{spec.embedding}.weight")
    yield spec.embedding, embedding
    yield spec.head, embedding if spec.tied else checkpoint.matrix(f"{spec.head}.weight")
    for name, linears in fused_linears(spec):
        tensors = [checkpoint.matrix(linear) for linear in linears]
        fused = concatenate_rows(f"{name}.weight", tensors)
        yield from [(name, fused)] if fused is not None else zip((m.name for m in linears), tensors, strict=True)
        checkpoint.release()


class _Stored:
    """The constants of a program, by layer and by content."""

    def __init__(self, program: ProgramFile, manifest: Manifest) -> None:
        self._by_layer: dict[str, list[Array]] = {}
        self._program = program
        layers = manifest.layer_of_node
        for call in program.calls():
            found = [c for c in map(program.constant, call.operands) if c is not None]
            self._by_layer.setdefault(layers.get(f"{call.instruction}:{call.operator}", ""), []).extend(found)
        self._kernels = manifest.kernels

    def holds(self, layer: str, wanted: CompressedTensor) -> bool:
        """Whether a layer's matrix is stored as it should be."""
        constants = self._by_layer.get(layer, [])
        if isinstance(wanted.encoding, Dense):
            values = wanted.dequantize()
            beside = any(c.shape == values.shape and np.array_equal(c, values) for c in constants)
            return beside or self._program.has(values)
        if self._kernels == "builtin":
            raise NotImplementedError
        return any(c.dtype == np.uint8 and _equal(unpack(c), wanted) for c in constants if c.ndim == 1)


def _equal(stored: CompressedTensor, wanted: CompressedTensor) -> bool:
    same_kind = (stored.encoding, stored.shape) == (wanted.encoding, wanted.shape)
    return same_kind and all(np.array_equal(stored.parts[part], wanted.parts[part]) for part in wanted.parts)
