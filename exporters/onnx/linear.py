"""Which operators hold a matrix."""

from __future__ import annotations

from types import ModuleType

from edge.core.errors import EdgeError
from edge.core.target import Kernels
from edge.core.weight import Dense, Encoding


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


def refuse_unserved(name: str, encoding: Encoding, kernels: Kernels) -> None:
    """Raise unless the kernels serve a tensor's encoding."""
    reason = operators(encoding, kernels).refusal(encoding)
    if reason:
        message = f"{name} is stored as {encoding}, which {kernels} kernels don't serve"
        raise EdgeError("export.encoding", message, reason)
