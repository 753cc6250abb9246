"""A decoder checkpoint as `model.onnx` and `model.onnx.data`, with all that a bundle needs beside them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save_file

from edge.core.bundle import Manifest
from edge.core.errors import UsageError
from edge.core.target import Kernels, KvCacheType
from edge.exporters._fusion import is_fused
from edge.exporters._manifest import caches_of, kv_cache_of, manifest_of
from edge.exporters.onnx.builder import DATA, MODEL, GraphBuilder
from edge.exporters.onnx.decoder import DecoderGraph, check_attention
from edge.exporters.onnx.fused import FusedDecoderGraph
from edge.exporters.onnx.linear import refuse_unserved
from edge.exporters.onnx.readback import codes_equal
from edge.exporters.onnx.slow_path import slow_nodes
from edge.models.checkpoint import Checkpoint

__all__ = ["codes_equal", "slow_nodes", "write", "write_samples"]
SAMPLES = "samples.safetensors"


def write(
    checkpoint: Checkpoint,
    folder: Path,
    *,
    kernels: Kernels,
    context_length: int,
    kv_cache: KvCacheType | None = None,
) -> Manifest:
    """Write a decoder into an existing folder and say what was written. Gates and file digests are the caller's.

    kernels: `edge` for our own operators, `builtin` for those of a stock ONNX Runtime. context_length: tokens that the
    caches hold. kv_cache: how they hold them; by default as the model was compressed for, else float16 with edge's
    attention, float32 with the stock one, which has no other. Matrices pass through memory one at a time. Raises
    `EdgeError` before the first byte for what can't be exported: an encoding that the kernels don't serve, a context
    that the model doesn't, an odd head size.
    """
    _refuse(checkpoint, kernels, context_length)
    dialect = FusedDecoderGraph if is_fused(checkpoint, kernels) else DecoderGraph
    caches = caches_of(checkpoint, kv_cache, dialect.default_cache, coded=dialect is FusedDecoderGraph)
    if caches != dialect.default_cache and dialect is DecoderGraph:
        hint = "leave it at float32, or export a compressed model with edge's kernels"
        raise UsageError("export.kv_cache", f"a stock runtime's attention has no {kv_cache} cache on CPU", hint)
    with GraphBuilder(folder) as graph:
        decoder = dialect(graph, checkpoint, kernels, context_length, caches)
        decoder.build()
        graph.save()
    checkpoint.save_tokenizer(folder)
    checkpoint.config.save_pretrained(folder)
    return _manifest(decoder, folder)


def write_samples(folder: Path, tokens: Sequence[int], logits: NDArray[np.float32]) -> None:
    """Keep sample inputs and what the reference answers to them: `tokens` [n] and `logits` [rows, vocabulary]."""
    save_file({"tokens": np.array(tokens, np.int64), "logits": np.ascontiguousarray(logits)}, folder / SAMPLES)


def _refuse(checkpoint: Checkpoint, kernels: Kernels, context_length: int) -> None:
    spec = checkpoint.spec
    if not 1 <= context_length <= spec.context_length:
        message = f"a context of {context_length} tokens is not possible for this model"
        raise UsageError("export.context", message, f"use 1 to {spec.context_length}")
    for layer in () if is_fused(checkpoint, kernels) else spec.layers:
        check_attention(layer.attention)
    for name, encoding in checkpoint.encodings.items():
        refuse_unserved(name, encoding, kernels)


def _manifest(decoder: DecoderGraph, folder: Path) -> Manifest:
    checkpoint = decoder.checkpoint
    return manifest_of(
        checkpoint,
        [folder / MODEL, folder / DATA],
        runtime="onnx",
        tools=("onnx-ir", "onnxruntime", "torch"),
        kernels=decoder.kernels,
        context_length=decoder.context_length,
        kv_cache=kv_cache_of(checkpoint.spec, decoder.caches, decoder.context_length),
        encodings=decoder.encodings,
        layer_of_node=decoder.graph.layer_of_node,
    )
