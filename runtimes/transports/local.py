"""This machine, as `cpu`, reached like any other device."""

from __future__ import annotations

import os
from collections.abc import Sequence

import msgspec
import psutil

from edge.core.errors import UsageError
from edge.core.files import cache_folder
from edge.core.target import Device
from edge.runtimes.transports._shell import ShellConnection

NAME = "cpu"


class LocalConnection(ShellConnection):
    """A child process where others have a link: it never breaks."""

    def __init__(self) -> None:
        super().__init__(NAME)
        self.look(str(cache_folder().absolute() / "device"))
        device = self.device  # macOS has no /proc
        self.device = msgspec.structs.replace(
            device,
            transport="local",
            cores=device.cores or psutil.cpu_count(logical=False) or os.cpu_count() or 1,
            memory_bytes=device.memory_bytes or psutil.virtual_memory().total,
        )

    def _here(self, command: Sequence[str]) -> list[str]:
        return list(command)

    def _come_back(self, timeout_s: float) -> None:
        pass


def devices() -> list[Device]:
    """This machine."""
    return [LocalConnection().device]


def connect(address: str = "") -> LocalConnection:
    """This machine. `address` is empty."""
    if address:
        raise UsageError("device.unknown", f"this machine has no address: '{address}'", f"write '{NAME}'")
    return LocalConnection()
