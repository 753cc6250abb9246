"""Android phones with a 64-bit ARM processor."""

from __future__ import annotations

from pathlib import Path

from edge.core.errors import EdgeError
from edge.core.target import Kernels, Target

TARGET = Target(
    name="android",
    description="Android on arm64-v8a, with onnxruntime's or executorch's own Android package",
    runtimes=("onnx", "executorch", "gguf"),
    isa=("neon", "neon_dotprod"),
)
LIBRARY = "lib/arm64-v8a/libedge_kernels.so"
# It links against the app's own ExecuTorch, so nobody else can build it.
EXECUTORCH = "the app has to compile kernels/bind/executorch/operators.cpp with its ExecuTorch, beside this library"


def finish(folder: Path, kernels: Kernels) -> list[str]:
    """Add the kernels library for arm64. Without a cross compiler the bundle goes without, and a note says why."""
    if kernels != "edge":
        return []
    from edge.kernels.cross import cross_build

    notes = [EXECUTORCH] if any(folder.glob("*.pte")) else []
    try:
        cross_build("android-arm64", folder / LIBRARY)
    except EdgeError as error:
        return [f"{LIBRARY} is not in this bundle: {error}", *notes]
    return notes
