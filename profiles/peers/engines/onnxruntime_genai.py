"""onnxruntime-genai: int4 by its own builder (blocks of 32, int8 activations), run by its own generator."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from edge.core.errors import EdgeError
from edge.profiles.peers.engines import Conversation, Model, made_once, not_installed

FORMATS = ("int4 b32",)


def prepare(model: Model, format: str) -> Path:
    """The folder with model and configuration. Raises `EdgeError` where the builder isn't there or fails."""
    _api()

    def build(path: Path) -> None:
        module = [sys.executable, "-m", "onnxruntime_genai.models.builder"]
        what = ["-i", str(model.folder), "-o", str(path), "-p", "int4", "-e", "cpu", "-c", str(model.work / "hub")]
        options = ["--extra_options", "int4_accuracy_level=4", "int4_block_size=32"]
        done = subprocess.run([*module, *what, *options], capture_output=True, text=True, check=False)
        if done.returncode:
            reason = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
            raise EdgeError("bench.build", f"onnxruntime-genai's builder failed: {reason}", "")

    return made_once(model.work / "onnxruntime-genai", build)


def start(path: Path, format: str, threads: int, context: int) -> Conversation:
    """A generator over the folder."""
    api = _api()
    config = api.Config(str(path))
    session = {"intra_op_num_threads": threads}
    config.overlay(json.dumps({"model": {"decoder": {"session_options": session}}}))
    return _Genai(api, api.Model(config), context)


class _Genai:
    def __init__(self, api: Any, model: Any, context: int) -> None:
        self._api, self._model, self._context = api, model, context

    def prefill(self, tokens: Sequence[int]) -> None:
        params = self._api.GeneratorParams(self._model)
        params.set_search_options(max_length=self._context, min_length=self._context, do_sample=False)
        self._generator = self._api.Generator(self._model, params)
        self._generator.append_tokens(list(tokens))
        self._generator.get_logits()

    def decode(self) -> None:
        self._generator.generate_next_token()
        self._generator.get_logits()


def _api() -> Any:
    try:
        import onnxruntime_genai
    except ImportError as error:
        raise not_installed("onnxruntime-genai", error) from error
    return onnxruntime_genai
