"""Models that run in one call as ExecuTorch programs: edge's operators for compressed matrices, XNNPACK for others."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from torch.export import ExportedProgram

from edge.core.bundle import Manifest
from edge.core.errors import EdgeError, UsageError
from edge.core.target import Kernels, KvCacheType
from edge.core.weight import CompressedTensor, Dense, Encoding
from edge.exporters._manifest import manifest_of
from edge.exporters._samples import write_samples
from edge.exporters._trace import inputs_of, trace
from edge.exporters.executorch.lower import ALIGNMENT, PAGE, layers_of_instructions, quiet
from edge.exporters.executorch.program import ProgramFile
from edge.exporters.executorch.slow_path import slow_nodes
from edge.kernels.executorch_ops import executorch_version
from edge.kernels.pack import as_packed, supported, unpack
from edge.models.checkpoint import Checkpoint

__all__ = ["codes_equal", "slow_nodes", "write", "write_samples"]
MODEL = "model.pte"


def write(
    checkpoint: Checkpoint,
    folder: Path,
    *,
    kernels: Kernels,
    context_length: int,
    kv_cache: KvCacheType | None = None,
) -> Manifest:
    """Write an encoder or a vision model into an existing folder and say what was written.

    Raises `EdgeError` before the first byte for what can't be exported: a compressed model with builtin kernels, an
    encoding that the kernels don't serve, a model that torch can't trace.
    """
    if kv_cache is not None:
        raise UsageError("export.kv_cache", f"a {checkpoint.spec.task} model has no cache", "leave out --kv-cache")
    refuse(checkpoint, kernels)
    lowered = _lowered(trace(checkpoint, context_length, eager=True))
    with (folder / MODEL).open("wb") as file:
        lowered.write_to_file(file)
    checkpoint.save_tokenizer(folder)
    checkpoint.config.save_pretrained(folder)
    return manifest_of(
        checkpoint,
        [folder / MODEL],
        runtime="executorch",
        tools=("executorch", "torch"),
        kernels=kernels,
        context_length=context_length,
        inputs=inputs_of(checkpoint),
        encodings=_encodings(checkpoint),
        layer_of_node={node: layer.removeprefix("model.") for node, layer in layers_of_instructions(lowered).items()},
    )


def _lowered(program: ExportedProgram) -> Any:
    """The program for ExecuTorch. XNNPACK itself finds out here what it takes whole: any model may come.

    Raises `EdgeError` for a graph that it can't lower.
    """
    with quiet():
        from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
        from executorch.exir import EdgeCompileConfig, ExecutorchBackendConfig, to_edge_transform_and_lower

        try:
            config = EdgeCompileConfig(_check_ir_validity=False)
            edge = to_edge_transform_and_lower(program, partitioner=[XnnpackPartitioner()], compile_config=config)
            settings = ExecutorchBackendConfig(segment_alignment=PAGE, constant_tensor_alignment=ALIGNMENT)
            return edge.to_executorch(settings)
        except Exception as error:  # ExecuTorch's passes raise all kinds
            cause = error.__cause__ or error
            reason = " ".join(str(cause).split())[:200] or type(cause).__name__
            raise EdgeError(
                "export.lower", f"ExecuTorch can't lower this model: {reason}", "use --runtime onnx"
            ) from error


def codes_equal(checkpoint: Checkpoint, folder: Path, manifest: Manifest) -> bool:
    """Whether every packed matrix of the program is, code by code, that of the layer which reads it."""
    program = ProgramFile(folder / manifest.artefact)
    copies = checkpoint.spec.tied_copies
    for call in program.calls():
        if not call.operator.startswith("edge::"):
            continue
        name = f"{manifest.layer_of_node[f'{call.instruction}:{call.operator}']}.weight"
        packed = program.constant(call.operands[1])
        try:
            if packed is None or not _same(unpack(packed), checkpoint, copies.get(name, name)):
                return False
        except EdgeError:  # the packed bytes don't add up
            return False
    return True


def _same(stored: CompressedTensor, checkpoint: Checkpoint, name: str) -> bool:
    if name not in checkpoint.encodings:
        return False
    wanted = as_packed(checkpoint.matrix(name))
    same_kind = (stored.encoding, stored.shape) == (wanted.encoding, wanted.shape)
    return same_kind and all(np.array_equal(stored.parts[part], wanted.parts[part]) for part in wanted.parts)


def refuse(checkpoint: Checkpoint, kernels: Kernels) -> None:
    """Raise `EdgeError` where ExecuTorch is missing or has no kernels for a checkpoint's encodings."""
    executorch_version()
    for name, encoding in checkpoint.encodings.items():
        reason = supported(encoding)
        if kernels == "builtin":
            reason = "use --kernels edge, or --runtime onnx, or export the original"
        if reason:
            message = f"{name} is stored as {encoding}, which {kernels} kernels don't serve in ExecuTorch"
            raise EdgeError("export.encoding", message, reason)


def _encodings(checkpoint: Checkpoint) -> dict[str, Encoding]:
    """How every matrix is stored: dense ones become float32."""
    return {name: checkpoint.encodings.get(name, Dense("float32")) for name, _ in checkpoint.spec.matrices()}
