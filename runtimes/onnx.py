"""ONNX Runtime on CPU. Caches live in NumPy arrays that the graph reads and writes in place: a token copies nothing."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from edge.core.bundle import Bundle, Manifest
from edge.core.errors import EdgeError
from edge.core.session import Logits, OperatorTime, Session, SessionOptions
from edge.runtimes._context import advance
from edge.runtimes._onnx_trace import operator_times

# A prompt goes through in pieces: as fast as in one, and activations stay small however long it is.
PREFILL_CHUNK = 512
# Threads that wait for the next operator spin this long, then sleep. ONNX Runtime's own default of a millisecond halves
# the speed on a machine that does anything else, and drains batteries.
SPIN_US = "50"
PROVIDERS = ["CPUExecutionProvider"]
PAST = "past_key_values."
DTYPES: dict[str, type[np.generic]] = {"tensor(float)": np.float32, "tensor(uint8)": np.uint8}
CACHE_LINE = 64
STEP_INPUTS = ("input_ids", "seqlens_k", "total_sequence_length", "num_logits")


def open(bundle: Bundle, options: SessionOptions) -> Session:
    """A session on the bundle's `model.onnx`, weights memory-mapped.

    Raises `EdgeError` for a model that doesn't load, a kernels library that is missing, and an ONNX Runtime older than
    the one that the bundle was exported for.
    """
    _check_version(bundle.manifest)
    if bundle.manifest.task == "encoder_decoder":
        from edge.runtimes._onnx_encoder_decoder import OnnxEncoderDecoderSession

        return OnnxEncoderDecoderSession(bundle, options)
    if bundle.manifest.task in ("encoder", "vision"):
        from edge.runtimes._onnx_forward import OnnxForwardSession

        return OnnxForwardSession(bundle, options)
    opened = engine(bundle, bundle.artefact, options)
    _check_decoder(opened, bundle)
    return OnnxSession(opened, bundle.manifest, options)


def engine(bundle: Bundle, path: Path, options: SessionOptions) -> Any:
    """ONNX Runtime's own session on one of the bundle's graphs."""
    settings = _session_options(bundle.manifest, options)
    try:
        return onnxruntime.InferenceSession(str(path), settings, providers=PROVIDERS)
    except Exception as error:  # ONNX Runtime's errors share no base class of their own
        hint = "the file is damaged or was made for another engine: export the model again"
        raise EdgeError("runtime.load", f"{path} can't be opened: {_line(error)}", hint) from error


@contextmanager
def raising() -> Iterator[None]:
    """Make an error of ONNX Runtime one of edge's."""
    try:
        yield
    except Exception as error:  # ONNX Runtime's errors share no base class of their own
        hint = "export the model again; if it stays, this is a defect of edge"
        raise EdgeError("runtime.run", f"ONNX Runtime failed: {_line(error)}", hint) from error


def versions() -> dict[str, str]:
    """Versions of what computes."""
    return {"onnxruntime": onnxruntime.__version__}


