"""Which operators hold a matrix, and how matrices with the same input become one."""

from __future__ import annotations

from collections.abc import Sequence
from types import ModuleType

import numpy as np

from edge.core.errors import EdgeError
from edge.core.target import Kernels
from edge.core.weight import Affine, CompressedTensor, Dense, Encoding


def operators(encoding: Encoding, kernels: Kernels) -> ModuleType:
    """The module that writes and reads an encoding's nodes. Raises `EdgeError` where nothing serves it."""
    if isinstance(encoding, Dense):
        from edge.exporters.onnx import dense

        return dense
    if kernels == "edge":
        from edge.exporters.onnx import edge_ops as module
    else:
        from edge.exporters.onnx import builtin_ops as module
    return module


def refuse_unserved(name: str, encoding: Affine, kernels: Kernels) -> None:
    """Raise unless the kernels serve a tensor's encoding."""
    reason = operators(encoding, kernels).refusal(encoding)
    if reason:
        message = f"{name} is stored as {encoding}, which {kernels} kernels don't serve"
        raise EdgeError("export.encoding", message, reason)


def fuse(name: str, tensors: Sequence[CompressedTensor]) -> CompressedTensor | None:
    """Matrices with the same input as one, rows one below the other. None when their encodings differ."""
    first = tensors[0]
    if len(tensors) == 1:
        return first
    if any(t.encoding != first.encoding for t in tensors):
        return None
    parts = {part: np.concatenate([t.parts[part] for t in tensors]) for part in first.parts}
    shape = (sum(t.shape[0] for t in tensors), first.shape[1])
    return CompressedTensor(f"{name}.weight", shape, first.encoding, parts)
