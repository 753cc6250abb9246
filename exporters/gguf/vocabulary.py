"""A tokenizer as llama.cpp's metadata, so that it splits text as the checkpoint's own does.

llama.cpp has two kinds that our models use: `gpt2`, byte-level BPE whose first split is one of those that it knows by
name, and `llama`, SentencePiece's BPE with spaces written as U+2581, where the pair with the best score merges first.
A tokenizer of another kind is left to whoever feeds the model token ids, and the export says so.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edge.models.pre_tokenizers import name_of
from edge.models.tokenizer import tokenizer_of

if TYPE_CHECKING:
    from gguf import GGUFWriter

    from edge.models.checkpoint import Checkpoint

SPACE = "\u2581"


def write_vocabulary(writer: GGUFWriter, checkpoint: Checkpoint, folder: Path) -> list[str]:
    """Write the tokenizer that lies in `folder`, whole and in llama.cpp's terms. Returns what has to be said of it."""
    if not (folder / "tokenizer_config.json").is_file():
        writer.add_tokenizer_model("none")
        return ["the checkpoint has no tokenizer: llama.cpp needs token ids"]
    from gguf import Keys

    tokenizer = tokenizer_of(folder)
    whole = tokenizer.backend_tokenizer.to_str()
    writer.add_string(Keys.Tokenizer.HF_JSON, whole)
    if tokenizer.chat_template:
        writer.add_chat_template(tokenizer.chat_template)
    _write_special_tokens(writer, tokenizer, checkpoint)
    described = json.loads(whole)
    if _is_sentencepiece(described):
        writer.add_tokenizer_model("llama")
        writer.add_add_space_prefix(_adds_space(described))
        writer.add_token_scores(_scores(described, checkpoint.spec.vocab_size))
    elif name := name_of(described):
        writer.add_tokenizer_model("gpt2")
        writer.add_tokenizer_pre(name)
        writer.add_token_merges([merge if isinstance(merge, str) else " ".join(merge) for merge in _merges(described)])
    else:
        writer.add_tokenizer_model("none")
        return ["llama.cpp has no tokenizer like this model's: give it token ids (edge run does)"]
    _write_tokens(writer, described, checkpoint.spec.vocab_size)
    return []


def _merges(described: dict[str, Any]) -> list[Any]:
    return list(described["model"]["merges"])


def _is_sentencepiece(described: dict[str, Any]) -> bool:
    """Whether it is SentencePiece's BPE: unknown characters become bytes, and spaces SPACE."""
    spaces = SPACE in json.dumps([described["normalizer"], described["pre_tokenizer"]], ensure_ascii=False)
    model = described["model"]
    return model.get("type") == "BPE" and bool(model.get("byte_fallback")) and spaces


def _adds_space(described: dict[str, Any]) -> bool:
    """Whether a text's first word gets a space before it."""
    normalizer, first = described["normalizer"] or {}, described["pre_tokenizer"] or {}
    prepends = any(step["type"] == "Prepend" for step in normalizer.get("normalizers", [normalizer]) if step)
    return prepends or first.get("prepend_scheme", "never") != "never"


def _scores(described: dict[str, Any], count: int) -> list[float]:
    """Minus the rank of the first merge that makes a token: what SentencePiece keeps and tokenizer.json leaves out."""
    scores = [0.0] * count
    vocabulary = described["model"]["vocab"]
    for rank, merge in reversed(list(enumerate(_merges(described)))):
        token = vocabulary["".join(merge.split(" ") if isinstance(merge, str) else merge)]
        if token < count:
            scores[token] = -float(rank)
    return scores


def _write_tokens(writer: GGUFWriter, described: dict[str, Any], count: int) -> None:
    """Text and kind of every row of the embedding."""
    from gguf import TokenType

    texts = [f"[PAD{index}]" for index in range(count)]
    kinds = [TokenType.UNUSED] * count
    bytes_fall_back = bool(described["model"].get("byte_fallback"))
    for text, index in described["model"]["vocab"].items():
        if index < count:
            is_byte = bytes_fall_back and len(text) == 6 and text.startswith("<0x")
            texts[index], kinds[index] = text, TokenType.BYTE if is_byte else TokenType.NORMAL
    for added in described["added_tokens"]:
        if added["id"] < count:
            # llama.cpp looks for these in text that is not normalized yet
            texts[added["id"]] = added["content"] if added["special"] else added["content"].replace(SPACE, " ")
            kinds[added["id"]] = TokenType.CONTROL if added["special"] else TokenType.USER_DEFINED
    unknown = described["model"].get("unk_token")
    if bytes_fall_back and unknown in described["model"]["vocab"]:
        kinds[described["model"]["vocab"][unknown]] = TokenType.UNKNOWN
    writer.add_token_list(texts)
    writer.add_token_types(kinds)


def _write_special_tokens(writer: GGUFWriter, tokenizer: Any, checkpoint: Checkpoint) -> None:
    ends = checkpoint.eos_token_ids
    if tokenizer.eos_token_id in ends:
        ends = [tokenizer.eos_token_id, *(token for token in ends if token != tokenizer.eos_token_id)]
    start = checkpoint.bos_token_id if tokenizer.bos_token_id is None else tokenizer.bos_token_id
    found = {
        "bos": start,
        "eos": ends[0] if ends else tokenizer.eos_token_id,
        "eot": ends[1] if len(ends) > 1 else None,
        "unk": tokenizer.unk_token_id,
        "pad": tokenizer.pad_token_id,
    }
    for name, token in found.items():
        if token is not None:
            getattr(writer, f"add_{name}_token_id")(token)
    text = tokenizer.encode("a")
    writer.add_add_bos_token(bool(text) and text[0] == start)
    writer.add_add_eos_token(len(text) > 1 and text[-1] == found["eos"])