class OnnxSession:
    """One sequence in caches of fixed size. `seqlens_k` and `total_sequence_length` say how much of them counts."""

    def __init__(self, engine: onnxruntime.InferenceSession, manifest: Manifest, options: SessionOptions) -> None:
        self.context_length = manifest.context_length
        self.vocab_size = manifest.vocab_size
        self._engine = engine
        self._layer_of_node = manifest.layer_of_node
        self._profile_path = options.profile_path
        self._position = 0
        self._caches = {
            value.name.removeprefix(PAST): zeros(value.shape, DTYPES[value.type])
            for value in engine.get_inputs()
            if value.name.startswith(PAST)
        }
        self._seqlens_k = np.zeros(1, np.int32)
        self._total_length = np.zeros((), np.int32)
        self._token = np.zeros((1, 1), np.int64)
        self._logits = np.zeros((1, 1, self.vocab_size), np.float32)
        self._step = self._bind(self._token, self._logits)

    def prefill(self, tokens: Sequence[int], *, all_logits: bool = False) -> Logits:
        """Logits [1, vocab] of the last token, or [len(tokens), vocab]. Starts anew."""
        return self._read(0, tokens, all_logits)

    def extend(self, tokens: Sequence[int], *, all_logits: bool = False) -> Logits:
        """As `prefill`, after what was seen before."""
        return self._read(self._position, tokens, all_logits)

    def decode(self, token: int) -> Logits:
        """Logits [1, vocab] after one more token."""
        end = advance(self, self._position, (token,))
        self._token[0, 0] = token
        self._run(self._step, end)
        return self._logits[0].copy()

    def end_profile(self) -> list[OperatorTime]:
        """Time per node since the session was opened, longest first. The engine's trace stays at `profile_path`."""
        if self._profile_path is None:
            return []
        trace = Path(self._engine.end_profiling()).replace(self._profile_path)
        self._profile_path = None
        return operator_times(trace, self._layer_of_node)

    def close(self) -> None:
        """Give the memory back. The session can't be used afterwards."""
        self._step = self._engine = None
        self._caches = {}

    def _read(self, seen: int, tokens: Sequence[int], all_logits: bool) -> Logits:
        """Logits [1, vocab] or [len(tokens), vocab] of tokens that follow the first `seen` ones in the caches."""
        advance(self, seen, tokens)
        ids = np.array(tokens, np.int64)[None]
        logits = np.empty((1, len(tokens) if all_logits else 1, self.vocab_size), np.float32)
        for start in range(0, len(tokens), PREFILL_CHUNK):
            end = min(start + PREFILL_CHUNK, len(tokens))
            self._run(self._bind(ids[:, start:end], logits[:, start:end] if all_logits else logits), seen + end)
        return logits[0]

    def _run(self, binding: onnxruntime.IOBinding, end: int) -> None:
        self._seqlens_k[0] = end - 1
        self._total_length[()] = end
        with raising():
            self._engine.run_with_iobinding(binding)
        self._position = end

    def _bind(self, ids: NDArray[np.int64], logits: Logits) -> onnxruntime.IOBinding:
        """Inputs and outputs for these arrays, which ONNX Runtime reads and writes where they are."""
        binding = self._engine.io_binding()
        binding.bind_cpu_input("num_logits", np.array([logits.shape[1]], np.int64))
        inputs = {"input_ids": ids, "seqlens_k": self._seqlens_k, "total_sequence_length": self._total_length}
        inputs |= {PAST + name: cache for name, cache in self._caches.items()}
        for name, array in inputs.items():
            binding.bind_input(name, "cpu", 0, array.dtype, array.shape, array.ctypes.data)
        outputs = {"logits": logits} | {f"present.{name}": cache for name, cache in self._caches.items()}
        for name, array in outputs.items():
            binding.bind_output(name, "cpu", 0, array.dtype, array.shape, array.ctypes.data)
        return binding


def zeros(shape: Sequence[int], dtype: type[np.generic]) -> NDArray[Any]:
    """Zeros from the start of a cache line on. Zeroed pages cost memory only once they are written."""
    count = math.prod(shape) * np.dtype(dtype).itemsize
    memory = np.zeros(count + CACHE_LINE, np.uint8)
    start = -memory.ctypes.data % CACHE_LINE
    return memory[start : start + count].view(dtype).reshape(shape)


def _session_options(manifest: Manifest, options: SessionOptions) -> Any:
    onnxruntime.disable_telemetry_events()
    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads = options.threads
    settings.log_severity_level = 4  # what goes wrong is raised
    settings.add_session_config_entry("session.intra_op.spin_duration_us", SPIN_US)
    # The graph is fused already; what is left to the engine would only rename nodes and slow the start.
    settings.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    if options.profile_path is not None:
        settings.enable_profiling = True
        settings.profile_file_prefix = options.profile_path
    if manifest.kernels == "edge":
        from edge.kernels.lib import ort_library_path

        _register(settings, ort_library_path())
    return settings


def _register(settings: Any, library: Path) -> None:
    try:
        settings.register_custom_ops_library(str(library))
    except Exception as error:  # ONNX Runtime's errors share no base class of their own
        hint = "install edge again, which builds it; `edge doctor` shows what is wrong"
        raise EdgeError("runtime.kernels", f"{library} can't be loaded: {_line(error)}", hint) from error


def _check_decoder(engine: onnxruntime.InferenceSession, bundle: Bundle) -> None:
    """Raise unless the graph is a decoder of this vocabulary: a manifest may lie beside the model of another."""
    inputs = {value.name: value.type for value in engine.get_inputs()}
    widths = {value.name: value.shape[-1] for value in engine.get_outputs() if value.shape}
    caches = {name for name, kind in inputs.items() if name.startswith(PAST) and kind in DTYPES}
    problems = [f"it has no input '{name}'" for name in STEP_INPUTS if name not in inputs]
    problems += [f"nothing is given to its input '{name}'" for name in inputs.keys() - caches - set(STEP_INPUTS)]
    if widths.get("logits") != bundle.manifest.vocab_size:
        problems.append(f"it gives no logits of {bundle.manifest.vocab_size} tokens")
    if problems:
        message = f"{bundle.artefact} is not the decoder that its manifest describes: {problems[0]}"
        raise EdgeError("runtime.graph", message, "export the model again")


def _check_version(manifest: Manifest) -> None:
    exported = manifest.tool_versions.get("onnxruntime", "0")
    if _release(onnxruntime.__version__) < _release(exported):
        message = f"this bundle was made for ONNX Runtime {exported}; {onnxruntime.__version__} is installed"
        raise EdgeError("runtime.version", message, f"pip install 'onnxruntime>={exported}'")


def _release(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split(".")[:2] if part.isdigit())


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:300]
