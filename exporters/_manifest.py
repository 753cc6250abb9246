"""What every exporter says of a checkpoint in the manifest; each adds what it alone knows."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from edge import __version__
from edge.core.bundle import KvCache, Manifest
from edge.core.cache import CacheFormat, bits_per_element
from edge.core.errors import UsageError
from edge.core.target import KvCacheType
from edge.models.checkpoint import Checkpoint
from edge.models.spec import DecoderSpec


def manifest_of(
    checkpoint: Checkpoint, files: Sequence[Path], *, runtime: str, tools: Sequence[str], **known: Any
) -> Manifest:
    """The manifest of a bundle whose weights and program are `files`, the program first. The gates come later.

    tools: distributions whose versions decide the result. known: the other fields of `Manifest`.
    """
    spec = checkpoint.spec
    stored_bytes = sum(file.stat().st_size for file in files)
    return Manifest(
        name=checkpoint.name,
        architecture=spec.model_type,
        task=spec.task,
        target="cpu",
        runtime=runtime,
        artefact=files[0].name,
        vocab_size=spec.vocab_size,
        eos_token_ids=checkpoint.eos_token_ids,
        bos_token_id=checkpoint.bos_token_id,
        source=checkpoint.origin,
        source_sha256=checkpoint.sha256,
        recipe=checkpoint.recipe or {},
        stored_bytes=stored_bytes,
        bits_per_weight=8 * stored_bytes / checkpoint.parameters,
        gates=None,
        tool_versions={"edge": __version__} | {name: version(name) for name in tools},
        **known,
    )


Caches = KvCacheType | Sequence[CacheFormat]
"""How a decoder's caches hold keys and values: all layers alike, or each in its own bits."""


def caches_of(checkpoint: Checkpoint, asked: KvCacheType | None, default: KvCacheType, *, coded: bool) -> Caches:
    """The caches that a checkpoint is exported with: those that it was compressed for, else what was asked for.

    coded: whether the attention that is exported reads coded caches. Raises `UsageError` for what doesn't go together.
    """
    formats = checkpoint.cache_formats
    if formats is None and asked == "quantized":
        hint = "compress the model with a step of the method kv_cache, or choose float16 or int8"
        raise UsageError("export.kv_cache", "the model says nothing of a quantized cache", hint)
    if formats is None:
        return asked or default
    if asked not in (None, "quantized") or not coded:
        hint = "leave --kv-cache away" if coded else "export for onnx or executorch with edge's kernels"
        message = f"the model was compressed for a quantized cache, not for {asked or default}"
        raise UsageError("export.kv_cache", message, f"{hint}, or compress it without the method kv_cache")
    return formats


def kv_cache_of(spec: DecoderSpec, caches: Caches, context_length: int) -> KvCache:
    """The caches of a decoder, for the manifest."""
    attention = spec.layers[0].attention
    shape = (len(spec.layers), attention.num_kv_heads, attention.head_dim)
    if isinstance(caches, str):
        bits = {"float32": 32.0, "float16": 16.0, "int8": 8 + 32 / attention.head_dim}[caches]
        return KvCache(*shape, caches, bits)
    formats = list(caches)
    return KvCache(*shape, "quantized", bits_per_element(formats, attention.head_dim, context_length), formats)
