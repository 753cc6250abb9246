"""One vector for a text, made of its tokens' hidden states as sentence-transformers' files beside a model say."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge.core.console import info
from edge.core.errors import EdgeError

Vector = NDArray[np.float32]
MODES = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len",
    "pooling_mode_lasttoken": "last",
}


@dataclass(frozen=True)
class Pooling:
    """modes: their vectors stand one after another. max_tokens: longer texts are cut, 0 where nothing says so."""

    modes: tuple[str, ...] = ("mean",)
    normalize: bool = False
    max_tokens: int = 0

    def __str__(self) -> str:
        return " + ".join(self.modes) + (", normalized" if self.normalize else "")

    def __call__(self, hidden: NDArray[np.float32]) -> Vector:
        """A vector from hidden states [tokens, width]."""
        vector = np.concatenate([_pooled(hidden, mode) for mode in self.modes])
        return vector / max(float(np.linalg.norm(vector)), 1e-12) if self.normalize else vector


def pooling_of(folder: Path) -> Pooling:
    """What modules.json and the pooling's config.json say; the mean of all tokens where there is neither.

    Raises `EdgeError` for files that can't be understood.
    """
    if not (folder / "modules.json").is_file():
        return Pooling()
    try:
        modules = _read(folder / "modules.json")
        kinds = [str(module["type"]).rpartition(".")[2] for module in modules]
        for kind in set(kinds) - {"Transformer", "Pooling", "Normalize"}:
            info(f"modules.json names a '{kind}', which is left out: embeddings are those before it")
        place = next((str(m["path"]) for m, kind in zip(modules, kinds, strict=True) if kind == "Pooling"), "1_Pooling")
        modes = _modes(_read(folder / place / "config.json")) if "Pooling" in kinds else ("mean",)
        limits = folder / "sentence_bert_config.json"
        most = int(_read(limits).get("max_seq_length") or 0) if limits.is_file() else 0
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        message = f"sentence-transformers' files in {folder} can't be used: {error}"
        raise EdgeError("pooling.settings", message, "take the original files, or remove modules.json") from error
    return Pooling(modes, "Normalize" in kinds, most)


def _modes(config: dict[str, Any]) -> tuple[str, ...]:
    named = config.get("pooling_mode")
    modes = tuple(mode for field, mode in MODES.items() if config.get(field)) or ((named,) if named else ())
    if not modes or set(modes) - set(MODES.values()):
        raise ValueError(f"no known pooling in {sorted(config)}")
    return modes


def _pooled(hidden: NDArray[np.float32], mode: str) -> Vector:
    if mode in ("cls", "last"):
        return hidden[0 if mode == "cls" else -1]
    if mode == "max":
        return hidden.max(axis=0)
    total: Vector = hidden.sum(axis=0)
    return total / np.float32(len(hidden) if mode == "mean" else len(hidden) ** 0.5)


def _read(path: Path) -> Any:
    return json.loads(path.read_bytes())
