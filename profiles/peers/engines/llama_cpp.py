"""llama.cpp by llama-cpp-python's C API: quantized by llama.cpp itself from a float16 GGUF.

`pure` quantizes the output matrix too, which the other formats keep at 6 or 8 bits; `plain` switches llama.cpp's
repacking of weights at load off, which is faster at prefill for some formats.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from edge.core.errors import EdgeError
from edge.exporters.gguf.architecture import architecture_of
from edge.exporters.gguf.export import write_gguf
from edge.models.checkpoint import open_checkpoint
from edge.profiles.peers.engines import Conversation, Model, made_once, not_installed

FORMATS = ("Q4_0", "Q4_0 pure", "Q4_K_M", "Q4_K_M plain", "IQ4_XS", "Q3_K_M", "Q2_K")
BATCH = 512


def prepare(model: Model, format: str) -> Path:
    """The GGUF file. Raises `EdgeError` without llama-cpp-python."""
    api = _api()
    kind, _, how = format.partition(" ")
    source = made_once(model.work / "gguf" / "F16.gguf", lambda path: _write(model.folder, path))
    pure = how == "pure"

    def quantize(path: Path) -> None:
        options = api.llama_model_quantize_default_params()
        options.ftype = getattr(api, f"LLAMA_FTYPE_MOSTLY_{kind}")
        options.pure = pure
        if api.llama_model_quantize(str(source).encode(), str(path).encode(), ctypes.byref(options)):
            raise EdgeError("bench.quantize", f"llama.cpp can't quantize {model.name} as {format}", "")

    return made_once(model.work / "gguf" / f"{kind}{'-pure' if pure else ''}.gguf", quantize)


def _write(folder: Path, path: Path) -> None:
    checkpoint = open_checkpoint(folder)
    write_gguf(checkpoint, path, architecture_of(checkpoint, context_length=1), folder)


def start(path: Path, format: str, threads: int, context: int) -> Conversation:
    """Raises `EdgeError` for a file that llama.cpp doesn't load."""
    api = _api()
    api.llama_backend_init()
    options = api.llama_model_default_params()
    options.use_extra_bufts = not format.endswith("plain")
    model = api.llama_model_load_from_file(str(path).encode(), options)
    settings = api.llama_context_default_params()
    settings.n_ctx, settings.n_batch, settings.n_ubatch = context, BATCH, BATCH
    settings.n_threads = settings.n_threads_batch = threads
    opened = api.llama_init_from_model(model, settings) if model else None
    if not opened:
        raise EdgeError("bench.load", f"llama.cpp can't load {path.name}", "")
    return _LlamaCpp(api, opened, api.llama_vocab_n_tokens(api.llama_model_get_vocab(model)))


class _LlamaCpp:
    def __init__(self, api: Any, context: Any, vocab_size: int) -> None:
        self._api, self._context, self._vocab_size = api, context, vocab_size

    def prefill(self, tokens: Sequence[int]) -> None:
        self._api.llama_memory_clear(self._api.llama_get_memory(self._context), True)
        for start in range(0, len(tokens), BATCH):
            self._run(tokens[start : start + BATCH])

    def decode(self) -> None:
        logits = self._api.llama_get_logits_ith(self._context, -1)
        self._run([int(np.ctypeslib.as_array(logits, (self._vocab_size,)).argmax())])

    def _run(self, tokens: Sequence[int]) -> None:
        array = (self._api.llama_token * len(tokens))(*tokens)
        if status := self._api.llama_decode(self._context, self._api.llama_batch_get_one(array, len(tokens))):
            raise EdgeError("bench.run", f"llama.cpp failed with status {status}")


def _api() -> Any:
    try:
        import llama_cpp
    except ImportError as error:
        raise not_installed("llama-cpp-python", error) from error
    return llama_cpp
