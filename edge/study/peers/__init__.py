"""Other toolkits' quantizers, so that a study shows them beside ours: one file adds one toolkit.

It has `FORMATS`, the names of what it makes, and `prepare(source, format, folder, calibration, context_length)`, which
writes a bundle of a checkpoint into an existing folder: from there on it is measured as ours are. What a bundle says
of its size counts tensors alone, as it does of ours, and not the tokenizer or the graph.
"""

from __future__ import annotations

import fnmatch
import importlib
from collections.abc import Sequence
from typing import Any

from edge.core.errors import UsageError, nearest

TOOLKITS = {"llama.cpp": "llama_cpp", "onnxruntime": "onnxruntime"}


def load(toolkit: str) -> Any:
    """The module of a toolkit. Raises `UsageError` with the nearest right name."""
    if toolkit not in TOOLKITS:
        raise UsageError("study.peer", f"no peer is called '{toolkit}'", nearest(toolkit, TOOLKITS))
    return importlib.import_module(f"{__name__}.{TOOLKITS[toolkit]}")


def chosen(asked: Sequence[str]) -> list[tuple[str, str]]:
    """Toolkit and format of each peer asked for: a toolkit for all that it makes, or `toolkit:FORMAT`, a glob."""
    found = []
    for name in asked:
        toolkit, _, pattern = name.partition(":")
        formats = load(toolkit).FORMATS
        matching = fnmatch.filter(formats, pattern) if pattern else list(formats)
        if not matching:
            message = f"{toolkit} has no format '{pattern}'"
            raise UsageError("study.peer", message, nearest(pattern, formats))
        found += [(toolkit, format) for format in matching]
    return list(dict.fromkeys(found))
