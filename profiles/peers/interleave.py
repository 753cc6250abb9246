"""Several sessions timed in turns within one run: on a shared machine only such ratios can be trusted."""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping

import msgspec

from edge.core.console import progress
from edge.core.session import Session


class Turns(msgspec.Struct):
    """Raw samples of one session: ns of each prefill and of each decode step, wall and process CPU time."""

    prompt_tokens: int
    prefill_ns: list[int] = msgspec.field(default_factory=list)
    prefill_cpu_ns: list[int] = msgspec.field(default_factory=list)
    decode_ns: list[int] = msgspec.field(default_factory=list)
    decode_cpu_ns: list[int] = msgspec.field(default_factory=list)

    def summary(self) -> dict[str, float]:
        """Tokens per second from the medians, with the extremes, on the wall clock and in CPU time."""
        return {
            **_speeds("prefill", self.prefill_ns, self.prompt_tokens),
            **_speeds("decode", self.decode_ns, 1),
            "prefill_tokens_per_cpu_s": self.prompt_tokens * 1e9 / statistics.median(self.prefill_cpu_ns),
            "decode_tokens_per_cpu_s": 1e9 / statistics.median(self.decode_cpu_ns),
        }


def _speeds(phase: str, samples_ns: list[int], tokens: int) -> dict[str, float]:
    return {
        f"{phase}_tokens_per_s_median": tokens * 1e9 / statistics.median(samples_ns),
        f"{phase}_tokens_per_s_min": tokens * 1e9 / max(samples_ns),
        f"{phase}_tokens_per_s_max": tokens * 1e9 / min(samples_ns),
    }


def interleaved(
    sessions: Mapping[str, Session], *, prompt_tokens: int = 128, generated_tokens: int = 32, rounds: int = 8
) -> dict[str, Turns]:
    """Each round runs every session once, in an order that turns over; the first two rounds warm up and don't count."""
    turns = {name: Turns(prompt_tokens) for name in sessions}
    prompt = [(17 + 7919 * i) % min(s.vocab_size for s in sessions.values()) for i in range(prompt_tokens)]
    with progress("interleaved timing", (rounds + 2) * len(sessions)) as tick:
        for number in range(-2, rounds):
            order = list(sessions) if number % 2 == 0 else list(reversed(sessions))
            for name in order:
                _one_turn(
                    sessions[name], prompt, generated_tokens, turns[name] if number >= 0 else Turns(prompt_tokens)
                )
                tick(1, name)
    return turns


def _one_turn(session: Session, prompt: list[int], generated_tokens: int, turns: Turns) -> None:
    wall, cpu = time.perf_counter_ns(), time.process_time_ns()
    logits = session.prefill(prompt)
    turns.prefill_ns.append(time.perf_counter_ns() - wall)
    turns.prefill_cpu_ns.append(time.process_time_ns() - cpu)
    for _ in range(generated_tokens):
        token = int(logits[-1].argmax())
        wall, cpu = time.perf_counter_ns(), time.process_time_ns()
        logits = session.decode(token)
        turns.decode_ns.append(time.perf_counter_ns() - wall)
        turns.decode_cpu_ns.append(time.process_time_ns() - cpu)
