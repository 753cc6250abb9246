"""llama.cpp, by llama-cpp-python's C API. It maps the file's weights and keeps a cache of its own."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Sequence
from functools import cache
from importlib.metadata import version
from typing import Any

import numpy as np

from edge.core.bundle import Bundle, Manifest
from edge.core.errors import EdgeError, EngineMissing
from edge.core.session import Logits, OperatorTime, Session, SessionOptions
from edge.runtimes._context import advance

FLOAT_LIMIT = 1e-4
"""KL divergence from PyTorch, in nats, that plain weights may have: llama.cpp multiplies and caches in float16."""
BATCH = 512
GGML_LOG_ERROR = 4
KEPT: list[Any] = []  # llama.cpp calls these as long as the process runs
CACHE_TYPES = {"float32": 0, "float16": 1}  # ggml_type


def open(bundle: Bundle, options: SessionOptions) -> Session:
    """A session on the bundle's `model.gguf`. Raises `EdgeError` without llama-cpp-python, or for a broken file."""
    return LlamaCppSession(bundle, options)


def versions() -> dict[str, str]:
    """Versions of what computes. Raises `EngineMissing` without llama-cpp-python."""
    library()
    return {"llama-cpp-python": version("llama-cpp-python")}


class LlamaCppSession:
    """One sequence; `decode` appends to llama.cpp's own cache."""

    def __init__(self, bundle: Bundle, options: SessionOptions) -> None:
        self.context_length = bundle.manifest.context_length
        self.vocab_size = bundle.manifest.vocab_size
        self._api = library()
        reported_errors(self._api).clear()
        self._position = 0
        self._model = self._api.llama_model_load_from_file(
            os.fsencode(bundle.artefact), self._api.llama_model_default_params()
        )
        if not self._model:
            raise self._failed(bundle)
        settings = _settings(self._api, bundle.manifest, options)
        self._context = self._api.llama_init_from_model(self._model, settings)
        if not self._context:
            self._api.llama_model_free(self._model)
            raise self._failed(bundle)
        self._batch = self._api.llama_batch_init(BATCH, 0, 1)

    def prefill(self, tokens: Sequence[int], *, all_logits: bool = False) -> Logits:
        """Logits [1, vocab] of the last token, or [len(tokens), vocab]. Starts anew."""
        advance(self, 0, tokens)
        self._api.llama_memory_clear(self._api.llama_get_memory(self._context), True)
        self._position = 0
        return self._read(tokens, all_logits)

    def extend(self, tokens: Sequence[int], *, all_logits: bool = False) -> Logits:
        """As `prefill`, after what was seen before."""
        advance(self, self._position, tokens)
        return self._read(tokens, all_logits)

    def decode(self, token: int) -> Logits:
        """Logits [1, vocab] after one more token."""
        advance(self, self._position, (token,))
        return self._run((token,), 1)

    def end_profile(self) -> list[OperatorTime]:
        """No rows: llama.cpp times whole graphs."""
        return []

    def tokenize(self, text: str) -> list[int]:
        """Tokens by llama.cpp's own tokenizer, special ones recognized and added: what its users will run."""
        data = text.encode()
        vocabulary = self._api.llama_model_get_vocab(self._model)
        tokens = (self._api.llama_token * (len(data) + 8))()
        count = self._api.llama_tokenize(vocabulary, data, len(data), tokens, len(tokens), True, True)
        return list(tokens[: max(count, 0)])

    def close(self) -> None:
        """Give the memory back. The session can't be used afterwards."""
        if self._model:
            self._api.llama_batch_free(self._batch)
            self._api.llama_free(self._context)
            self._api.llama_model_free(self._model)
        self._model = self._context = None

    def _read(self, tokens: Sequence[int], all_logits: bool) -> Logits:
        pieces = [tokens[start : start + BATCH] for start in range(0, len(tokens), BATCH)]
        logits = [self._run(piece, len(piece) if all_logits else int(piece is pieces[-1])) for piece in pieces]
        return np.concatenate(logits)

    def _run(self, tokens: Sequence[int], rows: int) -> Logits:
        """Run at most `BATCH` tokens; logits [rows, vocab] of the last of them."""
        batch, count = self._batch, len(tokens)
        batch.n_tokens = count
        for index, token in enumerate(tokens):
            batch.token[index], batch.pos[index] = token, self._position + index
            batch.n_seq_id[index], batch.seq_id[index][0] = 1, 0
            batch.logits[index] = index >= count - rows
        if status := self._api.llama_decode(self._context, batch):
            hint = "export the model again; if it stays, report it with the model's name"
            raise EdgeError("runtime.run", f"llama.cpp failed with status {status}{self._reason()}", hint)
        self._position += count
        if rows == 0:
            return np.empty((0, self.vocab_size), np.float32)
        found = self._api.llama_get_logits(self._context)
        return np.ctypeslib.as_array(found, (rows, self.vocab_size)).copy()

    def _reason(self) -> str:
        """The first error, on one line: those after it only say that something failed."""
        errors = reported_errors(self._api)
        return f": {' '.join(errors[0].split())[:300]}" if errors else ""

    def _failed(self, bundle: Bundle) -> EdgeError:
        hint = "the file is damaged or needs a newer llama.cpp: export the model again, or upgrade llama-cpp-python"
        return EdgeError("runtime.load", f"llama.cpp can't open {bundle.artefact}{self._reason()}", hint)


@cache
def reported_errors(api: Any) -> list[str]:
    """What llama.cpp reports as errors from now on, instead of its chatter on stderr."""
    lines: list[str] = []

    @api.llama_log_callback
    def keep(level: int, text: bytes, _: Any) -> None:
        if level == GGML_LOG_ERROR:
            lines.append(text.decode("utf-8", "replace"))

    KEPT.append(keep)
    api.llama_log_set(keep, ctypes.c_void_p())
    return lines


def _settings(api: Any, manifest: Manifest, options: SessionOptions) -> Any:
    settings = api.llama_context_default_params()
    settings.n_ctx = manifest.context_length
    settings.n_batch = settings.n_ubatch = BATCH
    settings.n_threads = settings.n_threads_batch = options.threads or os.cpu_count() or 1
    settings.type_k = settings.type_v = CACHE_TYPES[manifest.kv_cache.dtype]
    return settings


def library() -> Any:
    """llama-cpp-python's module, ready for use. Raises `EngineMissing` without it."""
    try:
        import llama_cpp
    except ImportError as error:
        hint = "pip install 'edge-deploy[gguf]', or pip install llama-cpp-python (it compiles llama.cpp)"
        raise EngineMissing("runtime.missing", f"llama-cpp-python can't be imported: {error}", hint) from error
    llama_cpp.llama_backend_init()
    return llama_cpp
