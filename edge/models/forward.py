"""Encoders and vision models, opened and ready: a text or an image in; a vector, labels or words out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import msgspec
import numpy as np
from numpy.typing import NDArray

from edge.core.console import info
from edge.core.errors import UsageError
from edge.core.session import ForwardSession, Inputs
from edge.models.images import image_reader
from edge.models.pooling import Pooling, pooling_of
from edge.models.tokenizer import tokenizer_of

Head = Literal["hidden", "classes", "token_classes", "masked_lm", "other"]
HEADS: dict[str, Head] = {
    "ForMaskedLM": "masked_lm",
    "ForSequenceClassification": "classes",
    "ForImageClassification": "classes",
    "ForTokenClassification": "token_classes",
    "Model": "hidden",
}
TOP = 5


class Label(msgspec.Struct, frozen=True):
    """A label, or a word, and how probable it is. place: the token that it is said of, where it is of one."""

    label: str
    probability: float
    place: str | None = None


class Answer(msgspec.Struct, frozen=True):
    """What a model says: labels where it has a head for them, else a vector. tokens: of the text, 0 for an image."""

    labels: list[Label]
    vector: list[float]
    about: str
    tokens: int = 0


def head_of(config: Any) -> Head:
    """What the first output of a model is, by the name of its class."""
    name = (config.architectures or [""])[0]
    return next((head for ending, head in HEADS.items() if name.endswith(ending)), "other")


@dataclass
class TextModel:
    """An encoder with its tokenizer. context_length: tokens that it takes at most."""

    session: ForwardSession
    config: Any
    tokenizer: Any
    pooling: Pooling
    context_length: int

    @property
    def head(self) -> Head:
        return head_of(self.config)

    def inputs(self, text: str) -> Inputs:
        """Token ids and mask [1, n], cut to what the model takes. Raises `UsageError` for a text without tokens."""
        most = min(self.context_length, self.pooling.max_tokens or self.context_length)
        ids = self.tokenizer(text, truncation=True, max_length=most, verbose=False)["input_ids"]
        if not ids or not text.strip():
            raise UsageError("prompt.empty", "the text has no tokens", "give some text")
        array = np.array([ids], np.int64)
        return {"input_ids": array, "attention_mask": np.ones_like(array)}

    def run(self, text: str) -> NDArray[np.float32]:
        """The first output [1, ..] for a text."""
        return self.session.run(self.inputs(text))

    def embed(self, text: str) -> NDArray[np.float32]:
        """One vector for a text, of a model that gives hidden states [1, n, width]."""
        return self.pooling(self.run(text)[0])

    def answer(self, text: str) -> Answer:
        """What the model's head says, or the text's vector. A masked language model wants its mask in the text."""
        inputs = self.inputs(text)
        ids: list[int] = inputs["input_ids"][0].tolist()
        if len(ids) < len(self.tokenizer(text, verbose=False)["input_ids"]):
            info(f"The text is cut to its first {len(ids)} tokens")
        masks = self._masks(ids) if self.head == "masked_lm" else []
        found = self.session.run(inputs)[0]
        if self.head == "masked_lm":
            rows = [(self.tokenizer.convert_ids_to_tokens(ids[i]) if len(masks) > 1 else None, found[i]) for i in masks]
            labels = [label for place, row in rows for label in top(row, self._word, place)]
            return Answer(labels, [], "words for the mask", len(ids))
        if self.head == "classes":
            return Answer(_classes(found, self.config), [], "classes", len(ids))
        if self.head == "token_classes":
            tokens = self.tokenizer.convert_ids_to_tokens(ids)
            labels = [top(row, _names(self.config), place)[0] for place, row in zip(tokens, found, strict=True)]
            return Answer(labels, [], "classes of tokens", len(ids))
        if self.head == "hidden" and found.ndim == 2:
            return Answer([], self.pooling(found).tolist(), f"embedding, {self.pooling}", len(ids))
        return Answer([], found.ravel().tolist(), f"first output {list(found.shape)}", len(ids))

    def close(self) -> None:
        self.session.close()

    def _masks(self, ids: list[int]) -> list[int]:
        mask = self.tokenizer.mask_token_id
        if mask is None:
            raise UsageError("prompt.mask", "this tokenizer has no mask token", "use the tokenizer of the model")
        places = [place for place, token in enumerate(ids) if token == mask]
        if not places:
            message = "a masked language model fills in a word, and the text has none to fill in"
            raise UsageError("prompt.mask", message, f"write {self.tokenizer.mask_token} in its place")
        return places

    def _word(self, token: int) -> str:
        return str(self.tokenizer.decode([token]).strip())


class ImageModel:
    """A vision model. folder: where preprocessor_config.json is, if there is one."""

    def __init__(self, session: ForwardSession, config: Any, folder: Path) -> None:
        self.session = session
        self.config = config
        self._folder = folder

    @cached_property
    def read(self) -> Callable[[Path], NDArray[np.float32]]:
        """What makes pixel_values of an image file."""
        return image_reader(self._folder, self.config)

    @property
    def head(self) -> Head:
        return head_of(self.config)

    def run(self, path: Path) -> NDArray[np.float32]:
        """The first output [1, ..] for an image file."""
        return self.session.run({"pixel_values": self.read(path)})

    def answer(self, path: Path) -> Answer:
        """The likeliest classes; of a model without such a head the mean of its hidden states."""
        found = self.run(path)[0]
        if self.head == "classes":
            return Answer(_classes(found, self.config), [], "classes")
        if self.head == "hidden":
            mean = found.mean(axis=(1, 2)) if found.ndim == 3 else found.mean(axis=0)
            return Answer([], mean.tolist(), "mean of the hidden states")
        return Answer([], found.ravel().tolist(), f"first output {list(found.shape)}")

    def close(self) -> None:
        self.session.close()


def open_forward(session: ForwardSession, folder: Path, config: Any, context_length: int) -> TextModel | ImageModel:
    """A session with what lies beside it in `folder`, a bundle or a checkpoint; context_length 0 for vision."""
    if context_length == 0:
        return ImageModel(session, config, folder)
    return TextModel(session, config, tokenizer_of(folder), pooling_of(folder), context_length)


def top(logits: NDArray[np.float32], name: Any, place: str | None = None) -> list[Label]:
    """The likeliest of logits [n], with their softmax."""
    weights = np.exp(logits.astype(np.float64) - float(logits.max()))
    weights /= weights.sum()
    order = np.argsort(-logits, kind="stable")[:TOP]
    return [Label(name(int(i)), float(weights[i]), place) for i in order]


def _classes(logits: NDArray[np.float32], config: Any) -> list[Label]:
    if getattr(config, "problem_type", None) != "multi_label_classification":
        return top(logits, _names(config))
    order = np.argsort(-logits, kind="stable")[:TOP]
    return [Label(_names(config)(int(i)), float(1 / (1 + np.exp(-logits[i]))), None) for i in order]


def _names(config: Any) -> Any:
    labels = getattr(config, "id2label", None) or {}
    return lambda index: str(labels.get(index, f"class {index}"))
