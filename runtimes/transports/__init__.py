"""Devices that edge can run on: this machine, phones over adb, boards over ssh."""

from __future__ import annotations

from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor

from edge.core.errors import UsageError, nearest
from edge.core.plugins import TRANSPORTS
from edge.core.target import Device
from edge.core.transport import Connection


def connect(name: str) -> Connection:
    """A device by its name: `cpu`, `adb:SERIAL`, `ssh:[USER@]HOST[:PORT]`.

    Raises `UsageError` for no such kind of name, `DeviceUnavailable` where the device can't be used.
    """
    transport, _, address = name.partition(":")
    transport = "local" if transport == "cpu" else transport
    if transport not in TRANSPORTS.names():
        known = ("cpu", *(f"{other}:" for other in TRANSPORTS.names() if other != "local"))
        raise UsageError("device.unknown", f"'{name}' names no device", nearest(name, known))
    connection: Connection = TRANSPORTS.load(transport).connect(address)
    return connection


def devices(names: Iterable[str] = ()) -> list[Device]:
    """What is there, asked all at once, and the devices of these names: each once, also what can't be used."""
    from edge.runtimes.transports._probe import probe

    def seen(transport: str) -> list[Device]:
        found: list[Device] = TRANSPORTS.load(transport).devices()
        return found

    with ThreadPoolExecutor(16) as pool:
        listed = [pool.submit(seen, transport) for transport in ("local", *_others())]
        named = [pool.submit(probe, name, connect) for name in names]
        found = [device for future in listed for device in future.result()] + [future.result() for future in named]
    return list({device.name: device for device in found}.values())


def _others() -> list[str]:
    return [transport for transport in TRANSPORTS.names() if transport != "local"]
