"""What every engine looks like from above: tokens in, logits out."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import msgspec
import numpy as np
from numpy.typing import NDArray

from edge.core.bundle import Bundle
from edge.core.constraints import Constraints
from edge.core.errors import UsageError

Logits = NDArray[np.float32]
Inputs = Mapping[str, NDArray[Any]]


class SessionOptions(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """threads: 0 lets the engine choose. profile_path: where the engine writes its own trace, if it can."""

    threads: int = 0
    profile_path: str | None = None


class OperatorTime(msgspec.Struct, frozen=True):
    """One operator of the graph over a profiled run. `layer` is the model's own name for it."""

    node: str
    operator: str
    layer: str
    calls: int
    total_ns: int


class Session(Protocol):
    """One sequence at a time. `prefill` starts anew; `extend` and `decode` go on from what was seen."""

    context_length: int
    vocab_size: int

    def prefill(self, tokens: Sequence[int], *, all_logits: bool = False) -> Logits:
        """Logits [1, vocab] of the last token, or [len(tokens), vocab] with `all_logits`."""

    def extend(self, tokens: Sequence[int], *, all_logits: bool = False) -> Logits:
        """As `prefill`, after what was seen before: the next turn of a conversation."""

    def decode(self, token: int) -> Logits:
        """Logits [1, vocab] after one more token."""

    def end_profile(self) -> list[OperatorTime]:
        """Per-operator rows since the session was opened with `profile_path`."""

    def close(self) -> None: ...


class EncoderDecoderSession(Session, Protocol):
    """A session whose answers depend on a source: text or speech."""

    def encode(self, inputs: Inputs) -> None:
        """Read the source, such as `input_ids` and `attention_mask` [1, n]. The next `prefill` starts the answer."""


class ForwardSession(Protocol):
    """An encoder or a vision model: everything in one call."""

    def run(self, inputs: Inputs) -> NDArray[np.float32]:
        """The model's first output for a batch of one: hidden states [1, n, hidden] or logits [1, ..]."""

    def end_profile(self) -> list[OperatorTime]:
        """Per-operator rows since the session was opened with `profile_path`."""

    def close(self) -> None: ...


class Runtime(Protocol):
    """A module of `edge.runtimes`. What it opens follows from the manifest's `task`."""

    def open(self, bundle: Bundle, options: SessionOptions) -> Session | EncoderDecoderSession | ForwardSession: ...

    def versions(self) -> dict[str, str]: ...


class Sampling(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """temperature 0 is greedy. top_k 0 and top_p 1 switch those filters off."""

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        if self.temperature < 0 or self.top_k < 0 or not 0 < self.top_p <= 1:
            hint = "temperature >= 0, top_k >= 0, 0 < top_p <= 1"
            raise UsageError("sampling.range", "sampling options are out of range", hint)


@dataclass
class Sampler:
    """Draws the next token. Deterministic by seed."""

    options: Sampling

    def __post_init__(self) -> None:
        self.random = np.random.default_rng(self.options.seed)

    def __call__(self, logits: NDArray[np.float32]) -> int:
        """A token id from logits [vocab]."""
        if self.options.temperature == 0:
            return int(np.argmax(logits))
        order = np.argsort(-logits, kind="stable")
        if self.options.top_k:
            order = order[: self.options.top_k]
        scaled = logits[order].astype(np.float64) / self.options.temperature
        weights = np.exp(scaled - scaled.max())
        weights /= weights.sum()
        kept = int(np.searchsorted(np.cumsum(weights), self.options.top_p)) + 1
        weights = weights[:kept] / weights[:kept].sum()
        return int(self.random.choice(order[:kept], p=weights))


def check_prompt(session: Session, prompt: Sequence[int]) -> None:
    """Raise unless the prompt has tokens of this vocabulary and leaves room for at least one more."""
    if not prompt:
        raise UsageError("prompt.empty", "the prompt has no tokens", "give some text")
    if len(prompt) >= session.context_length:
        message = f"the prompt has {len(prompt)} tokens; the context holds {session.context_length}"
        raise UsageError("prompt.too_long", message, "shorten it, or export with a longer --context")
    if not 0 <= min(prompt) <= max(prompt) < session.vocab_size:
        raise UsageError(
            "prompt.token", f"a token is outside 0..{session.vocab_size - 1}", "use the bundle's tokenizer"
        )


def generate(
    session: Session,
    prompt: Sequence[int],
    *,
    max_tokens: int,
    stop: Sequence[int] = (),
    sampling: Sampling | None = None,
    constraints: Constraints | None = None,
) -> Iterator[int]:
    """Yield new tokens until `max_tokens`, a stop token, or the end of the context."""
    check_prompt(session, prompt)
    sample = Sampler(sampling or Sampling())
    logits = session.prefill(prompt)
    room = min(max_tokens, session.context_length - len(prompt))
    tokens = list(prompt)
    for produced in range(1, room + 1):
        scores = logits[-1]
        if constraints is not None:
            scores = constraints.apply(scores, tokens, len(prompt), len(prompt) + room)
        token = sample(scores)
        if token in stop:
            return
        tokens.append(token)
        yield token
        if produced < room:
            logits = session.decode(token)
