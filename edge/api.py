"""The whole job in Python: what the command line calls, and what a script calls as `edge.compress(...)` and so on."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from edge.answer import EncoderDecoderModel
from edge.core.bundle import MANIFEST, Bundle, Gates, Manifest, open_bundle, seal
from edge.core.console import info
from edge.core.errors import EngineMissing, GateFailed, UsageError, nearest
from edge.core.files import atomic_folder
from edge.core.measurement import Agreement, Evaluation, Measurement
from edge.core.plugins import RUNTIMES, TARGETS
from edge.core.recipe import Recipe
from edge.core.session import Sampling, Session, SessionOptions, generate
from edge.core.target import Kernels, KvCacheType, Task

if TYPE_CHECKING:
    from edge.compress.finish import TaskLoss
    from edge.models.checkpoint import Checkpoint
    from edge.models.forward import ImageModel, TextModel
    from edge.profiles.compare import Comparison

DEFAULT_CONTEXT = 2048
EXPORTERS: dict[Task, str] = {
    "decoder": "export",
    "encoder": "generic",
    "vision": "generic",
    "encoder_decoder": "encoder_decoder",
}


def compress(
    source: str | Path,
    recipe: str | Recipe,
    output: str | Path,
    *,
    calibration_text: str | Path | None = None,
    force: bool = False,
    task_loss: TaskLoss | None = None,
) -> Path:
    """Compress a checkpoint (folder, hub id or GGUF) with a recipe (preset, TOML file or `Recipe`) into a folder.

    task_loss: a function of logits [windows, length, vocabulary] and token ids [windows, length] that steps which train
    lower in the place of next-token cross entropy.
    """
    from edge.compress.run import compress as run

    text = Path(calibration_text) if calibration_text is not None else None
    return run(source, recipe, Path(output), calibration_text=text, force=force, task_loss=task_loss)


def export(
    source: str | Path,
    output: str | Path,
    *,
    target: str = "cpu",
    runtime: str = "onnx",
    kernels: Kernels = "edge",
    context_length: int | None = None,
    kv_cache: KvCacheType | None = None,
    force: bool = False,
) -> Bundle:
    """Export a checkpoint or a compressed folder as a bundle, and hold it against PyTorch before it takes its name.

    context_length: tokens that the caches hold; by default the model's own, at most 2048. kv_cache: how they hold
    them, by default float16 with edge's kernels (as llama.cpp does) and float32 with the builtin ones. Raises
    `GateFailed` when the exported artefact doesn't compute what PyTorch computes.
    """
    from edge.models.checkpoint import open_checkpoint

    platform = TARGETS.load(target)
    _check_runtime(runtime, platform.TARGET.name, platform.TARGET.runtimes)
    output = Path(output)
    with atomic_folder(output, force=force) as folder:
        checkpoint = open_checkpoint(source)
        if checkpoint.activations == "a4":
            hint = 'compress with activations = "a8"; `edge evaluate` shows the folder\'s quality in PyTorch'
            raise UsageError("export.activations", "no kernel computes with 4-bit activations", hint)
        exporter = _exporter(runtime, checkpoint.spec.task)
        context = _context_length(checkpoint, context_length)
        info(f"Writing {checkpoint.spec.model_type} for {target}, {runtime}, {kernels} kernels, context {context}")
        manifest = exporter.write(checkpoint, folder, kernels=kernels, context_length=context, kv_cache=kv_cache)
        notes = [*manifest.notes, *platform.finish(folder, manifest.kernels)]
        manifest = msgspec.structs.replace(manifest, target=target, notes=notes)
        try:
            manifest = msgspec.structs.replace(manifest, gates=_gates(checkpoint, folder, manifest, exporter))
        except EngineMissing as error:
            info(f"Not run beside PyTorch: {error}")
            note = f"its weights are the model's, but it was not run beside PyTorch: {error}; then export it again"
            manifest = msgspec.structs.replace(manifest, notes=[*notes, note])
        seal(folder, manifest)
    return open_bundle(output, verify=False)


def _check_runtime(runtime: str, target: str, served: Sequence[str]) -> None:
    if runtime not in served:
        raise UsageError("export.runtime", f"target '{target}' has no runtime '{runtime}'", nearest(runtime, served))


def _exporter(runtime: str, task: Task) -> Any:
    """The module that writes models of a task for a runtime."""
    name = f"edge.exporters.{runtime}.{EXPORTERS[task]}"
    if importlib.util.find_spec(name) is None:
        message = f"{runtime} has no place for a model of the task '{task}'"
        raise UsageError("export.task", message, "use --runtime onnx")
    return importlib.import_module(name)


def _context_length(checkpoint: Checkpoint, asked: int | None) -> int:
    longest = checkpoint.spec.context_length
    if asked is None or checkpoint.spec.task == "vision":
        return min(longest, DEFAULT_CONTEXT)
    if not 2 <= asked <= longest:
        raise UsageError("export.context", f"a context of {asked} tokens is not possible", f"use 2 to {longest}")
    return asked


def _gates(checkpoint: Checkpoint, folder: Path, manifest: Manifest, exporter: Any) -> Gates:
    """Run the artefact beside the PyTorch model on the sample inputs; time its operators against their fp32 twins."""
    from edge.evaluate.hold import hold

    info("Holding the exported model against PyTorch")
    if not exporter.codes_equal(checkpoint, folder, manifest):
        hint = "don't deploy it; report the model"
        raise GateFailed("gate.codes", "the exported weights are not the compressed model's", hint)
    result = hold(checkpoint, folder, manifest, exporter)
    result.check(manifest.name)
    slow = exporter.slow_nodes(folder, manifest)
    for row in slow:
        info(f"slower than its fp32 twin: {row}")
    return result.gates(True, slow)


@dataclass
class LanguageModel:
    """A bundle, opened and ready to answer."""

    bundle: Bundle
    session: Session
    tokenizer: Any

    def generate(
        self,
        prompt: str,
        *,
        system: str | None = None,
        chat: bool = True,
        max_tokens: int = 256,
        sampling: Sampling | None = None,
    ) -> Iterator[str]:
        """Yield the answer piece by piece. `chat` puts the prompt through the model's chat template, if it has one."""
        from edge.models.tokenizer import prompt_tokens, stream_text

        tokens = prompt_tokens(self.tokenizer, prompt, system=system, chat=chat)
        stop = self.bundle.manifest.eos_token_ids
        return stream_text(
            self.tokenizer, generate(self.session, tokens, max_tokens=max_tokens, stop=stop, sampling=sampling)
        )

    def close(self) -> None:
        self.session.close()


