"""Quality of a model or an exported artefact on a text, as one `Evaluation`."""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass
from typing import Any, Literal

from edge.core.errors import UsageError
from edge.core.measurement import Evaluation
from edge.core.session import Session
from edge.evaluate.perplexity import Score, bounded_exp, score
from edge.evaluate.windows import cut, extent

CONTEXT_LENGTH = 1024


@dataclass(frozen=True)
class Subject:
    """What is evaluated: its folder, what it is, and what it takes on disk. `name` and `recipe` join it to profiles."""

    path: str
    kind: Literal["torch", "artefact"]
    name: str
    recipe: str
    stored_bytes: int
    bits_per_weight: float


def evaluate(
    subject: Session,
    about: Subject,
    text: str,
    tokenizer: Any,
    *,
    text_name: str = "text",
    original: Session | None = None,
    original_name: str = "original",
    context_length: int | None = None,
) -> Evaluation:
    """Perplexity, bits per byte and, against `original`, KL divergence and top-1 agreement.

    context_length: positions per window; by default 1024, or less where a session holds less. `windows.cut` says how
    windows and BOS are handled. Tokens, words and bytes are counted over the predicted stretch of the text alone.
    Raises `UsageError` for no text, too short a text, too long a context and vocabularies that differ.
    """
    context = _context_length(context_length, subject, original)
    windows = cut(text, tokenizer, context)
    result = score(subject, windows, original, f"evaluate {about.name} {about.recipe}".strip())
    covered = extent(windows)
    return Evaluation(
        subject=about.path,
        kind=about.kind,
        name=about.name,
        recipe=about.recipe,
        text=text_name,
        text_sha256=hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest(),
        context_length=context,
        tokens=result.tokens,
        perplexity=result.perplexity,
        word_perplexity=bounded_exp(result.nll / max(1, covered.words)),
        bits_per_byte=result.nll / math.log(2) / covered.utf8_bytes,
        stored_bytes=about.stored_bytes,
        bits_per_weight=about.bits_per_weight,
        **(_against(result, original_name) if original is not None else {}),
    )


def _against(result: Score, original_name: str) -> dict[str, Any]:
    return {
        "original": original_name,
        "perplexity_original": result.perplexity_original,
        "kl_divergence": result.divergence.kl_mean,
        "top1_agreement": result.divergence.top1_agreement,
    }


def _context_length(asked: int | None, subject: Session, original: Session | None) -> int:
    held = min(session.context_length for session in (subject, original) if session is not None)
    if asked is None:
        return min(CONTEXT_LENGTH, held)
    if asked > held:
        message = f"a context of {asked} tokens was asked for; the model holds {held}"
        raise UsageError("evaluate.context", message, f"use --context {held} or less, or export with a longer one")
    return asked
