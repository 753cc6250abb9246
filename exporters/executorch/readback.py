"""Matrices read back out of an exported program, to hold them against the checkpoint code by code."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from edge.core.bundle import Manifest
from edge.core.errors import EdgeError
from edge.core.weight import CompressedTensor, Dense
from edge.exporters.executorch import builtin
from edge.exporters.executorch.products import matrices
from edge.exporters.executorch.program import Array, ProgramFile
from edge.kernels.pack import as_packed, unpack
from edge.models.checkpoint import Checkpoint


def codes_equal(checkpoint: Checkpoint, folder: Path, manifest: Manifest) -> bool:
    """Whether every matrix of the exported model holds exactly the codes, scales and zero points of the checkpoint.

    edge's matrices are read where the instructions of their layer say. XNNPACK's and stock ones are looked up by
    content: that they stand in the right place is for the parity gate to say.
    """
    program = ProgramFile(folder / manifest.artefact)
    try:
        stored = _Stored(program, manifest)
        return all(stored.holds(layer, tensor) for layer, tensor in matrices(checkpoint, manifest.kernels))
    except EdgeError:  # packed bytes don't add up
        return False


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
            rows = builtin.stored_rows(wanted)
            looked_up = all(any(np.array_equal(c, array) for c in constants) for array in rows)
            return looked_up or all(self._program.has(array, prefix) for prefix, array in builtin.stored(wanted))
        return any(c.dtype == np.uint8 and _equal(unpack(c), as_packed(wanted)) for c in constants if c.ndim == 1)


def _equal(stored: CompressedTensor, wanted: CompressedTensor) -> bool:
    same_kind = (stored.encoding, stored.shape) == (wanted.encoding, wanted.shape)
    return same_kind and all(np.array_equal(stored.parts[part], wanted.parts[part]) for part in wanted.parts)
