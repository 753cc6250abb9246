"""The process of one engine: opens its model at the first request, then takes a turn at each."""

from __future__ import annotations

import time
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import msgspec

from edge.profiles.peers.apart import serve
from edge.profiles.peers.engines import Conversation


class Opening(msgspec.Struct, frozen=True, tag=True):
    engine: str
    format: str
    path: str
    threads: int
    context: int


class Turn(msgspec.Struct, frozen=True, tag=True):
    prompt: list[int]
    generated_tokens: int


class Times(msgspec.Struct, frozen=True):
    """Of one turn: the prompt, and all tokens after it; wall time and the process' CPU time."""

    prefill_ns: int
    prefill_cpu_ns: int
    decode_ns: int
    decode_cpu_ns: int


class Engine:
    """Holds the conversation between requests."""

    conversation: Conversation

    def handle(self, raw: Any) -> Iterator[Any]:
        request = msgspec.convert(raw, Opening | Turn)
        if isinstance(request, Opening):
            module = import_module(f"edge.profiles.peers.engines.{request.engine}")
            self.conversation = module.start(Path(request.path), request.format, request.threads, request.context)
            return
        yield msgspec.to_builtins(self._turn(request))

    def _turn(self, turn: Turn) -> Times:
        wall, cpu = time.perf_counter_ns(), time.process_time_ns()
        self.conversation.prefill(turn.prompt)
        prefill_ns, prefill_cpu_ns = time.perf_counter_ns() - wall, time.process_time_ns() - cpu
        wall, cpu = time.perf_counter_ns(), time.process_time_ns()
        for _ in range(turn.generated_tokens):
            self.conversation.decode()
        return Times(prefill_ns, prefill_cpu_ns, time.perf_counter_ns() - wall, time.process_time_ns() - cpu)


if __name__ == "__main__":
    serve(Engine().handle)
