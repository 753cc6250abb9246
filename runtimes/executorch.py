"""ExecuTorch on CPU. The program keeps its caches and maps its weights: a token copies neither."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge.core.bundle import Bundle, Manifest
from edge.core.errors import EdgeError
from edge.core.session import Logits, OperatorTime, Session, SessionOptions
from edge.core.target import Kernels
from edge.kernels import executorch_ops
from edge.runtimes import _etdump
from edge.runtimes._context import advance

METHOD = "forward"
INPUTS = 3  # token ids [1, S], tokens in all [1], positions whose logits are wanted [R]
DAMAGED = "the file is damaged or was made for another engine: export the model again"
_sessions: set[int] = set()  # that are open, by identity: they share ExecuTorch's one pool of threads


def open(bundle: Bundle, options: SessionOptions) -> Session:
    """A session on the bundle's `model.pte`, weights memory-mapped.

    Raises `EdgeError` for an ExecuTorch that is missing or older than the one that the bundle was exported for, a
    program that doesn't load, and a library of operators that can't be had.
    """
    _check_version(bundle.manifest)
    engine, log = _engine(), _Log(bundle.manifest.kernels)
    _set_threads(engine, options.threads)
    if bundle.manifest.task in ("encoder", "vision"):
        from edge.runtimes._executorch_forward import ExecutorchForwardSession

        loaded = _load(engine, bundle.artefact, options.profile_path is not None, log)
        return ExecutorchForwardSession(loaded, bundle.manifest, options, log.reason, _sessions)
    if bundle.manifest.task == "encoder_decoder":
        from edge.runtimes._executorch_encoder_decoder import ENCODER, ExecutorchEncoderDecoderSession

        profiled = options.profile_path is not None
        pair = [_load(engine, path, profiled, log) for path in (bundle.path / ENCODER, bundle.artefact)]
        return ExecutorchEncoderDecoderSession(*pair, bundle.manifest, options, log.reason, _sessions)
    return ExecutorchSession(engine, bundle, options, log)


def versions() -> dict[str, str]:
    """Versions of what computes."""
    _engine()
    return {"executorch": executorch_ops.executorch_version()}


class ExecutorchSession:
    """One sequence in caches of fixed size inside the program. Every call says how many tokens there are in all."""

    def __init__(self, engine: Any, bundle: Bundle, options: SessionOptions, log: _Log) -> None:
        manifest = bundle.manifest
        self.context_length = manifest.context_length
        self.vocab_size = manifest.vocab_size
        self._layer_of_node = manifest.layer_of_node
        self._profile_path = options.profile_path
        self._log = log
        self._position = 0
        self._program, self._method = _load(engine, bundle.artefact, options.profile_path is not None, log)
        meta = self._method.method_meta()
        if meta.num_inputs() != INPUTS:
            raise EdgeError("runtime.load", f"{bundle.artefact} is no language model of edge's", DAMAGED)
        self._most_tokens = meta.input_tensor_meta(0).sizes()[1]
        self._most_rows = meta.input_tensor_meta(2).sizes()[0]
        _sessions.add(id(self))

    def prefill(self, tokens: Sequence[int], *, all_logits: bool = False) -> Logits:
        """Logits [1, vocab] of the last token, or [len(tokens), vocab]. Starts anew."""
        return self._read(0, tokens, all_logits)

    def extend(self, tokens: Sequence[int], *, all_logits: bool = False) -> Logits:
        """As `prefill`, after what was seen before."""
        return self._read(self._position, tokens, all_logits)

    def decode(self, token: int) -> Logits:
        """Logits [1, vocab] after one more token."""
        end = advance(self, self._position, (token,))
        return self._run(np.array([token]), np.zeros(1, np.int64), end).copy()

    def end_profile(self) -> list[OperatorTime]:
        """Time per instruction since the session was opened, longest first. The engine's trace is at `profile_path`."""
        if self._profile_path is None:
            return []
        self._program.write_etdump_result_to_file(self._profile_path)
        trace, self._profile_path = Path(self._profile_path), None
        return _etdump.operator_times(trace, self._layer_of_node)

    def close(self) -> None:
        """Give the memory back. The session can't be used afterwards."""
        _sessions.discard(id(self))
        self._method = self._program = None

    def __del__(self) -> None:
        _sessions.discard(id(self))

    def _read(self, seen: int, tokens: Sequence[int], all_logits: bool) -> Logits:
        """Logits [1, vocab] or [len(tokens), vocab] of tokens that follow the first `seen` ones in the caches."""
        advance(self, seen, tokens)
        ids = np.array(tokens, np.int64)
        logits = np.empty((len(tokens) if all_logits else 1, self.vocab_size), np.float32)
        piece = self._most_rows if all_logits else self._most_tokens
        for start in range(0, len(tokens), piece):
            end = min(start + piece, len(tokens))
            rows = np.arange(0 if all_logits else end - start - 1, end - start)
            logits[slice(start, end) if all_logits else slice(None)] = self._run(ids[start:end], rows, seen + end)
        return logits

    def _run(self, ids: NDArray[np.int64], rows: NDArray[np.int64], end: int) -> Logits:
        """Logits [len(rows), vocab] in the program's own memory: the next call overwrites them."""
        import torch

        inputs = (ids[None], np.array([end], np.int32), rows)
        try:
            (logits,) = self._method.call([torch.from_numpy(array) for array in inputs], clone_outputs=False)
        except RuntimeError as error:
            hint = "export the model again; if it stays, this is a defect of edge"
            raise EdgeError("runtime.run", f"ExecuTorch failed: {self._log.reason(error)}", hint) from error
        self._position = end
        return logits[0].numpy()


