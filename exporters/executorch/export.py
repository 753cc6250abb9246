"""A decoder checkpoint as `model.pte`, with all that a bundle needs beside it."""

from __future__ import annotations

import gc
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.numpy import save_file

from edge.core.bundle import Manifest
from edge.core.errors import EdgeError, UsageError
from edge.core.target import Kernels, KvCacheType
from edge.core.weight import Dense
from edge.exporters._manifest import caches_of, kv_cache_of, manifest_of
from edge.exporters.executorch import builtin
from edge.exporters.executorch.fill import Filler
from edge.exporters.executorch.lower import layers_of_instructions, lower, quiet, traced
from edge.exporters.executorch.readback import codes_equal
from edge.exporters.executorch.slow_path import slow_nodes
from edge.kernels.executorch_ops import executorch_version
from edge.kernels.pack import supported
from edge.models.checkpoint import Checkpoint

__all__ = ["codes_equal", "slow_nodes", "write", "write_samples"]
MODEL = "model.pte"
UNTIMED = "what XNNPACK computes is not timed against float32"
SAMPLES = "samples.safetensors"
# What a call takes at most: memory for activations and logits is planned for that. The runtime cuts longer prompts.
MOST_TOKENS, MOST_ROWS = 512, 64
DEFAULT_CACHE: dict[Kernels, KvCacheType] = {"edge": "float16", "builtin": "float32"}


def write(
    checkpoint: Checkpoint,
    folder: Path,
    *,
    kernels: Kernels,
    context_length: int,
    kv_cache: KvCacheType | None = None,
) -> Manifest:
    """Write a decoder into an existing folder and say what was written. Gates and file digests are the caller's.

    kernels: `edge` for our own operators, `builtin` for those of a stock ExecuTorch app. context_length: tokens that
    the caches hold. kv_cache: how they hold them; by default as the model was compressed for, else float16 with edge's
    attention, float32 with the builtin one, which has no other. Raises `EdgeError` before the first byte for what can't
    be exported.
    """
    _refuse(checkpoint, kernels, context_length, kv_cache)
    caches = caches_of(checkpoint, kv_cache, DEFAULT_CACHE[kernels], coded=kernels == "edge")
    with quiet():
        filler = Filler(checkpoint, kernels, context_length, caches)
        lowered = _lowered(filler)
    with (folder / MODEL).open("wb") as file:
        lowered.write_to_file(file)
    checkpoint.save_tokenizer(folder)
    checkpoint.config.save_pretrained(folder)
    manifest = _manifest(filler, folder, layers_of_instructions(lowered))
    del lowered, filler
    gc.collect()  # graphs hold themselves, and with them all weights
    return manifest


def _lowered(filler: Filler) -> Any:
    decoder, most = filler.fill(), filler.context_length
    tokens = torch.export.Dim("tokens", max=min(MOST_TOKENS, most))
    rows = torch.export.Dim("rows", max=min(MOST_ROWS, most))
    example = [torch.zeros(1, 2, dtype=torch.int64), torch.tensor([2], dtype=torch.int32), torch.tensor([0, 1])]
    program = traced(decoder, example, ({1: tokens}, None, {0: rows}))
    backends = _xnnpack(filler.checkpoint, filler.kernels)
    return lower(program, *backends, reinplace=filler.kernels == "builtin")


def write_samples(folder: Path, tokens: Sequence[int], logits: NDArray[np.float32]) -> None:
    """Keep sample inputs and what the reference answers to them: `tokens` [n] and `logits` [rows, vocabulary]."""
    save_file({"tokens": np.array(tokens, np.int64), "logits": np.ascontiguousarray(logits)}, folder / SAMPLES)


def _refuse(checkpoint: Checkpoint, kernels: Kernels, context_length: int, kv_cache: KvCacheType | None) -> None:
    executorch_version()
    if not 1 <= context_length <= checkpoint.spec.context_length:
        message = f"a context of {context_length} tokens is not possible for this model"
        raise UsageError("export.context", message, f"use 1 to {checkpoint.spec.context_length}")
    if kernels == "builtin" and kv_cache not in (None, "float32"):
        hint = "leave it at float32, or export with edge's kernels"
        raise UsageError("export.kv_cache", f"builtin kernels have no {kv_cache} cache in ExecuTorch", hint)
    for name, encoding in checkpoint.encodings.items():
        reason = _unserved(checkpoint, name, kernels)
        if reason:
            message = f"{name} is stored as {encoding}, which {kernels} kernels don't serve"
            raise EdgeError("export.encoding", message, reason)


def _unserved(checkpoint: Checkpoint, name: str, kernels: Kernels) -> str:
    encoding, spec = checkpoint.encodings[name], checkpoint.spec
    if isinstance(encoding, Dense):
        return ""
    if kernels == "edge":
        return supported(encoding)
    is_embedding = name == f"{spec.embedding}.weight" and not spec.tied
    return builtin.refusal(encoding, checkpoint.matrix_shape(name)[1], is_embedding)


def _xnnpack(checkpoint: Checkpoint, kernels: Kernels) -> tuple[list[Any], list[Any]]:
    """XNNPACK for what isn't edge's, unless nothing is left for it."""
    matrices = checkpoint.spec.matrices()
    if kernels == "edge" and all(name in checkpoint.encodings for name, _ in matrices):
        return [], []
    return builtin.partitioners(), builtin.preserved()


def _manifest(filler: Filler, folder: Path, layer_of_node: dict[str, str]) -> Manifest:
    checkpoint = filler.checkpoint
    return manifest_of(
        checkpoint,
        [folder / MODEL],
        runtime="executorch",
        tools=("executorch", "torch"),
        kernels=filler.kernels,
        context_length=filler.context_length,
        kv_cache=kv_cache_of(checkpoint.spec, filler.caches, filler.context_length),
        encodings=filler.encodings,
        layer_of_node=layer_of_node,
        notes=[UNTIMED] if any("XnnpackBackend" in node for node in layer_of_node) else [],
    )
