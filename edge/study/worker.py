"""The process of one cell: it compresses, evaluates, times, and leaves each stage's result in a file of its own.

Its memory is the cell's alone. A stage that is done is not done again. It ends when its stdin does: whoever asked is
gone.
"""

from __future__ import annotations

import os
import resource
import shutil
import signal
import sys
import tempfile
import threading
import time
import traceback
from pathlib import Path
from typing import Any

from edge import api
from edge.compress.calibrate import read_text as read_calibration
from edge.compress.calibrate import token_windows
from edge.core.bundle import Bundle, open_bundle
from edge.core.console import set_verbosity
from edge.core.errors import EdgeError, UsageError
from edge.core.files import atomic_folder, read_json, write_json, write_text
from edge.core.measurement import Evaluation
from edge.evaluate.recorded import RecordedOriginal
from edge.evaluate.run import Subject, evaluate
from edge.evaluate.subject import checkpoint_tokenizer, evaluate_path, open_path, read_text
from edge.evaluate.tasks import score_tasks
from edge.models.checkpoint import Checkpoint, open_checkpoint
from edge.profiles import statistics
from edge.runtimes.probes.memory import high_water_mark
from edge.study import peers
from edge.study.cell import ORIGINAL, Job
from edge.study.result import FAILED, Compressed, Failure, Failures, Speed, Tasks, missing_stages

FREE_FOLD = 3  # free disk to recorded logits, below which the original runs again for every cell


def main() -> None:
    folder = Path(sys.argv[1])
    os.dup2(2, 1)  # engines print as they like
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # whoever asked hears it too, and goes
    threading.Thread(target=_end_with_stdin, daemon=True).start()
    set_verbosity(-1 if "--quiet" in sys.argv else 0)
    (folder / FAILED).unlink(missing_ok=True)
    job = read_json(folder / "cell.json", Job)
    failures = run(CellRun(folder, job), missing_stages(folder, job.settings))
    if failures:
        write_json(folder / FAILED, Failures(failures))
        sys.exit(1)
    if not job.settings.keep_models:
        for name in ("model", "bundle"):
            shutil.rmtree(folder / name, ignore_errors=True)


def _end_with_stdin() -> None:
    os.read(0, 1)
    os._exit(1)


def run(cell: CellRun, stages: list[str]) -> list[Failure]:
    """Do the stages in order. One that fails stops none but those that need what it makes."""
    failures: list[Failure] = []
    for stage in stages:
        try:
            write_json(cell.folder / f"{stage}.json", getattr(cell, stage)())
        except EdgeError as error:
            failures.append(Failure(stage, error.code, error.message, error.hint))
        except Exception as error:  # a cell that fails stays in the table, whatever the reason
            write_text(cell.folder / f"{stage}-traceback.txt", traceback.format_exc())
            reason = " ".join(f"{type(error).__name__}: {error}".split())[:300]
            failures.append(Failure(stage, "study.crashed", reason, f"see {stage}-traceback.txt in the cell's folder"))
        if failures and stage == "compress":
            break
    return failures


