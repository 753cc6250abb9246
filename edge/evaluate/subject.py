"""Open whatever a user wants evaluated: a bundle in its runtime, or a checkpoint in PyTorch."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from edge.core.bundle import MANIFEST, Bundle, open_bundle
from edge.core.errors import EdgeError, UsageError
from edge.core.measurement import Agreement, Evaluation
from edge.core.plugins import RUNTIMES
from edge.core.session import SessionOptions
from edge.evaluate.answers import compare_answers, sound_sources, text_sources
from edge.evaluate.forward import compare_images, compare_texts
from edge.evaluate.recorded import RecordedOriginal
from edge.evaluate.run import Subject, evaluate
from edge.models.checkpoint import Checkpoint, open_checkpoint
from edge.models.folder import load_config
from edge.models.forward import ImageModel, TextModel, open_forward
from edge.models.generation import source_limit
from edge.models.tokenizer import tokenizer_of
from edge.runtimes.torch import open_folder


def evaluate_path(
    path: str | Path,
    text: Path | None,
    *,
    against: str | Path | None = None,
    images: Path | None = None,
    audio: Path | None = None,
    context_length: int | None = None,
    max_bytes: int | None = None,
    threads: int = 0,
    records: Path | None = None,
) -> Evaluation | Agreement:
    """Score `path` on the first `max_bytes` of a UTF-8 text file, beside the original where that is given.

    records: a folder where a decoder's original keeps its logits, for further models on the same text.

    An encoder or a vision model is held against the original, which it needs; images: a folder of them, synthetic ones
    where None.
    """
    opened = open_bundle(Path(path)) if (Path(path) / MANIFEST).is_file() else open_checkpoint(path)
    task = opened.manifest.task if isinstance(opened, Bundle) else opened.spec.task
    if audio is not None and task != "encoder_decoder":
        raise UsageError("evaluate.audio", f"{path} doesn't hear", "leave --audio away")
    if task == "encoder_decoder":
        return _answers(opened, path, text, against, audio, max_bytes, threads)
    if task in ("encoder", "vision"):
        return _agreement(opened, path, text, against, images, max_bytes, threads)
    if images is not None:
        raise UsageError("evaluate.images", f"{path} doesn't see images", "leave --images away")
    words = read_text(_required(text), max_bytes)
    session, about = _open(opened, path, threads)
    original = None
    try:
        tokenizer = tokenizer_of(opened.path) if isinstance(opened, Bundle) else checkpoint_tokenizer(opened)
        if against is not None:
            original = _open_original(against, session.context_length, records)
        return evaluate(
            session,
            about,
            words,
            tokenizer,
            text_name=_required(text).name,
            original=original,
            original_name=str(against),
            context_length=context_length,
        )
    finally:
        session.close()
        if original is not None:
            original.close()


def _open_original(against: str | Path, context_length: int, records: Path | None) -> Any:
    if records is not None:
        return RecordedOriginal(against, records)
    return open_folder(open_checkpoint(against), context_length)


def _required(text: Path | None) -> Path:
    if text is None:
        raise UsageError("evaluate.text", "there is no text to evaluate on", "give --text FILE")
    return text


def _agreement(
    opened: Bundle | Checkpoint,
    path: str | Path,
    text: Path | None,
    against: str | Path | None,
    images: Path | None,
    max_bytes: int | None,
    threads: int,
) -> Agreement:
    """An encoder or a vision model beside its original."""
    if against is None:
        message = "an encoder or a vision model has no perplexity: it is held against the original"
        raise UsageError("evaluate.against", message, "give --against ORIGINAL")
    reference = open_checkpoint(against)
    task = opened.manifest.task if isinstance(opened, Bundle) else opened.spec.task
    if reference.spec.task != task:
        hint = "compare a model with the checkpoint that it was made from"
        raise UsageError("evaluate.original", f"{against} is a model of another kind ({reference.spec.task})", hint)
    session, about = _open(opened, path, threads)
    original = open_folder(reference, reference.spec.context_length)
    try:
        model = _forward_model(opened, session)
        if isinstance(model, ImageModel):
            return compare_images(model, original, about, images, original_name=str(against))
        if images is not None:
            raise UsageError("evaluate.images", f"{path} reads text, not images", "leave --images away")
        words = read_text(_required(text), max_bytes)
        return compare_texts(model, original, about, words, name=_required(text).name, original_name=str(against))
    finally:
        session.close()
        original.close()


def _answers(
    opened: Bundle | Checkpoint,
    path: str | Path,
    text: Path | None,
    against: str | Path | None,
    audio: Path | None,
    max_bytes: int | None,
    threads: int,
) -> Agreement:
    """An encoder-decoder beside its original: on sentences of a text, or on sound."""
    if against is None:
        message = "an encoder-decoder is held against the original's answers"
        raise UsageError("evaluate.against", message, "give --against ORIGINAL")
    reference = open_checkpoint(against)
    inputs = reference.spec.inputs
    hears = "input_features" in inputs
    if reference.spec.task != "encoder_decoder":
        hint = "compare a model with the checkpoint that it was made from"
        raise UsageError("evaluate.original", f"{against} is a model of another kind ({reference.spec.task})", hint)
    if hears != (audio is not None):
        wanted = "--audio FOLDER with WAV files" if hears else "--text FILE"
        raise UsageError("evaluate.source", f"{path} reads {'sound' if hears else 'text'}", f"give {wanted}")
    with tempfile.TemporaryDirectory() as folder:
        reference.save_tokenizer(Path(folder))
        if audio is not None:
            config = reference.config
            sources = sound_sources(Path(folder), audio, [1, config.num_mel_bins, 2 * config.max_source_positions])
        else:
            words = read_text(_required(text), max_bytes)
            sources = text_sources(tokenizer_of(Path(folder)), words, source_limit(reference.config))
    session, about = _open(opened, path, threads)
    original = open_folder(reference, session.context_length)
    data = (audio or _required(text)).name
    try:
        return compare_answers(session, original, about, reference, sources, data=data, original_name=str(against))
    finally:
        session.close()
        original.close()


def _forward_model(opened: Bundle | Checkpoint, session: Any) -> TextModel | ImageModel:
    if isinstance(opened, Bundle):
        return open_forward(session, opened.path, load_config(opened.path), opened.manifest.context_length)
    with tempfile.TemporaryDirectory() as folder:
        opened.save_tokenizer(Path(folder))
        return open_forward(session, Path(folder), opened.config, opened.spec.context_length)


def read_text(path: Path, max_bytes: int | None = None) -> str:
    """A UTF-8 file's text, or that of its first `max_bytes`, cut back to a whole character."""
    try:
        data = path.read_bytes()[:max_bytes]
    except OSError as error:
        hint = "give a plain UTF-8 text file"
        raise UsageError("text.missing", f"can't read {path}: {error.strerror}", hint) from error
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        if max_bytes is not None and error.start > len(data) - 4:
            return data[: error.start].decode("utf-8")
        hint = "convert it, for example with iconv -t utf-8"
        raise UsageError("text.encoding", f"{path} is not UTF-8 at byte {error.start}", hint) from error