def load(path: str | Path, *, threads: int = 0) -> LanguageModel | EncoderDecoderModel | TextModel | ImageModel:
    """Open a bundle for use. Every file's hash is checked first."""
    from edge.models.tokenizer import tokenizer_of

    bundle = open_bundle(Path(path))
    session = RUNTIMES.load(bundle.manifest.runtime).open(bundle, SessionOptions(threads=threads))
    if bundle.manifest.task in ("encoder", "vision"):
        from edge.models.folder import load_config
        from edge.models.forward import open_forward

        return open_forward(session, bundle.path, load_config(bundle.path), bundle.manifest.context_length)
    model = EncoderDecoderModel if bundle.manifest.task == "encoder_decoder" else LanguageModel
    return model(bundle, session, tokenizer_of(bundle.path))


def evaluate(
    path: str | Path,
    text: str | Path | None = None,
    *,
    against: str | Path | None = None,
    images: str | Path | None = None,
    audio: str | Path | None = None,
    context_length: int | None = None,
    max_bytes: int | None = None,
    threads: int = 0,
) -> Evaluation | Agreement:
    """Quality of a bundle (in its runtime) or of a checkpoint (in PyTorch) on a text file.

    against: the original checkpoint, for KL divergence and top-1 agreement; another model than a decoder is
    compared with it alone. images: a folder, for a vision model; synthetic images where there is none. audio: a WAV
    file or a folder of them, for a model that hears. max_bytes: use the text's beginning only.
    """
    from edge.evaluate.subject import evaluate_path

    return evaluate_path(
        path,
        None if text is None else Path(text),
        against=against,
        images=None if images is None else Path(images),
        audio=None if audio is None else Path(audio),
        context_length=context_length,
        max_bytes=max_bytes,
        threads=threads,
    )


def profile(
    path: str | Path,
    *,
    device: str = "cpu",
    output: str | Path | None = None,
    fresh: bool = False,
    meter_csv: str | Path | None = None,
    onnxruntime: str | Path | None = None,
    prepare: bool = False,
    **options: Any,
) -> Measurement:
    """Measure a bundle on a device: latency, memory, operators, energy, with the raw samples.

    output: where the result is written, also of a run that failed on its way. A run that was cut off is taken up where
    it stopped, unless `fresh`. meter_csv: the file that an external power meter writes meanwhile, and has written when
    the last idle stretch ends. onnxruntime: the library for the native runner, where not edge's own choice. prepare:
    bring the device into a steady state meanwhile (screen, radio, clocks), and back. options: the fields of
    `edge.profiles.plan.Plan`: prompt_tokens, generated_tokens, repetitions, threads, cores, mode ..
    """
    from edge.profiles.run import profile as run

    options |= {} if meter_csv is None else {"meter_csv": str(Path(meter_csv).absolute())}
    return run(
        open_bundle(Path(path)),
        device=device,
        fresh=fresh,
        output=None if output is None else Path(output),
        onnxruntime=None if onnxruntime is None else Path(onnxruntime),
        prepare=prepare,
        **options,
    )


