"""What to build for and where to run."""

from __future__ import annotations

from typing import Literal

import msgspec

Kernels = Literal["edge", "builtin"]
KvCacheType = Literal["float32", "float16", "int8"]
Task = Literal["decoder", "encoder_decoder", "encoder", "vision"]


class Target(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What to build: the platform, the runtimes that run there, and the instruction sets of its kernels library."""

    name: str
    description: str
    runtimes: tuple[str, ...]
    isa: tuple[str, ...]


class Device(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Where to run: `cpu` is this machine. `problem` says why it can't be used, empty when it can."""

    name: str
    transport: str
    model: str
    cores: int
    memory_bytes: int
    problem: str = ""