def open_path(path: str | Path, threads: int = 0) -> tuple[Any, Any]:
    """A session of a bundle or of a checkpoint, and its tokenizer."""
    opened = open_bundle(Path(path)) if (Path(path) / MANIFEST).is_file() else open_checkpoint(path)
    session, _ = _open(opened, path, threads)
    return session, tokenizer_of(opened.path) if isinstance(opened, Bundle) else checkpoint_tokenizer(opened)


def _open(opened: Bundle | Checkpoint, path: str | Path, threads: int) -> tuple[Any, Subject]:
    """A session, and what is to be said of it."""
    if isinstance(opened, Bundle):
        manifest = opened.manifest
        session = RUNTIMES.load(manifest.runtime).open(opened, SessionOptions(threads=threads))
        recipe = f"{manifest.recipe.get('name', 'float32')}, {manifest.kernels} kernels"
        size = (manifest.stored_bytes, manifest.bits_per_weight)
        return session, Subject(str(path), "artefact", manifest.name, recipe, *size)
    recipe = opened.recipe["name"] if opened.recipe else "float32"
    bits = 8 * opened.stored_bytes / opened.parameters
    about = Subject(str(path), "torch", opened.name, recipe, opened.stored_bytes, bits)
    return open_folder(opened, opened.spec.context_length), about


def checkpoint_tokenizer(checkpoint: Any) -> Any:
    """The tokenizer of a checkpoint of any kind, by way of the files that it would put beside a model."""
    with tempfile.TemporaryDirectory() as folder:
        checkpoint.save_tokenizer(Path(folder))
        if not any(Path(folder).iterdir()):
            raise EdgeError(
                "tokenizer.missing", f"{checkpoint.source} has no tokenizer", "put tokenizer.json beside it"
            )
        return tokenizer_of(Path(folder))
