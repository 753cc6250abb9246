"""What every engine checks before it runs tokens."""

from __future__ import annotations

from collections.abc import Sequence
from numbers import Integral

import numpy as np

from edge.core.bundle import Manifest
from edge.core.errors import UsageError
from edge.core.session import Inputs, Session


def advance(session: Session, position: int, tokens: Sequence[int]) -> int:
    """Position in the context after `tokens`. Raises `UsageError` where they don't fit or aren't of the vocabulary."""
    _check_type(tokens)
    if len(tokens) == 0:
        raise UsageError("prompt.empty", "there are no tokens to run", "give at least one")
    end = position + len(tokens)
    if end > session.context_length:
        message = f"{end} tokens don't fit: the context holds {session.context_length}"
        raise UsageError("session.context_full", message, "shorten the prompt, or export with a longer --context")
    if not 0 <= min(tokens) <= max(tokens) < session.vocab_size:
        known = f"0..{session.vocab_size - 1}"
        raise UsageError("prompt.token", f"a token is outside {known}", "use the model's own tokenizer")
    return end


def _check_type(tokens: Sequence[int]) -> None:
    """Raise unless it is a flat sequence of whole numbers: NumPy would cut off what comes after the point."""
    hint = "give one flat sequence of token ids"
    if not isinstance(tokens, Sequence | np.ndarray):
        raise UsageError("prompt.type", f"{type(tokens).__name__} is no sequence of tokens", hint)
    for token in tokens:
        if not isinstance(token, Integral):
            raise UsageError("prompt.type", f"a token is a {type(token).__name__}, not a whole number", hint)


def check_source(manifest: Manifest, inputs: Inputs) -> Inputs:
    """The source of an encoder-decoder as its encoder takes it. Raises `UsageError` for what it doesn't take."""
    if set(inputs) != set(manifest.inputs):
        wanted = ", ".join(manifest.inputs)
        raise UsageError("source.inputs", f"a source of {', '.join(inputs) or 'nothing'}", f"this model reads {wanted}")
    for name, wanted in manifest.inputs.items():
        array = inputs[name]
        fits = array.ndim == len(wanted.shape) and all(
            size in (0, given) and given > 0 for size, given in zip(wanted.shape, array.shape, strict=True)
        )
        if str(array.dtype) != wanted.dtype or not fits:
            sizes = [size or "n" for size in wanted.shape]
            message = f"'{name}' is {array.dtype} {list(array.shape)}"
            raise UsageError("source.shape", message, f"this model reads {wanted.dtype} {sizes}")
    _check_text(manifest, inputs)
    return inputs


def _check_text(manifest: Manifest, inputs: Inputs) -> None:
    ids = inputs.get("input_ids")
    if ids is None:
        return
    if manifest.source_length and ids.shape[1] > manifest.source_length:
        message = f"the source has {ids.shape[1]} tokens; the model reads {manifest.source_length}"
        raise UsageError("source.too_long", message, "shorten it, or split it into parts")
    if not 0 <= ids.min() <= ids.max() < manifest.vocab_size:
        hint = "use the model's own tokenizer"
        raise UsageError("prompt.token", f"a token is outside 0..{manifest.vocab_size - 1}", hint)
    if inputs["attention_mask"].shape != ids.shape:
        raise UsageError("source.shape", "the mask is not as long as the text", "give 1 for every token")


def check_encoded(encoded: bool) -> None:
    """Raise unless the session has read a source."""
    if not encoded:
        raise UsageError("source.missing", "the model hasn't read a source yet", "call encode() first")
