"""The turns of a conversation, from what a user gives: `64:32,32:64`, or a file of prompts."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import msgspec

from edge.core.errors import UsageError
from edge.profiles.plan import Turns

GENERATED_TOKENS = 64


class Prompt(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One turn of a file: text, or token ids, and how many tokens are made after it."""

    prompt: str | list[int]
    generated_tokens: int = GENERATED_TOKENS


def turns(given: str, bundle: Path) -> dict[str, Any]:
    """The plan's fields for them. given: PROMPT:GENERATED pairs, or a JSON file: a list of texts, of lists of token
    ids, or of objects with `prompt` and `generated_tokens`. Texts become tokens as they are, without a chat template.

    Raises `UsageError` for what is neither.
    """
    pairs = [re.fullmatch(r"\s*(\d{1,7}):(\d{1,7})\s*", part) for part in given.split(",")]
    if all(pairs):
        return {"turns": [(int(pair[1]), int(pair[2])) for pair in pairs if pair]}
    if not Path(given).is_file():
        hint = "give pairs of prompt and generated tokens such as 64:32,32:64, or a JSON file of prompts"
        raise UsageError("profile.turns", f"'{given}' are no turns, and there is no such file", hint)
    prompts = [_tokens(prompt, bundle) for prompt in _read(Path(given))]
    made: Turns = [(len(tokens), count) for tokens, count in prompts]
    return {"turns": made, "prompts": [tokens for tokens, _ in prompts]}


def _read(file: Path) -> list[Prompt]:
    try:
        found = msgspec.json.decode(file.read_bytes(), type=list[Prompt | str | list[int]])
    except (msgspec.DecodeError, UnicodeDecodeError, OSError) as error:
        hint = 'it should be a JSON list of texts, or of {"prompt": .., "generated_tokens": ..}'
        raise UsageError("profile.turns", f"{file}: {error}", hint) from error
    if not found:
        raise UsageError("profile.turns", f"{file} has no prompts", "give at least one")
    return [prompt if isinstance(prompt, Prompt) else Prompt(prompt) for prompt in found]


def _tokens(prompt: Prompt, bundle: Path) -> tuple[list[int], int]:
    if isinstance(prompt.prompt, str):
        from edge.models.tokenizer import tokenizer_of

        return list(tokenizer_of(bundle).encode(prompt.prompt)), prompt.generated_tokens
    return prompt.prompt, prompt.generated_tokens
