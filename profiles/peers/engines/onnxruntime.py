"""ONNX Runtime without our kernels: edge's bundle with MatMulNBits."""

from __future__ import annotations

from pathlib import Path

from edge.profiles.peers.engines import Model, edge

FORMATS = ("builtin 4 bits",)
start = edge.start


def prepare(model: Model, format: str) -> Path:
    """The bundle."""
    return edge.bundle(model, "4", "onnx", "builtin")
