"""What an encoder-decoder lost: on the same sources, its answers and its next tokens beside the original's."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from edge.answer import start_tokens, text_source
from edge.core.console import progress
from edge.core.constraints import Constraints
from edge.core.errors import UsageError
from edge.core.measurement import Agreement
from edge.core.session import EncoderDecoderSession, Inputs, generate
from edge.evaluate.divergence import Divergence
from edge.evaluate.forward import sentences_of
from edge.evaluate.run import Subject
from edge.models.audio import features_of, read_sound
from edge.models.checkpoint import Checkpoint
from edge.models.generation import constraints
from edge.models.generation import start_tokens as first_tokens

ANSWER_TOKENS = 64


def compare_answers(
    subject: EncoderDecoderSession,
    original: EncoderDecoderSession,
    about: Subject,
    reference: Checkpoint,
    sources: Sequence[Inputs],
    *,
    data: str,
    original_name: str,
) -> Agreement:
    """Both models read every source; then next tokens are compared along the original's own greedy answer.

    reference: the original's checkpoint, whose generation configuration both keep to. An answer has at most 64 tokens.
    """
    rules, first = constraints(reference), first_tokens(reference)
    divergence, errors, equal = Divergence(), [], 0
    digest = hashlib.sha256()
    with progress(f"evaluate {about.name} {about.recipe}".strip(), len(sources)) as tick:
        for source in sources:
            digest.update(b"".join(array.tobytes() for array in source.values()))
            original.encode(source)
            subject.encode(source)
            start = start_tokens(original, first, rules)
            answer = _answer(original, start, rules, reference.eos_token_ids)
            equal += answer == _answer(subject, start, rules, reference.eos_token_ids)
            tokens, known = [*start, *answer], len(start) - 1
            expected = original.prefill(tokens, all_logits=True)[known:]
            found = subject.prefill(tokens, all_logits=True)[known:]
            divergence.add(expected, found)
            errors.append(float(np.linalg.norm(found - expected) / max(float(np.linalg.norm(expected)), 1e-30)))
            tick(1, "")
    return Agreement(
        subject=about.path,
        kind=about.kind,
        name=about.name,
        recipe=about.recipe,
        data=f"{data}, {len(sources)} sources, {divergence.rows} tokens of the original's answers",
        data_sha256=digest.hexdigest(),
        samples=len(sources),
        original=original_name,
        relative_error=float(np.mean(errors)),
        top1_agreement=divergence.top1_agreement,
        kl_divergence=divergence.kl_mean,
        equal_answers=equal,
        stored_bytes=about.stored_bytes,
        bits_per_weight=about.bits_per_weight,
    )


def _answer(session: EncoderDecoderSession, start: Sequence[int], rules: Constraints, stop: Sequence[int]) -> list[int]:
    room = min(ANSWER_TOKENS, session.context_length - len(start) - 1)
    return list(generate(session, start, max_tokens=room, stop=stop, constraints=rules))


def text_sources(tokenizer: Any, text: str, longest: int) -> list[Inputs]:
    """Sentences of a text, cut to `longest` tokens where that isn't 0."""
    sources = [text_source(tokenizer, sentence) for sentence in sentences_of(text)]
    return [{name: array[:, : longest or None] for name, array in source.items()} for source in sources]


def sound_sources(folder: Path, audio: Path, shape: list[int]) -> list[Inputs]:
    """Windows of every WAV file in `audio`; `folder` has the model's preprocessor_config.json, if there is one."""
    files = sorted(path for path in audio.glob("*") if path.suffix.lower() == ".wav") if audio.is_dir() else [audio]
    if not files:
        raise UsageError("evaluate.audio", f"{audio} has no .wav files", "give a folder with some")
    return list(_windows(folder, files, shape))


def _windows(folder: Path, files: Sequence[Path], shape: list[int]) -> Iterator[Inputs]:
    for file in files:
        for features in features_of(folder, read_sound(file), shape):
            yield {"input_features": features}
