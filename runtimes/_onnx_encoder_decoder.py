"""Encoder-decoders in ONNX Runtime: two graphs. What the encoder leaves stays where the decoder reads it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from edge.core.bundle import Bundle
from edge.core.session import Inputs, Logits, OperatorTime, SessionOptions
from edge.runtimes import onnx
from edge.runtimes._context import advance, check_encoded, check_source

ENCODER = "encoder.onnx"
CROSS = "cross."


class OnnxEncoderDecoderSession:
    """A source, then its answer in caches of fixed size, which the decoder reads and writes in place."""

    def __init__(self, bundle: Bundle, options: SessionOptions) -> None:
        self._manifest = manifest = bundle.manifest
        self.context_length = manifest.context_length
        self.vocab_size = manifest.vocab_size
        self._profile_path = options.profile_path
        self._encoder = onnx.engine(bundle, bundle.path / ENCODER, SessionOptions(threads=options.threads))
        self._decoder = onnx.engine(bundle, bundle.artefact, options)
        self._position = 0
        self._caches = {
            value.name.removeprefix(onnx.PAST): onnx.zeros(value.shape, onnx.DTYPES[value.type])
            for value in self._decoder.get_inputs()
            if value.name.startswith(onnx.PAST)
        }
        self._cross: dict[str, NDArray[Any]] = {}
        self._total_length = np.zeros(1, np.int32)
        self._token = np.zeros((1, 1), np.int64)
        self._logits = np.zeros((1, 1, self.vocab_size), np.float32)
        self._step: onnxruntime.IOBinding | None = None

    def encode(self, inputs: Inputs) -> None:
        """Read the source. Raises `UsageError` for other inputs than the model's."""
        fed = check_source(self._manifest, inputs)
        names = [value.name for value in self._encoder.get_outputs()]
        with onnx.raising():
            self._cross = dict(zip(names, self._encoder.run(names, fed), strict=True))
        self._position, self._step = 0, self._bind(self._token, self._logits)

    def prefill(self, tokens: Sequence[int], *, all_logits: bool = False) -> Logits:
        """Logits [1, vocab] of the last token, or [len(tokens), vocab]. Starts the answer anew."""
        return self._read(0, tokens, all_logits)

    def extend(self, tokens: Sequence[int], *, all_logits: bool = False) -> Logits:
        """As `prefill`, after what was answered before."""
        return self._read(self._position, tokens, all_logits)

    def decode(self, token: int) -> Logits:
        """Logits [1, vocab] after one more token."""
        check_encoded(self._step is not None)
        end = advance(self, self._position, (token,))
        self._token[0, 0] = token
        self._run(self._step, end)
        return self._logits[0].copy()

    def end_profile(self) -> list[OperatorTime]:
        """Time per node of the decoder since the session was opened, longest first; the encoder runs but once."""
        if self._profile_path is None:
            return []
        trace = Path(self._decoder.end_profiling()).replace(self._profile_path)
        self._profile_path = None
        return onnx.operator_times(trace, self._manifest.layer_of_node)

    def close(self) -> None:
        """Give the memory back. The session can't be used afterwards."""
        self._step = self._encoder = self._decoder = None
        self._caches, self._cross = {}, {}

    def _read(self, seen: int, tokens: Sequence[int], all_logits: bool) -> Logits:
        check_encoded(bool(self._cross))
        end = advance(self, seen, tokens)
        ids = np.array([tokens], np.int64)  # a binding doesn't hold on to arrays: this one has to outlive it
        logits = np.empty((1, len(tokens), self.vocab_size), np.float32)
        self._run(self._bind(ids, logits), end)
        return logits[0] if all_logits else logits[0, -1:]

    def _run(self, binding: Any, end: int) -> None:
        self._total_length[0] = end
        with onnx.raising():
            self._decoder.run_with_iobinding(binding)
        self._position = end

    def _bind(self, ids: NDArray[np.int64], logits: Logits) -> onnxruntime.IOBinding:
        """Inputs and outputs for these arrays, which ONNX Runtime reads and writes where they are."""
        binding = self._decoder.io_binding()
        inputs = {"input_ids": ids, "total_sequence_length": self._total_length, **self._cross}
        inputs |= {onnx.PAST + name: cache for name, cache in self._caches.items()}
        for name, array in inputs.items():
            binding.bind_input(name, "cpu", 0, array.dtype, array.shape, array.ctypes.data)
        outputs = {"logits": logits} | {f"present.{name}": cache for name, cache in self._caches.items()}
        for name, array in outputs.items():
            binding.bind_output(name, "cpu", 0, array.dtype, array.shape, array.ctypes.data)
        return binding
