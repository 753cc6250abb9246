"""ONNX Runtime's profile (`SessionOptions.enable_profiling`): time per operator, of loading and of every run."""

from __future__ import annotations

import re
from pathlib import Path

from edge.core.errors import UsageError
from edge.core.measurement import Measurement, Protocol, Repetition
from edge.profiles.imports import imported, no_record
from edge.runtimes import _onnx_trace

DESCRIPTION = "ONNX Runtime's profile (onnxruntime_profile*.json)"
LOAD = ("model_loading", "session_initialization")
RUN = "model_run"
NOTE = (
    "from ONNX Runtime's profile: its runs were timed with the profiler on, which slows them, warm-ups count among "
    "them, and what each of them read or made is not told; nor are the device, memory and energy"
)


def recognizes(head: bytes) -> bool:
    return re.match(rb'\s*\[\s*\{"cat"\s*:\s*"(Session|Node|Kernel|Api)"', head) is not None


def read(path: Path, record: Path | None) -> list[Measurement]:
    """One measurement, each run of the session a repetition of one call."""
    no_record(record)
    events = _onnx_trace.read(path)
    rows = _onnx_trace.rows(events, {})
    session = [event for event in events if event.cat == "Session"]
    runs = [1000 * event.dur for event in session if event.name == RUN]
    if not runs and not rows:
        raise UsageError("import.empty", f"{path} has no run of the model", "run the session before its profile ends")
    providers = {event.args.provider for event in events if event.args.provider}
    repetitions = [Repetition(0, max(ns, 1), [], 0, []) for ns in runs]
    return [
        imported(
            path,
            Protocol(0, 0, 0, len(runs), 0),
            NOTE,
            runtime="onnx",
            kernels=", ".join(sorted(name.removesuffix("ExecutionProvider") for name in providers)) or "its own",
            load_ns=sum(1000 * event.dur for event in session if event.name.startswith(LOAD)),
            repetitions=repetitions,
            operators=rows,
        )
    ]
