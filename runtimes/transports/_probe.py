"""Many devices asked at once what they are."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor

from edge.core.errors import EdgeError
from edge.core.target import Device
from edge.core.transport import Connection


def probe(name: str, connect: Callable[[str], Connection]) -> Device:
    """The device of this name; with its `problem` where it can't be reached. Takes no longer than `connect`."""
    try:
        connection = connect(name)
    except EdgeError as error:
        return Device(name, name.partition(":")[0], "", 0, 0, problem=str(error))
    connection.close()
    return connection.device


def in_parallel(connect: Callable[[str], Connection], names: Iterable[str]) -> list[Device]:
    """In the order of `names`, each `TRANSPORT:ADDRESS`; `connect` takes the address."""
    with ThreadPoolExecutor(16) as pool:
        return list(pool.map(lambda name: probe(name, lambda name: connect(name.partition(":")[2])), names))