class CellRun:
    """What each stage does, by its name."""

    def __init__(self, folder: Path, job: Job) -> None:
        self.folder, self.cell, self.settings = folder, job.cell, job.settings
        self.shared = folder.parent.parent / "shared"

    def compress(self) -> Compressed:
        if self.cell.kind == "original":
            checkpoint = open_checkpoint(self.settings.model)
            bits = 8 * checkpoint.stored_bytes / checkpoint.parameters
            return Compressed(checkpoint.stored_bytes, bits, _layer_bits(checkpoint))
        open_checkpoint(self.settings.model)  # imports what its time shall not have in it
        resumed = (self.folder / ".model.partial").exists()
        start = time.perf_counter()
        made = self._make()
        seconds = time.perf_counter() - start
        peak = high_water_mark() or 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        effort: dict[str, Any] = {} if resumed else {"seconds": seconds, "peak_bytes": peak}
        if isinstance(made, Bundle):
            manifest = made.manifest
            notes = [note for note in manifest.notes if "stored" in note]
            return Compressed(manifest.stored_bytes, manifest.bits_per_weight, **effort, notes=notes)
        notes = ["it went on with an interrupted run: its time and memory are not known"] if resumed else []
        bits = 8 * made.stored_bytes / made.parameters
        return Compressed(made.stored_bytes, bits, _layer_bits(made), **effort, notes=notes)

    def evaluate(self) -> Evaluation:
        settings, text = self.settings, Path(self.settings.text)
        options = {"context_length": settings.context_length, "max_bytes": settings.max_bytes}
        if self.cell.kind == "original":
            return self._evaluate_original(text)
        made = self._made()
        path = made.path if isinstance(made, Bundle) else self.folder / "model"
        result = evaluate_path(
            path, text, against=settings.model, threads=settings.threads, records=self._records(), **options
        )
        if not isinstance(result, Evaluation):
            raise UsageError("study.task", f"{settings.model} is no language model", "study a decoder")
        return result

    def tasks(self) -> Tasks:
        made = self._made()
        session, tokenizer = open_path(made.path if isinstance(made, Bundle) else made.source, self.settings.threads)
        try:
            scores = score_tasks(session, tokenizer, self.settings.tasks, limit=self.settings.task_limit)
            return Tasks(list(scores))
        finally:
            session.close()

    def speed(self) -> Speed:
        settings = self.settings
        made = self._made()
        bundle = made if isinstance(made, Bundle) else api.export(made.source, self.folder / "bundle", force=True)
        measurement = api.profile(
            bundle.path,
            fresh=True,
            prompt_tokens=settings.prompt_tokens,
            generated_tokens=settings.generated_tokens,
            threads=settings.threads,
            warm_ups=1,
            min_seconds=1.0,
            idle_s=0.0,
        )
        decode = statistics.decode_tokens_per_s(measurement)
        files = bundle.path.glob(f"{bundle.manifest.artefact}*")
        return Speed(
            runtime=bundle.manifest.runtime,
            kernels=bundle.manifest.kernels,
            artefact_bytes=sum(file.stat().st_size for file in files),
            decode_tokens_per_s=decode.median,
            decode_p10=decode.p10,
            decode_p90=decode.p90,
            prefill_tokens_per_s=statistics.prefill_tokens_per_s(measurement).median,
            peak_bytes=measurement.peak_bytes,
        )

    def _made(self) -> Checkpoint | Bundle:
        """The model to look at, made again where it was deleted after an earlier run."""
        if self.cell.kind == "original":
            return open_checkpoint(self.settings.model)
        if self.cell.kind == "peer":
            done = (self.folder / "bundle").is_dir()
            return open_bundle(self.folder / "bundle", verify=False) if done else self._make()
        done = (self.folder / "model").is_dir()
        return open_checkpoint(self.folder / "model") if done else self._make()

    def _make(self) -> Checkpoint | Bundle:
        settings = self.settings
        if self.cell.kind == "peer":
            return self._make_peer()
        calibration = {"calibration_text": settings.calibration_text}
        return open_checkpoint(
            api.compress(settings.model, self.cell.recipe, self.folder / "model", **calibration, force=True)
        )

    def _make_peer(self) -> Bundle:
        settings = self.settings
        checkpoint = open_checkpoint(settings.model)
        given = Path(settings.calibration_text) if settings.calibration_text else None
        text = read_calibration(settings.calibration, given)
        with tempfile.TemporaryDirectory() as tokenizer:
            checkpoint.save_tokenizer(Path(tokenizer))
            length = checkpoint.spec.context_length
            windows = token_windows(text.text, Path(tokenizer), settings.calibration, length)
        context = min(checkpoint.spec.context_length, api.DEFAULT_CONTEXT)
        with atomic_folder(self.folder / "bundle", force=True) as folder:
            toolkit = peers.load(self.cell.toolkit)
            toolkit.prepare(
                settings.model, self.cell.format, folder, windows=windows, context_length=context, shared=self.shared
            )
        return open_bundle(self.folder / "bundle", verify=False)

    def _evaluate_original(self, text: Path) -> Evaluation:
        """Of the logits that the other cells are held against, where those are kept."""
        settings, records = self.settings, self._records()
        if records is None:
            found = evaluate_path(
                settings.model, text, context_length=settings.context_length, max_bytes=settings.max_bytes
            )
            if isinstance(found, Evaluation):
                return found
        checkpoint = open_checkpoint(settings.model)
        bits = 8 * checkpoint.stored_bytes / checkpoint.parameters
        about = Subject(settings.model, "torch", checkpoint.name, ORIGINAL, checkpoint.stored_bytes, bits)
        session = RecordedOriginal(settings.model, records or self.shared)
        words, tokenizer = read_text(text, settings.max_bytes), checkpoint_tokenizer(checkpoint)
        try:
            context = settings.context_length
            return evaluate(session, about, words, tokenizer, text_name=text.name, context_length=context)
        finally:
            session.close()

    def _records(self) -> Path | None:
        """Where the original's logits are kept, if the disk has room: a float32 for each token and word."""
        size = Path(self.settings.text).stat().st_size
        tokens = min(size, self.settings.max_bytes or size) / 3
        needed = 4 * tokens * open_checkpoint(self.settings.model).spec.vocab_size
        enough = shutil.disk_usage(self.folder).free > FREE_FOLD * needed
        return self.shared / "original" if enough else None


def _layer_bits(checkpoint: Checkpoint) -> float | None:
    """Bits per weight of the matrices in the decoder layers."""
    linears = [linear for layer in checkpoint.spec.layers for group in layer.linears() for linear in group]
    names = {linear.weight for linear in linears}
    weights = sum(rows * columns for rows, columns in map(checkpoint.matrix_shape, names))
    return 8 * sum(map(checkpoint.stored_bytes_of, names)) / weights


if __name__ == "__main__":
    main()
