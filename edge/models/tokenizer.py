"""Tokenizers: text to token ids and back, with the model's own chat template."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from edge.core.errors import EdgeError


def tokenizer_of(folder: Path) -> Any:
    """The Hugging Face tokenizer beside a model or inside a bundle."""
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError, KeyError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        hint = "copy tokenizer.json and tokenizer_config.json beside the model"
        raise EdgeError("tokenizer.missing", f"{folder} has no usable tokenizer: {reason}", hint) from error


def prompt_tokens(tokenizer: Any, prompt: str, *, system: str | None = None, chat: bool = True) -> list[int]:
    """Token ids of a prompt: through the chat template where there is one and `chat` asks for it, else plain text."""
    if not chat or not tokenizer.chat_template:
        return list(tokenizer.encode(prompt))
    messages = [{"role": "system", "content": system}] if system else []
    messages.append({"role": "user", "content": prompt})
    text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    return list(tokenizer.encode(text, add_special_tokens=False))


def stream_text(tokenizer: Any, tokens: Iterable[int]) -> Iterator[str]:
    """Pieces of text as tokens arrive; a character that spans several tokens comes whole."""
    held: list[int] = []
    shown = ""
    for token in tokens:
        held.append(token)
        text = tokenizer.decode(held, skip_special_tokens=True)
        if text.endswith("\ufffd"):  # half a UTF-8 character: wait for the rest
            continue
        if len(text) > len(shown):
            yield text[len(shown) :]
        if text.endswith("\n"):  # start afresh at a line's end, so that decoding stays linear in the line's length
            held, shown = [], ""
        else:
            shown = text
    rest = tokenizer.decode(held, skip_special_tokens=True)[len(shown) :] if held else ""
    if rest:
        yield rest
