"""What to build for and where to run."""

from __future__ import annotations

from typing import Literal

import msgspec

Kernels = Literal["edge", "builtin"]
KvCacheType = Literal["float32", "float16", "int8", "quantized"]
"""`quantized`: in the bits that the method `kv_cache` chose for every layer."""
Task = Literal["decoder", "encoder_decoder", "encoder", "vision"]


class Target(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What to build: the platform, the runtimes that run there, and the instruction sets of its kernels library."""

    name: str
    description: str
    runtimes: tuple[str, ...]
    isa: tuple[str, ...]


class Device(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Where to run: `cpu` is this machine, `adb:SERIAL` a phone, `ssh:[USER@]HOST[:PORT]` a board.

    `problem` says why it can't be used, empty when it can. platform: what is built for it, such as `android-arm64`,
    `linux-arm64`, `linux-x86_64`; empty where that isn't known. emulated: its processor is software (QEMU, an Android
    emulator), so times and joules from it mean nothing. battery_percent, free_bytes (where edge would write): None
    where nobody tells.
    """

    name: str
    transport: str
    model: str
    cores: int
    memory_bytes: int
    problem: str = ""
    platform: str = ""
    soc: str = ""
    os: str = ""
    battery_percent: int | None = None
    free_bytes: int | None = None
    emulated: bool = False
