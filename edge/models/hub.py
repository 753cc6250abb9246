"""Checkpoints from the Hugging Face hub: only what edge reads is downloaded, never a pickle file."""

from __future__ import annotations

from pathlib import Path

from edge.core.errors import EdgeError
from edge.models.folder import TOKENIZER_FILES

PATTERNS = ["*.safetensors", "*.safetensors.index.json", "config.json", *TOKENIZER_FILES]


def download(hub_id: str) -> Path:
    """The local folder of `organisation/model[@revision]`. Raises `EdgeError` when it can't be had."""
    from huggingface_hub import snapshot_download

    name, _, revision = hub_id.partition("@")
    try:
        return Path(snapshot_download(name, revision=revision or None, allow_patterns=PATTERNS))
    except Exception as error:  # network, authentication, validation: the hub has its own tree for each
        why = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        hint = "check the name and the network, log in for a gated model, or give a folder or a GGUF file"
        raise EdgeError("checkpoint.hub", f"can't get '{hub_id}' from the hub: {why}", hint) from error
