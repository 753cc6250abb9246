"""The main job from start to end. Each step leaves its result in a folder named by its inputs; later runs reuse it."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import msgspec

from edge import __version__, api
from edge.core.bundle import open_bundle
from edge.core.console import info
from edge.core.files import read_json, sha256, write_json
from edge.core.measurement import Evaluation, Measurement
from edge.core.recipe import load_recipe
from edge.models import samples
from edge.models.checkpoint import open_checkpoint
from edge.models.offgrid import take_off_grid
from edge.profiles import statistics

EVALUATED_BYTES = 50_000
T = TypeVar("T", Evaluation, Measurement)


class DemoResult(msgspec.Struct, frozen=True):
    """What the demo found. Speeds are medians; peak_bytes is the resident peak of the profiled process."""

    model: str
    recipe: str
    stored_bytes: int
    bits_per_weight: float
    perplexity: float
    perplexity_fp32: float
    prefill_tokens_per_s: float
    decode_tokens_per_s: float
    ttft_ms: float
    peak_bytes: int
    report: str


@dataclass(frozen=True)
class _Inputs:
    name: str
    source: Path | str
    calibration: Path
    text: Path


def run_demo(model: str | None, recipe: str, output: Path, *, threads: int = 0, force: bool = False) -> DemoResult:
    """Compress, export, evaluate, profile and report `model` (the sample model when None) under `output`."""
    chosen = load_recipe(recipe)  # a wrong recipe is known before anything is fetched
    inputs = _inputs(model, output)
    folder = output / f"{inputs.name}-{chosen.name}-{_key(inputs, msgspec.json.encode(chosen))}"
    measured = folder / (f"measurement-{threads}-threads.json" if threads else "measurement.json")
    small, bundle = folder / "model", folder / "bundle"
    info(f"1/5  Compress with {chosen.name}")
    if force or not small.exists():
        api.compress(inputs.source, recipe, small, calibration_text=inputs.calibration, force=True)
    info("2/5  Export to ONNX Runtime")
    if force or not bundle.exists():
        api.export(small, bundle, force=True)
    info("3/5  Evaluate against the original")
    evaluation = _kept(folder / "evaluation.json", Evaluation, force, lambda: _evaluate(inputs, bundle, threads))
    info("4/5  Profile on this CPU")
    measurement = _kept(measured, Measurement, force, lambda: api.profile(bundle, threads=threads))
    info("5/5  Report")
    report = api.report(
        [folder / "evaluation.json", measured], folder / "report.html", title=f"{inputs.name} · {chosen.name}"
    )
    return _result(inputs.name, chosen.name, bundle, evaluation, measurement, report)


def _inputs(model: str | None, output: Path) -> _Inputs:
    calibration, text = samples.calibration_and_evaluation_text()
    if model is not None:
        return _Inputs(open_checkpoint(model).name, model, calibration, text)
    source = output / "SmolLM2-135M-Instruct"
    if not source.exists():
        info("The sample comes on a 4-bit grid, where 4 bits cost nothing: taking it off, its function unchanged")
        take_off_grid(open_checkpoint(samples.fetch(samples.SMOLLM2)), source)
    return _Inputs("SmolLM2-135M-Instruct", source, calibration, text)


def _key(inputs: _Inputs, recipe: bytes) -> str:
    """Names the work by what goes into it, so that a change of any of it starts afresh."""
    parts = (open_checkpoint(inputs.source).sha256, recipe.hex(), sha256(inputs.calibration), __version__)
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:8]


def _kept(path: Path, type_: type[T], force: bool, make: Callable[[], T]) -> T:
    if force or not path.exists():
        write_json(path, make())
    return read_json(path, type_)


def _evaluate(inputs: _Inputs, bundle: Path, threads: int) -> Evaluation:
    return api.evaluate(bundle, inputs.text, against=inputs.source, max_bytes=EVALUATED_BYTES, threads=threads)


def _result(
    name: str, recipe: str, bundle: Path, evaluation: Evaluation, measurement: Measurement, report: Path
) -> DemoResult:
    manifest = open_bundle(bundle, verify=False).manifest
    return DemoResult(
        model=name,
        recipe=recipe,
        stored_bytes=manifest.stored_bytes,
        bits_per_weight=manifest.bits_per_weight,
        perplexity=evaluation.perplexity,
        perplexity_fp32=evaluation.perplexity_original or float("nan"),
        prefill_tokens_per_s=statistics.prefill_tokens_per_s(measurement).median,
        decode_tokens_per_s=statistics.decode_tokens_per_s(measurement).median,
        ttft_ms=statistics.ttft_ms(measurement).median,
        peak_bytes=measurement.peak_bytes,
        report=str(report),
    )
