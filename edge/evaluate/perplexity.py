"""Perplexity of a session on windows of text, in lockstep with the original model where one is given."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from edge.core.console import progress
from edge.core.errors import UsageError
from edge.core.session import Logits, Session
from edge.evaluate.divergence import Divergence, negative_log_likelihood
from edge.evaluate.windows import Window


@dataclass
class Score:
    """Sums over all predicted tokens, in nats. `nll_original` and `divergence` only where an original was given."""

    tokens: int = 0
    nll: float = 0.0
    nll_original: float = 0.0
    divergence: Divergence = field(default_factory=Divergence)

    @property
    def perplexity(self) -> float:
        return bounded_exp(self.nll / self.tokens)

    @property
    def perplexity_original(self) -> float:
        return bounded_exp(self.nll_original / self.tokens)


def bounded_exp(value: float) -> float:
    """exp, at most about 8e307, where a broken model would make it overflow: JSON has no infinity."""
    return math.exp(min(value, 709.0))


def score(subject: Session, windows: Sequence[Window], original: Session | None = None, title: str = "") -> Score:
    """Run every window through both sessions. One window's logits [tokens, vocab] of each are held at a time.

    Raises `UsageError` where the two vocabularies differ or a token lies outside of them.
    """
    check_vocabularies(subject, original, windows)
    total = Score()
    tokens = sum(len(window.tokens) - 1 for window in windows)
    with progress(title or "evaluate", tokens) as tick:
        for window in windows:
            _add_window(total, window.tokens, subject, original)
            tick(len(window.tokens) - 1, f"perplexity {total.perplexity:.2f}")
    return total


def _add_window(total: Score, tokens: list[int], subject: Session, original: Session | None) -> None:
    targets = np.asarray(tokens[1:], np.int64)
    logits = _predictions(subject, tokens)
    total.nll += negative_log_likelihood(logits, targets)
    total.tokens += len(targets)
    if original is not None:
        reference = _predictions(original, tokens)
        total.nll_original += negative_log_likelihood(reference, targets)
        total.divergence.add(reference, logits)


def _predictions(session: Session, tokens: list[int]) -> Logits:
    """Logits [len(tokens) - 1, vocab]: those of the last position predict a token that the window doesn't have."""
    return session.prefill(tokens, all_logits=True)[:-1]


def check_vocabularies(subject: Session, original: Session | None, windows: Sequence[Window]) -> None:
    """Raise unless both sessions and the tokenizer speak of the same tokens."""
    if original is not None and original.vocab_size != subject.vocab_size:
        message = f"the vocabularies differ: {subject.vocab_size} tokens, {original.vocab_size} in the original"
        raise UsageError("evaluate.vocabulary", message, "compare a model with the checkpoint that it was made from")
    largest = max(max(window.tokens) for window in windows)
    if largest >= subject.vocab_size:
        message = f"the tokenizer gives token {largest}; the model has {subject.vocab_size}"
        raise UsageError("evaluate.tokenizer", message, "use the tokenizer that came with the model")