def _load(engine: Any, path: Path, profiled: bool, log: _Log) -> tuple[Any, Any]:
    """The program and its method, ready to run."""
    try:
        program = engine._load_program(str(path), enable_etdump=profiled)
        return program, program.load_method(METHOD)
    except (RuntimeError, ValueError) as error:
        raise EdgeError("runtime.load", f"{path} can't be opened: {log.reason(error)}", DAMAGED) from error


class _Log:
    """What ExecuTorch has to say: kept for error messages instead of printed, where our library can be had."""

    def __init__(self, kernels: Kernels) -> None:
        self._error: Callable[[], str] = str
        with contextlib.suppress(EdgeError) if kernels == "builtin" else contextlib.nullcontext():
            executorch_ops.error()
            self._error = executorch_ops.error

    def reason(self, error: Exception) -> str:
        """Why something failed, in one line."""
        return (self._error() or " ".join(str(error).split()))[:300]


def _set_threads(engine: Any, threads: int) -> None:
    """ExecuTorch has one pool for the process, to which programs that are loaded hold on. 0: as it comes."""
    wanted = threads or _default_threads(engine)
    found = engine._threadpool_get_thread_count()
    if wanted == found:
        return
    if _sessions:
        hint = "close the other one first: ExecuTorch has one pool of threads for the whole process"
        raise EdgeError("runtime.threads", f"another session is open with {found} threads, not {wanted}", hint)
    engine._unsafe_reset_threadpool(wanted)


@lru_cache(maxsize=1)
def _default_threads(engine: Any) -> int:
    return engine._threadpool_get_thread_count()


@lru_cache(maxsize=1)
def _engine() -> Any:
    executorch_ops.executorch_version()
    import torch  # noqa: F401 (its libraries first)
    from executorch.extension.pybindings import _C  # `executorch.runtime` takes four seconds longer

    executorch_ops.load_quantized()
    return _C


def _check_version(manifest: Manifest) -> None:
    exported = manifest.tool_versions.get("executorch", "0")
    found = executorch_ops.executorch_version()
    if _release(found) < _release(exported):
        message = f"this bundle was made for ExecuTorch {exported}; {found} is installed"
        raise EdgeError("runtime.version", message, f"pip install 'executorch>={exported}'")


def _release(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split(".")[:2] if part.isdigit())
