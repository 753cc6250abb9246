"""What to measure: one run's plan, the prompts that follow from it, and the digest that names it."""

from __future__ import annotations

import hashlib
from typing import Literal

import msgspec
import numpy as np

from edge.core.errors import UsageError
from edge.core.measurement import Mode

CV_GATE = 0.10
EXTENSION = 4
CALLS = 10
DEFAULT_TURNS = [(64, 64), (32, 64), (32, 64)]
Engine = Literal["auto", "python", "runner"]
Turns = list[tuple[int, int]]


class Plan(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What to run. threads 0 lets the engine choose; seed draws the prompts' tokens.

    calls: of a model that runs in one call; generated_tokens is 0, and for an image prompt_tokens too.
    meter_csv: the file that an external power meter is writing meanwhile.
    cores: the run is kept on these, empty for all. turns: of a conversation, how many tokens each reads and makes;
    prompts: their tokens, where they aren't to be drawn. max_seconds: the end of a sustained run that doesn't settle.
    cool_down_s: rest before each repetition but the first. start_below_c: each waits until the hottest zone is below,
    at most wait_s. idle_s: rest before and after, for the energy baseline, where something tells energy. sample_ms: how
    often a device's sampler reads memory, clocks, temperatures and power.
    """

    prompt_tokens: int = 128
    generated_tokens: int = 64
    repetitions: int = 5
    warm_ups: int = 3
    threads: int = 0
    min_seconds: float = 3.0
    seed: int = 0
    calls: bool = False
    meter_csv: str = ""
    mode: Mode = "repetitions"
    cores: list[int] = []
    turns: Turns = []
    prompts: list[list[int]] = []
    max_seconds: float = 600.0
    cool_down_s: float = 0.0
    start_below_c: float | None = None
    wait_s: float = 300.0
    idle_s: float = 2.0
    sample_ms: int = 100
    engine: Engine = "auto"

    def __post_init__(self) -> None:
        least: dict[str, float] = {"prompt_tokens": 1, "generated_tokens": 2, "repetitions": 1}
        if self.calls:
            least |= {"prompt_tokens": 0, "generated_tokens": 0}
        least |= dict.fromkeys(("warm_ups", "threads", "min_seconds", "cool_down_s", "wait_s", "idle_s"), 0)
        least |= {"max_seconds": 1, "sample_ms": 1}
        for name, lowest in least.items():
            if not getattr(self, name) >= lowest:  # also what is not a number
                _refuse(name, getattr(self, name), f"use {lowest:g} or more")
        self._check_conversation()
        self._check_cores()

    def _check_conversation(self) -> None:
        if (self.mode == "conversation") != bool(self.turns):
            _refuse("turns", self.turns, "a conversation has turns, such as 64:32,32:64, and nothing else has")
        if self.calls and self.mode != "repetitions":
            _refuse("mode", self.mode, "a model that runs in one call has no conversation")
        if any(prompt < 1 or made < 2 for prompt, made in self.turns):
            _refuse("turns", self.turns, "each reads 1 token or more and makes 2 or more")
        if self.prompts and [len(prompt) for prompt in self.prompts] != [read for read, _ in turns_of(self)]:
            _refuse("prompts", f"{len(self.prompts)} lists", "give one list of token ids per turn, as long as it says")

    def _check_cores(self) -> None:
        if len(set(self.cores)) != len(self.cores) or min(self.cores, default=0) < 0:
            _refuse("cores", self.cores, "name each core once, by its number")


def _refuse(name: str, value: object, hint: str) -> None:
    raise UsageError("profile.range", f"{name} is {value}", hint)


def turns_of(plan: Plan) -> Turns:
    """Prompt tokens and generated tokens of each turn of a repetition, one but for a conversation."""
    return list(plan.turns) if plan.mode == "conversation" else [(plan.prompt_tokens, plan.generated_tokens)]


def turn_prompts(vocab_size: int, plan: Plan) -> list[list[int]]:
    """The tokens that each turn reads: pseudo-random, the same for the same seed and vocabulary.

    Dense models take as long for any.
    """
    if plan.prompts:
        return [list(prompt) for prompt in plan.prompts]
    random = np.random.default_rng(plan.seed)
    return [random.integers(0, vocab_size, read).tolist() for read, _ in turns_of(plan)]


def check_room(plan: Plan, context_length: int) -> None:
    """Raise unless a repetition's turns fit into the context together."""
    needed = sum(read + made for read, made in turns_of(plan))
    if needed > context_length:
        message = f"{needed} tokens don't fit in a context of {context_length}"
        raise UsageError("profile.context", message, "profile fewer tokens, or export with a longer --context")


def digest(plan: Plan, bundle_hash: str, device: str, engine: str) -> str:
    """Hex SHA-256 of all that decides a run's result: two runs with the same one go on where the other stopped."""
    said = msgspec.json.encode([plan, bundle_hash, device, engine], order="sorted")
    return hashlib.sha256(said).hexdigest()
