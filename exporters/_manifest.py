"""What every exporter says of a checkpoint in the manifest; each adds what it alone knows."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from edge import __version__
from edge.core.bundle import KvCache, Manifest
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


def kv_cache_of(spec: DecoderSpec, dtype: KvCacheType) -> KvCache:
    """The caches of a decoder."""
    attention = spec.layers[0].attention
    return KvCache(len(spec.layers), attention.num_kv_heads, attention.head_dim, dtype)
