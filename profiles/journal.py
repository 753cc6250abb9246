"""The journal of a run: JSON lines with rising numbers, written as things happen, by the native runner or by a worker.

One line is one entry, appended whole; a torn last line is cut off when the run goes on. A process that takes up a
journal appends another `begin` and goes on after the last finished repetition. Times are nanoseconds of the device's
monotonic clock, `CLOCK_MONOTONIC`.
"""

from __future__ import annotations

from typing import Literal

import msgspec


class Begin(msgspec.Struct, frozen=True, tag="begin", tag_field="type"):
    """A process takes the run up. plan: digest of all that decides the result; another one is another run.

    boot: the device's boot id, as clocks of two boots can't be compared. versions: of what computes.
    """

    seq: int
    at_ns: int
    plan: str
    engine: Literal["python", "runner"]
    pid: int
    boot: str
    versions: dict[str, str] = {}


class ParityChecked(msgspec.Struct, frozen=True, tag="parity", tag_field="type"):
    seq: int
    kl_divergence: float
    kl_divergence_limit: float
    top1_equal: bool


class Span(msgspec.Struct, frozen=True, tag="phase", tag_field="type"):
    """A stretch that is over. name: load, warm-up, measured, idle before, idle after, wait (temperature), cool-down.

    Also every stretch that energy is told for: prefill, decode, call; `tokens` are those it read or made.
    """

    seq: int
    name: str
    start_ns: int
    end_ns: int
    tokens: int = 0


class Repeated(msgspec.Struct, frozen=True, tag="repetition", tag_field="type"):
    """A finished repetition. frequency_khz per core at its end; caps_khz the lowest cap of each core meanwhile.

    temperature_mc: of the hottest zone in 1/1000 °C when it began, null where nobody tells.
    """

    seq: int
    index: int
    turn: int
    start_ns: int
    prompt_tokens: int
    prefill_ns: int
    decode_ns: list[int]
    cpu_ns: int
    frequency_khz: list[int] = []
    caps_khz: list[int] = []
    encode_ns: int = 0
    throttled: bool = False
    temperature_mc: int | None = None


class Peak(msgspec.Struct, frozen=True, tag="peak", tag_field="type"):
    """VmHWM of the process that measured, or its like."""

    seq: int
    peak_bytes: int


class End(msgspec.Struct, frozen=True, tag="end", tag_field="type"):
    """The run is over. code: `ok`, or of the error: parity, model, library, context, disk, usage, engine."""

    seq: int
    at_ns: int
    code: str
    message: str = ""


Entry = Begin | ParityChecked | Span | Repeated | Peak | End
