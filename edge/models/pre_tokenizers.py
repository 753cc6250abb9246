"""The first splits of byte-level BPE tokenizers that llama.cpp knows by name (`tokenizer.ggml.pre` in a GGUF file)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tokenizers.pre_tokenizers import PreTokenizer

BYTES, WORDS, DIGITS = "bytes", "words", "digits"  # ByteLevel alone, with GPT-2's own split of words; digits apart
CONTRACTIONS = "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
WORD = r"[^\r\n\p{L}\p{N}]?\p{L}+"
REST = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
UPPER, LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
CASED = rf"[^\r\n\p{{L}}\p{{N}}]?{UPPER}*{LOWER}+", rf"[^\r\n\p{{L}}\p{{N}}]?{UPPER}+{LOWER}*"
CASED_REST = r" ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
STEPS: dict[str, tuple[str, ...]] = {
    "gpt-2": (WORDS,),
    "smollm": (DIGITS, WORDS),
    "llama-bpe": (rf"{CONTRACTIONS}|{WORD}|\p{{N}}{{1,3}}|{REST}", BYTES),
    "qwen2": (rf"{CONTRACTIONS}|{WORD}|\p{{N}}|{REST}", BYTES),
    "tekken": (rf"{CASED[0]}|{CASED[1]}|\p{{N}}|{CASED_REST}", BYTES),
    "gpt-4o": (rf"{CASED[0]}{CONTRACTIONS}?|{CASED[1]}{CONTRACTIONS}?|\p{{N}}{{1,3}}|{CASED_REST}", BYTES),
}
ALIASES = {"llama3": "llama-bpe", "llama-v3": "llama-bpe", "phi-2": "gpt-2"}


def pre_tokenizer(name: str) -> PreTokenizer | None:
    """The split that llama.cpp calls `name`, None for one that edge doesn't know."""
    from tokenizers import Regex, pre_tokenizers

    steps = STEPS.get(ALIASES.get(name, name))
    if steps is None:
        return None
    made: list[PreTokenizer] = []
    for step in steps:
        if step == DIGITS:
            made.append(pre_tokenizers.Digits(individual_digits=True))
        elif step in (BYTES, WORDS):
            made.append(pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=step == WORDS))
        else:
            made.append(pre_tokenizers.Split(Regex(step), "isolated"))
    return pre_tokenizers.Sequence(made)


def name_of(described: dict[str, Any]) -> str | None:
    """llama.cpp's name for the split of a byte-level BPE tokenizer (its tokenizer.json), None for one that it lacks."""
    first = described["pre_tokenizer"]
    if not described["model"].get("merges") or not first:
        return None
    steps = tuple(_step(step) for step in first.get("pretokenizers", [first]))
    return next((name for name, known in STEPS.items() if known == steps), None)


def _step(step: dict[str, Any]) -> str:
    match step:
        case {"type": "ByteLevel", "add_prefix_space": False, **rest}:
            return WORDS if rest.get("use_regex", True) else BYTES
        case {"type": "Digits", "individual_digits": True}:
            return DIGITS
        case {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated" | "Removed"}:
            return str(pattern)
    return "unknown"
