"""Open whatever a user wants evaluated: a bundle in its runtime, or a checkpoint in PyTorch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from edge.core.bundle import MANIFEST, open_bundle
from edge.core.errors import EdgeError, UsageError
from edge.core.measurement import Evaluation
from edge.core.plugins import RUNTIMES
from edge.core.session import Session, SessionOptions
from edge.evaluate.run import Subject, evaluate
from edge.models.checkpoint import open_checkpoint
from edge.models.tokenizer import tokenizer_of
from edge.runtimes.torch import open_folder


def evaluate_path(
    path: str | Path,
    text: Path,
    *,
    against: str | Path | None = None,
    context_length: int | None = None,
    max_bytes: int | None = None,
    threads: int = 0,
) -> Evaluation:
    """Score `path` on the first `max_bytes` of a UTF-8 text file, beside the original where that is given."""
    words = read_text(text, max_bytes)
    session, about, tokenizer = _open(path, threads)
    original = None
    try:
        if against is not None:
            original = open_folder(open_checkpoint(against), session.context_length)
        return evaluate(
            session,
            about,
            words,
            tokenizer,
            text_name=text.name,
            original=original,
            original_name=str(against),
            context_length=context_length,
        )
    finally:
        session.close()
        if original is not None:
            original.close()


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


def _open(path: str | Path, threads: int) -> tuple[Session, Subject, Any]:
    folder = Path(path)
    if (folder / MANIFEST).is_file():
        bundle = open_bundle(folder)
        manifest = bundle.manifest
        session = RUNTIMES.load(manifest.runtime).open(bundle, SessionOptions(threads=threads))
        recipe = f"{manifest.recipe.get('name', 'float32')}, {manifest.kernels} kernels"
        size = (manifest.stored_bytes, manifest.bits_per_weight)
        return session, Subject(str(path), "artefact", manifest.name, recipe, *size), tokenizer_of(folder)
    checkpoint = open_checkpoint(path)
    recipe = checkpoint.recipe["name"] if checkpoint.recipe else "float32"
    bits = 8 * checkpoint.stored_bytes / checkpoint.parameters
    about = Subject(str(path), "torch", checkpoint.name, recipe, checkpoint.stored_bytes, bits)
    session = open_folder(checkpoint, checkpoint.spec.context_length)
    return session, about, checkpoint_tokenizer(checkpoint)


def checkpoint_tokenizer(checkpoint: Any) -> Any:
    """The tokenizer of a checkpoint of any kind, by way of the files that it would put beside a model."""
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        checkpoint.save_tokenizer(Path(folder))
        if not any(Path(folder).iterdir()):
            raise EdgeError(
                "tokenizer.missing", f"{checkpoint.source} has no tokenizer", "put tokenizer.json beside it"
            )
        return tokenizer_of(Path(folder))
