"""This machine's CPU, or one like it."""

from __future__ import annotations

from pathlib import Path

from edge.core.target import Kernels, Target

TARGET = Target(
    name="cpu",
    description="Linux, macOS or Windows on x86-64 or arm64, with onnxruntime or executorch from PyPI",
    runtimes=("onnx", "executorch", "gguf"),
    isa=("avx2", "avx512vnni", "neon"),
)


def finish(folder: Path, kernels: Kernels) -> list[str]:
    """Nothing to add: the installed package brings the kernels library."""
    return []
