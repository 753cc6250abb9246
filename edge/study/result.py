"""What comes out: the files that a cell's process leaves behind, the rows made of them, and the whole study."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import msgspec

from edge.core.files import SCHEMA, read_json
from edge.core.measurement import Evaluation
from edge.evaluate.tasks import TaskScore
from edge.study.cell import Cell, Settings

STAGES = ("compress", "evaluate", "tasks", "speed")
FAILED = "failed.json"
Status = Literal["done", "partial", "failed", "not_run"]


class Compressed(msgspec.Struct, frozen=True):
    """layer_bits_per_weight: of the decoder layers' matrices alone, None of what another toolkit made.

    seconds and peak_bytes are those of the process that compressed, None where it went on with an interrupted one.
    """

    stored_bytes: int
    bits_per_weight: float
    layer_bits_per_weight: float | None = None
    seconds: float | None = None
    peak_bytes: int | None = None
    notes: list[str] = []
    schema: int = SCHEMA


class Tasks(msgspec.Struct, frozen=True):
    scores: list[TaskScore]
    schema: int = SCHEMA


class Speed(msgspec.Struct, frozen=True):
    """Medians over the repetitions of a profile on this machine; artefact_bytes is what the runtime loads."""

    runtime: str
    kernels: str
    artefact_bytes: int
    decode_tokens_per_s: float
    decode_p10: float
    decode_p90: float
    prefill_tokens_per_s: float
    peak_bytes: int
    schema: int = SCHEMA


class Failure(msgspec.Struct, frozen=True):
    """Why a stage has no result."""

    stage: str
    code: str
    message: str
    hint: str = ""


class Failures(msgspec.Struct, frozen=True):
    failures: list[Failure]
    schema: int = SCHEMA


class Row(msgspec.Struct, frozen=True, kw_only=True):
    """A cell with all that is known of it. Missing figures are None; `failures` says why, where something failed."""

    label: str
    kind: str
    method: str = ""
    bits: int | None = None
    status: Status
    failures: list[Failure] = []
    perplexity: float | None = None
    kl_divergence: float | None = None
    top1_agreement: float | None = None
    tasks: list[TaskScore] = []
    bits_per_weight: float | None = None
    layer_bits_per_weight: float | None = None
    stored_bytes: int | None = None
    artefact_bytes: int | None = None
    compress_s: float | None = None
    compress_peak_bytes: int | None = None
    decode_tokens_per_s: float | None = None
    decode_p10: float | None = None
    decode_p90: float | None = None
    prefill_tokens_per_s: float | None = None
    run_peak_bytes: int | None = None
    notes: list[str] = []


class Study(msgspec.Struct, frozen=True, kw_only=True):
    """Everything: how it was measured, and the rows."""

    schema: int = SCHEMA
    model: str
    parameters: int
    settings: Settings
    device: dict[str, Any]
    rows: list[Row]


def row_of(cell: Cell, folder: Path, settings: Settings) -> Row:
    """What a cell's folder holds so far."""
    kinds: dict[str, Any] = {"compress": Compressed, "evaluate": Evaluation, "tasks": Tasks, "speed": Speed}
    wanted = stages_of(settings)
    found = {stage: read(folder, stage, kinds[stage]) for stage in STAGES}
    failures = failures_of(folder)
    missing = [stage for stage in wanted if found[stage] is None]
    status: Status = "done"
    if missing:
        status = "failed" if failures and missing == wanted else "partial" if missing != wanted else "not_run"
    return Row(
        label=cell.label,
        kind=cell.kind,
        method=cell.method,
        bits=cell.bits,
        status=status,
        failures=[failure for failure in failures if failure.stage in missing],
        **_figures(found["compress"], found["evaluate"], found["tasks"], found["speed"]),
    )


def _figures(
    compressed: Compressed | None, evaluation: Evaluation | None, tasks: Tasks | None, speed: Speed | None
) -> dict[str, Any]:
    figures: dict[str, Any] = {}
    if compressed is not None:
        same = ("stored_bytes", "bits_per_weight", "layer_bits_per_weight", "notes")
        figures |= {name: getattr(compressed, name) for name in same}
        figures |= {"compress_s": compressed.seconds, "compress_peak_bytes": compressed.peak_bytes}
    if evaluation is not None:
        figures |= {name: getattr(evaluation, name) for name in ("perplexity", "kl_divergence", "top1_agreement")}
    if tasks is not None:
        figures["tasks"] = tasks.scores
    if speed is not None:
        same = ("artefact_bytes", "decode_tokens_per_s", "decode_p10", "decode_p90", "prefill_tokens_per_s")
        figures |= {name: getattr(speed, name) for name in same} | {"run_peak_bytes": speed.peak_bytes}
    return figures


def stages_of(settings: Settings) -> list[str]:
    """Which results a cell is to have."""
    skipped = {"tasks": not settings.tasks, "speed": not settings.speed}
    return [stage for stage in STAGES if not skipped.get(stage)]


def missing_stages(folder: Path, settings: Settings) -> list[str]:
    return [stage for stage in stages_of(settings) if not (folder / f"{stage}.json").is_file()]


def read(folder: Path, stage: str, type_: Any) -> Any:
    """A stage's result, None where there is none."""
    path = folder / f"{stage}.json"
    return read_json(path, type_) if path.is_file() else None


def failures_of(folder: Path) -> Sequence[Failure]:
    path = folder / FAILED
    return read_json(path, Failures).failures if path.is_file() else []
