"""An exported model run beside its PyTorch reference on sample inputs: what every export ends with, by task."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from edge.core.bundle import Manifest, open_bundle, seal
from edge.core.errors import EdgeError
from edge.core.plugins import RUNTIMES
from edge.core.session import SessionOptions
from edge.evaluate import forward_gates
from edge.evaluate.gates import FLOAT_LIMIT, Parity, kl_limit, parity
from edge.models.checkpoint import Checkpoint
from edge.models.tokenizer import tokenizer_of
from edge.runtimes.torch import open_folder

SAMPLE_TEXT = (
    "The harbour lay quiet in the early light. A ferry had just left the pier, and three men were mending nets beside "
    "the old crane. 'It will rain before noon,' said one of them, looking at the hills; nobody answered him."
)


def hold(checkpoint: Checkpoint, folder: Path, manifest: Manifest, exporter: Any) -> Parity | forward_gates.Parity:
    """Run a bundle that is still being made beside its checkpoint. Leaves the samples in it, sealed.

    exporter: the module that wrote it; its `write_samples` keeps inputs and what the reference answers. Raises
    `EdgeError` for a task that the gates don't know.
    """
    kinds = {"decoder": _decoder, "encoder": _forward, "vision": _forward, "encoder_decoder": _encoder_decoder}
    if manifest.task not in kinds:
        raise EdgeError("gate.task", f"no gate for a bundle of the task '{manifest.task}'", "this is a defect of edge")
    reference = open_folder(checkpoint, manifest.context_length)
    try:
        return kinds[manifest.task](reference, checkpoint, folder, manifest, exporter)
    finally:
        reference.close()


def _decoder(reference: Any, checkpoint: Checkpoint, folder: Path, manifest: Manifest, exporter: Any) -> Parity:
    tokens = _sample_tokens(checkpoint, folder, manifest.context_length)
    exporter.write_samples(folder, tokens, reference.prefill(tokens))
    runtime, session = _open(folder, manifest)
    try:
        limit = kl_limit(manifest.encodings.values(), manifest.kernels, getattr(runtime, "FLOAT_LIMIT", FLOAT_LIMIT))
        return parity(reference, session, tokens, limit)
    finally:
        session.close()


def _encoder_decoder(reference: Any, checkpoint: Checkpoint, folder: Path, manifest: Manifest, exporter: Any) -> Parity:
    """Both read the same source; then as a decoder, from the tokens that an answer starts with on."""
    words = _sample_tokens(checkpoint, folder, manifest.context_length)
    source = forward_gates.sample_source(manifest, words[: manifest.source_length or None])
    tokens = [*manifest.start_token_ids, *words][: max(1, manifest.context_length - 8)]
    reference.encode(source)
    exporter.write_samples(folder, tokens, reference.prefill(tokens), source)
    runtime, session = _open(folder, manifest)
    try:
        session.encode(source)
        limit = kl_limit(manifest.encodings.values(), manifest.kernels, getattr(runtime, "FLOAT_LIMIT", FLOAT_LIMIT))
        return parity(reference, session, tokens, limit)
    finally:
        session.close()


def _forward(
    reference: Any, checkpoint: Checkpoint, folder: Path, manifest: Manifest, exporter: Any
) -> forward_gates.Parity:
    if manifest.task == "vision":
        inputs = forward_gates.sample_image(manifest)
    else:
        inputs = forward_gates.sample_text(manifest, _sample_tokens(checkpoint, folder, manifest.context_length))
    expected = reference.run(inputs)
    exporter.write_samples(folder, inputs, expected)
    _, session = _open(folder, manifest)
    try:
        return forward_gates.parity(reference, session, inputs, manifest, expected)
    finally:
        session.close()


def _open(folder: Path, manifest: Manifest) -> tuple[Any, Any]:
    seal(folder, manifest)
    runtime = RUNTIMES.load(manifest.runtime)
    return runtime, runtime.open(open_bundle(folder, verify=False), SessionOptions())


def _sample_tokens(checkpoint: Checkpoint, folder: Path, context_length: int) -> list[int]:
    """Tokens of a fixed text where there is a tokenizer, else a fixed pattern over the vocabulary."""
    if (folder / "tokenizer_config.json").is_file():
        tokens = list(tokenizer_of(folder).encode(SAMPLE_TEXT))
    else:
        tokens = [(17 + 7919 * i) % checkpoint.spec.vocab_size for i in range(48)]
    return tokens[: max(1, context_length - 8)]
