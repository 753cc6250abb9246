"""A text cut into the stretches that a language model is scored on.

Windows do not overlap and hold at most `context_length` positions. The first position of a window is never predicted.
Where the tokenizer puts a BOS token before a text by itself, every window starts with one, and all of its text tokens
are predicted; elsewhere the window's first text token is only context. A last window shorter than the others counts.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from edge.core.errors import EdgeError, UsageError


@dataclass(frozen=True)
class Window:
    """`tokens` to feed; the model is scored on tokens[1:], which cover `characters` of the text."""

    tokens: list[int]
    characters: str


@dataclass(frozen=True)
class Extent:
    """What was scored: predicted tokens, and the whitespace words and UTF-8 bytes of exactly the text they cover."""

    tokens: int
    words: int
    utf8_bytes: int


def cut(text: str, tokenizer: Any, context_length: int) -> list[Window]:
    """Windows over `text`. `tokenizer` is a fast Hugging Face tokenizer: it says which characters a token covers.

    Raises `UsageError` for a text without words or one that doesn't fill a window of two positions.
    """
    if not text.strip():
        raise UsageError(
            "evaluate.no_text", "there is no text to evaluate on", "give a text file with some prose in it"
        )
    if context_length < 2:
        raise UsageError("evaluate.context", f"a context of {context_length} predicts nothing", "use 2 or more")
    if not getattr(tokenizer, "is_fast", False):
        hint = "the model needs a tokenizer.json"
        raise EdgeError("evaluate.tokenizer", "this tokenizer doesn't say which characters a token covers", hint)
    encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
    tokens, ends = encoded["input_ids"], [end for _, end in encoded["offset_mapping"]]
    prefix = _prefix(tokenizer)
    step = context_length - len(prefix)
    windows = [_window(text, tokens, ends, prefix, start, step) for start in range(0, len(tokens), step)]
    windows = [window for window in windows if len(window.tokens) > 1]
    if not windows:
        hint = "give a longer text"
        raise UsageError("evaluate.short_text", "the text is shorter than one window of two tokens", hint)
    return windows


def extent(windows: list[Window]) -> Extent:
    """Count what `windows` predict. A word cut by the edge of a window counts in both, a fault of one word in ~700."""
    return Extent(
        tokens=sum(len(window.tokens) - 1 for window in windows),
        words=sum(len(window.characters.split()) for window in windows),
        utf8_bytes=sum(len(window.characters.encode("utf-8", "surrogatepass")) for window in windows),
    )


def _prefix(tokenizer: Any) -> list[int]:
    """[BOS] where the tokenizer starts every text with it, else []."""
    bos = getattr(tokenizer, "bos_token_id", None)
    starts = tokenizer("a")["input_ids"][:1] == [bos] and bos is not None
    return [bos] if starts and tokenizer("a", add_special_tokens=False)["input_ids"][:1] != [bos] else []


def _window(text: str, tokens: list[int], ends: list[int], prefix: list[int], start: int, step: int) -> Window:
    """Byte-level tokenizers trim blanks off a token's start, never off its end: so stretches run from end to end."""
    stop = min(start + step, len(tokens))
    context_end = start - 1 if prefix else start
    first = ends[context_end] if context_end >= 0 else 0
    return Window(prefix + tokens[start:stop], text[first : ends[stop - 1]])
