"""`edge study`: every cell in a process of its own, one after the other; the same command goes on where it stopped."""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from edge.core.console import console, info
from edge.core.errors import UsageError
from edge.core.files import full_disk_is_an_error, sha256, write_json
from edge.core.recipe import Calibration
from edge.evaluate.subject import read_text
from edge.models.checkpoint import Checkpoint, open_checkpoint
from edge.profiles.fingerprint import fingerprint
from edge.profiles.worker import environment
from edge.study import page
from edge.study.cell import Cell, Job, Settings, cells_of, folder_of
from edge.study.result import FAILED, Failure, Failures, Study, failures_of, missing_stages, row_of

DECISIVE = ("edge-deploy", "torch", "transformers", "llama-cpp-python", "onnxruntime")


def study(
    model: str | Path,
    output: str | Path,
    *,
    text: str | Path,
    methods: Sequence[str] = (),
    bits: Sequence[int] = (4, 3, 2),
    recipes: Sequence[str] = (),
    peers: Sequence[str] = (),
    samples: int = 64,
    sequence_length: int = 512,
    **options: Any,
) -> Study:
    """Measure a decoder made small in many ways; write study.json, study.html and study.md into `output`.

    methods: names, several joined by `+` where the first ones prepare the model; each with each of `bits`. recipes:
    presets or TOML files. peers: toolkits, or `toolkit:FORMAT`. samples windows of sequence_length tokens calibrate.
    options: the fields of `Settings`. A cell that fails stays in the table with its reason, and is tried again by the
    next run. Raises `UsageError` before anything is measured for what can't be asked for.
    """
    output = Path(output)
    checkpoint = open_checkpoint(model)
    options["calibration"] = Calibration(samples=samples, sequence_length=sequence_length)
    settings = _settings(checkpoint, model, Path(text), options)
    cells = cells_of(methods, bits, recipes, peers, settings)
    _refuse_uncalibrated(cells, settings)
    with full_disk_is_an_error(output):
        output.mkdir(parents=True, exist_ok=True)
    device = fingerprint()
    try:
        for cell in _told(cells, settings, output):
            _measure(cell, settings, output)
            write_json(output / "study.json", _gathered(cells, settings, output, checkpoint, device))
        _clear(cells, settings, output)
    finally:
        found = _gathered(cells, settings, output, checkpoint, device)
        write_json(output / "study.json", found)
        page.write(found, output / "study.html", output / "study.md")
    return found


def _settings(checkpoint: Checkpoint, model: str | Path, text: Path, options: dict[str, Any]) -> Settings:
    if checkpoint.spec.task != "decoder":
        hint = "`edge evaluate --against` says what one compressed model lost"
        raise UsageError("study.task", f"a study compares language models; {model} is none", hint)
    if checkpoint.compressed:
        raise UsageError("study.compressed", f"{model} is compressed already", "start from the original checkpoint")
    words = read_text(text, options.get("max_bytes"))
    calibration = options.pop("calibration_text", None)
    if calibration is not None:
        read_text(Path(calibration))
        options |= {"calibration_text": str(calibration), "calibration_sha256": sha256(Path(calibration))}
    return Settings(
        model=str(model),
        model_sha256=checkpoint.sha256,
        text=str(text),
        text_sha256=hashlib.sha256(words.encode()).hexdigest(),
        versions=dict(_versions()),
        **options,
    )


def _versions() -> list[tuple[str, str]]:
    found = []
    for name in DECISIVE:
        try:
            found.append((name, version(name)))
        except PackageNotFoundError:  # an extra that isn't installed
            continue
    return found


def _refuse_uncalibrated(cells: Sequence[Cell], settings: Settings) -> None:
    from edge.compress.method import load_method, reads_text

    def calibrated(cell: Cell) -> bool:
        steps = cell.recipe.steps if cell.recipe else []
        return cell.kind == "peer" or any(reads_text(load_method(step.method)) for step in steps)

    needing = [cell.label for cell in cells if calibrated(cell)]
    if needing and settings.calibration_text is None:
        message = f"{needing[0]} needs text to calibrate on"
        raise UsageError("calibration.missing", message, "give a plain text file: --calibration-text FILE")


def _told(cells: Sequence[Cell], settings: Settings, root: Path) -> Sequence[Cell]:
    """The cells that are not done, each announced with the time left."""
    left = [cell for cell in cells if missing_stages(folder_of(cell, settings, root), settings)]
    if len(left) < len(cells):
        info(f"{len(cells) - len(left)} of {len(cells)} cells are done already")
    start = time.monotonic()

    def announced() -> Any:
        for index, cell in enumerate(left):
            remaining = (time.monotonic() - start) / index * (len(left) - index) if index else None
            said = "" if remaining is None else f" · about {_duration(remaining)} left"
            info(f"Cell {index + 1} of {len(left)}: {cell.label}{said}")
            yield cell

    return announced()


def _clear(cells: Sequence[Cell], settings: Settings, root: Path) -> None:
    """Delete what cells had in common, once nothing is left that could need it: logits take gigabytes."""
    whole = not any(missing_stages(folder_of(cell, settings, root), settings) for cell in cells)
    if whole and not settings.keep_models:
        shutil.rmtree(root / "shared", ignore_errors=True)


def _duration(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 90 else f"{seconds / 60:.0f} min"


def _measure(cell: Cell, settings: Settings, root: Path) -> None:
    """Have a process measure a cell. What it can't say itself, such as that it was killed, is said here."""
    folder = folder_of(cell, settings, root)
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "cell.json", Job(cell, settings))
    code = _run(folder)
    failures = list(failures_of(folder))
    missing = missing_stages(folder, settings)
    if code and missing and not failures:
        ended = f"was ended by signal {-code}" if code < 0 else f"ended with code {code}"
        hint = "signal 9 mostly means too little memory; the same command tries it again"
        failures = [Failure(missing[0], "study.died", f"the cell's process {ended}", hint)]
        write_json(folder / FAILED, Failures(failures))
    for failure in failures:
        info(f"{cell.label}: no {failure.stage}: {failure.message}")


def _run(folder: Path) -> int:
    command = [sys.executable, "-m", "edge.study.worker", str(folder), *(["--quiet"] if console.quiet else [])]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=sys.stderr, env=environment()) as process:
        try:
            return process.wait()
        except BaseException:
            if process.stdin is not None:
                process.stdin.close()  # it ends with its stdin
            process.wait()
            raise


def _gathered(
    cells: Sequence[Cell], settings: Settings, root: Path, checkpoint: Checkpoint, device: dict[str, Any]
) -> Study:
    rows = [row_of(cell, folder_of(cell, settings, root), settings) for cell in cells]
    return Study(model=checkpoint.name, parameters=checkpoint.parameters, settings=settings, device=device, rows=rows)