def profile_sweep(
    path: str | Path,
    *,
    prompt_tokens: Sequence[int] = (),
    generated_tokens: Sequence[int] = (),
    threads: Sequence[int] = (),
    cores: Sequence[str] = (),
    turns: str | None = None,
    device: str = "cpu",
    output: str | Path | None = None,
    meter_csv: str | Path | None = None,
    **options: Any,
) -> list[Measurement]:
    """`profile` for every combination of lengths, threads and cores; an empty sequence leaves the default.

    cores: such as `0-3`, or `auto` for each cluster of the device alone and the fastest ones together. turns: of a
    conversation, `64:32,32:64` or a JSON file of prompts. output: NAME.json stands for NAME-p128-t2.json and so on,
    one for each, where there are several. options: as `profile` takes them.
    """
    from edge.profiles import conversation, sweep
    from edge.profiles.clusters import parse_cores

    bundle = open_bundle(Path(path))
    sets = sweep.cores_of(device) if sweep.AUTO in cores else [parse_cores(one) for one in cores]
    lengths = {"prompt_tokens": prompt_tokens, "generated_tokens": generated_tokens}
    several = sweep.variants(**lengths, threads=threads, cores=sets)
    options |= {} if meter_csv is None else {"meter_csv": str(Path(meter_csv).absolute())}
    options |= {} if turns is None else conversation.turns(turns, bundle.path)
    return sweep.sweep(bundle, several, device=device, output=None if output is None else Path(output), **options)


def compare(
    a: str | Path,
    b: str | Path,
    *,
    rounds: int = 4,
    anyway: bool = False,
    max_regression_percent: float = 0.0,
    device: str = "cpu",
    **options: Any,
) -> Comparison:
    """Which of two is faster, with intervals and the noise floor: two bundles, measured in turns, or two results.

    rounds: of four runs each, A B B A, each as `profile` does it with `device` and `options`. anyway: compare results
    of different devices. Raises `UsageError` for what can't be compared.
    """
    from edge.profiles import compare as sides

    paths = Path(a), Path(b)
    labels = (str(a), str(b))
    bundles = [(path / MANIFEST).is_file() for path in paths]
    if any(bundles) and not all(bundles):
        hint = "profile the bundle and give its result, or give two bundles"
        raise UsageError("compare.kinds", "one is a bundle, the other a result", hint)
    if not all(bundles):
        runs = [sides.load(path) for path in paths]
        return sides.compare(*runs, anyway=anyway, max_regression_percent=max_regression_percent, labels=labels)
    from edge.profiles import turns

    options |= {"device": device, "fresh": True}
    opened = [open_bundle(path, verify=False) for path in paths]  # every run verifies its own
    taken = turns.take(*opened, lambda bundle: profile(bundle.path, **options), rounds=rounds, options=options)
    return sides.compare(*taken, interleaved=True, max_regression_percent=max_regression_percent, labels=labels)


def import_results(paths: Sequence[str | Path], *, etrecord: str | Path | None = None) -> list[Measurement]:
    """Other tools' results as measurements: llama-bench's JSON, ONNX Runtime's profile, ExecuTorch's ETDump."""
    from edge.profiles.imports import read

    record = None if etrecord is None else Path(etrecord)
    return [measurement for path in paths for measurement in read(Path(path), record)]


def report(results: Sequence[str | Path], output: str | Path, *, title: str = "edge report") -> Path:
    """One self-contained HTML file, and a Markdown card beside it, from result files of `evaluate` and `profile`."""
    from edge.report import card, html
    from edge.report.results import load_results

    loaded = load_results([Path(p) for p in results])
    output = Path(output)
    for write, path in ((html.write, output), (card.write, output.with_suffix(".md"))):
        write(loaded.evaluations, loaded.measurements, path, title=title, comparisons=loaded.comparisons)
    return output


def trace(results: Sequence[str | Path], output: str | Path, *, engine_trace: str | Path | None = None) -> Path:
    """One Perfetto trace of the runs in result files of `profile`. Needs the extra `trace`.

    engine_trace: ONNX Runtime's own JSON trace of the only run, for every operator call in place of an average step.
    """
    from edge.report.results import load_results
    from edge.report.trace import write

    loaded = load_results([Path(p) for p in results])
    return write(loaded.measurements, Path(output), engine_trace=None if engine_trace is None else Path(engine_trace))
