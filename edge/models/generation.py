"""What a checkpoint's generation configuration says, for a greedy search that answers as transformers' `generate`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from edge.core.constraints import Constraints

if TYPE_CHECKING:
    from edge.models.checkpoint import Checkpoint


def start_tokens(checkpoint: Checkpoint) -> list[int]:
    """Tokens that a decoder starts with. For a multilingual Whisper the spoken language's comes after the first."""
    settings = _settings(checkpoint)
    first = settings.get("decoder_start_token_id")
    if first is None:
        first = getattr(checkpoint.config, "decoder_start_token_id", None)
    if first is None:
        first = settings.get("bos_token_id")
    start = [0 if first is None else first]
    if checkpoint.spec.model_type == "whisper":
        start += _whisper_prompt(settings)
    return start


def constraints(checkpoint: Checkpoint) -> Constraints:
    """What the search must keep to."""
    settings = _settings(checkpoint)
    eos = checkpoint.eos_token_ids
    return Constraints(
        suppress=_tokens(settings.get("suppress_tokens")),
        begin_suppress=_tokens(settings.get("begin_suppress_tokens")),
        forced_bos=settings.get("forced_bos_token_id"),
        forced_eos=_tokens(settings.get("forced_eos_token_id")),
        no_repeat_ngram=settings.get("no_repeat_ngram_size") or 0,
        repetition_penalty=settings.get("repetition_penalty") or 1.0,
        min_length=settings.get("min_length") or 0,
        min_new_tokens=settings.get("min_new_tokens") or 0,
        eos=eos,
        bad_words=[word for word in settings.get("bad_words_ids") or [] if word != eos[:1]],
        languages=_languages(settings) if checkpoint.spec.model_type == "whisper" else [],
    )


def source_limit(config: Any) -> int:
    """The longest source in tokens, 0 where there is no limit: relative positions go on for ever."""
    if hasattr(config, "relative_attention_num_buckets"):
        return 0
    return int(getattr(config, "max_position_embeddings", 0))


def _settings(checkpoint: Checkpoint) -> dict[str, Any]:
    """generation_config.json; without one transformers takes what an older config.json says."""
    if checkpoint.generation:
        return dict(checkpoint.generation)
    from transformers import GenerationConfig

    found: dict[str, Any] = GenerationConfig.from_model_config(checkpoint.config).to_dict()
    return found


def _whisper_prompt(settings: dict[str, Any]) -> list[int]:
    """What follows the start token, without a detected language: transcribe, no time stamps."""
    prompt = [] if settings.get("language") or settings.get("task") else _forced(settings)
    language, tasks = settings.get("language"), settings.get("task_to_id") or {}
    if language:
        prompt.append(settings["lang_to_id"][_language_token(language)])
    if settings.get("task") in tasks:
        prompt.append(tasks[settings["task"]])
    elif language and tasks:
        prompt.append(tasks["transcribe"])
    last = settings.get("no_timestamps_token_id")
    if last is not None and prompt[-1:] != [last] and not settings.get("return_timestamps"):
        prompt.append(last)
    return prompt


def _forced(settings: dict[str, Any]) -> list[int]:
    """Tokens of the old `forced_decoder_ids`: pairs of a position, from 1 on, and a token (None: to be detected)."""
    forced = settings.get("forced_decoder_ids") or []
    inside = [token for place, (position, token) in enumerate(forced, 1) if place == position]
    return [token for token in inside if token is not None]


def _languages(settings: dict[str, Any]) -> list[int]:
    """Tokens of all languages where the spoken one has to be detected."""
    forced = settings.get("forced_decoder_ids") or []
    known = bool(settings.get("language")) or bool(forced and forced[0][1] is not None and not settings.get("task"))
    return [] if known else list((settings.get("lang_to_id") or {}).values())


def _language_token(language: str) -> str:
    from transformers.models.whisper.tokenization_whisper import TO_LANGUAGE_CODE

    name = language.lower()
    return name if name.startswith("<|") else f"<|{TO_LANGUAGE_CODE.get(name, name)}|>"


def _tokens(value: Any) -> list[int]:
    return list(value) if isinstance(value, list | tuple) else [] if value is None else [value]
