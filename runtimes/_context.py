"""What every engine checks before it runs tokens."""

from __future__ import annotations

from collections.abc import Sequence

from edge.core.errors import UsageError
from edge.core.session import Session


def advance(session: Session, position: int, tokens: Sequence[int]) -> int:
    """Position in the context after `tokens`. Raises `UsageError` where they don't fit or aren't of the vocabulary."""
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
