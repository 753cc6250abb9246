"""Encoder-decoders, opened and ready: a text or a sound file in, text out."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from edge.core.bundle import Bundle
from edge.core.constraints import Constraints
from edge.core.errors import UsageError
from edge.core.session import EncoderDecoderSession, Inputs, Sampling, generate


@dataclass
class EncoderDecoderModel:
    """A bundle of an encoder-decoder."""

    bundle: Bundle
    session: EncoderDecoderSession
    tokenizer: Any

    @property
    def hears(self) -> bool:
        """Whether the model reads sound, not text."""
        return "input_features" in self.bundle.manifest.inputs

    def sources(self, prompt: str | None, audio: Path | None) -> Iterator[Inputs]:
        """What the encoder reads: a text, or the windows of a sound file in turn.

        Raises `UsageError` for the wrong one of both, and for a file or a text that can't be read.
        """
        name = self.bundle.manifest.name
        if self.hears:
            if audio is None:
                raise UsageError("run.audio", f"{name} reads sound, not text", "use --audio FILE.wav")
            yield from self._windows(audio)
            return
        if audio is not None:
            raise UsageError("run.prompt", f"{name} reads text, not sound", "use --prompt TEXT")
        yield text_source(self.tokenizer, prompt or "")

    def answer(self, source: Inputs, *, max_tokens: int, sampling: Sampling | None = None) -> Iterator[int]:
        """Yield the tokens of an answer."""
        manifest = self.bundle.manifest
        self.session.encode(source)
        start = start_tokens(self.session, manifest.start_token_ids, manifest.constraints)
        rules = {"stop": manifest.eos_token_ids, "constraints": manifest.constraints}
        yield from generate(self.session, start, max_tokens=max_tokens, sampling=sampling, **rules)

    def generate(
        self,
        prompt: str | None = None,
        *,
        audio: str | Path | None = None,
        max_tokens: int = 256,
        sampling: Sampling | None = None,
    ) -> Iterator[str]:
        """Yield the answer to a text, or the transcript of a WAV file, piece by piece."""
        from edge.models.tokenizer import stream_text

        for source in self.sources(prompt, None if audio is None else Path(audio)):
            yield from stream_text(self.tokenizer, self.answer(source, max_tokens=max_tokens, sampling=sampling))

    def close(self) -> None:
        self.session.close()

    def _windows(self, audio: Path) -> Iterator[Inputs]:
        from edge.models.audio import features_of, read_sound

        (name, wanted), *_ = self.bundle.manifest.inputs.items()
        for features in features_of(self.bundle.path, read_sound(audio), wanted.shape):
            yield {name: features}


def text_source(tokenizer: Any, text: str) -> Inputs:
    """Token ids and mask [1, n] of a text, with what the tokenizer puts around one."""
    tokens = tokenizer.encode(text)
    if not tokens:
        raise UsageError("prompt.empty", "the prompt has no tokens", "give some text")
    ids = np.array([tokens], np.int64)
    return {"input_ids": ids, "attention_mask": np.ones_like(ids)}


def start_tokens(session: EncoderDecoderSession, known: Sequence[int], rules: Constraints | None) -> list[int]:
    """Tokens that the answer to the source starts with: a multilingual model says itself which language it hears."""
    first, *rest = known
    languages = rules.languages if rules else []
    if not languages:
        return [first, *rest]
    scores = session.prefill([first])[-1]
    return [first, languages[int(scores[languages].argmax())], *rest]
