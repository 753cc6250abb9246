"""edge devices"""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated

import typer

from edge.cli._output import Json, print_json, print_table, size
from edge.core.console import info

if TYPE_CHECKING:
    from edge.core.target import Device


def command(
    names: Annotated[
        list[str] | None,
        typer.Argument(help="Devices to look for as well: ssh:[USER@]HOST[:PORT], adb:HOST:PORT.", show_default=False),
    ] = None,
    forget: Annotated[str, typer.Option(help="Drop a remembered ssh host from the list.", show_default=False)] = "",
    json: Json = False,
) -> None:
    """List the devices that `edge profile` can use, and why others can't be used.

    This machine, all that adb sees, and boards over ssh: a board that was named here and answered is remembered, in
    the cache folder's `ssh-hosts`. Exits with 3 when a device that was named can't be used.
    """
    from edge.core.errors import DeviceUnavailable
    from edge.runtimes.transports import adb, devices, ssh

    if forget:
        ssh.forget(forget)
    names = names or []
    found = devices(names)
    ready = {device.name for device in found if not device.problem}
    ssh.remember([name for name in names if name.startswith("ssh:") and name in ready])
    if json:
        print_json(found)
    else:
        _show(found)
        try:
            adb.find_adb()
        except DeviceUnavailable as error:
            info(f"phones: {error}")
    if any(device.problem for device in found if device.name in names):
        raise typer.Exit(DeviceUnavailable.exit_code)


def _show(found: "list[Device]") -> None:
    """A table without the columns that say nothing, and below it why devices can't be used."""
    columns = ("device", "model", "SoC", "cores", "memory", "battery", "free", "state")
    rows = [tuple(_row(device)) for device in found]
    used = [index for index in range(len(columns)) if any(row[index] for row in rows)]
    print_table([columns[index] for index in used], [[row[index] for index in used] for row in rows])
    for device in found:
        if device.problem:
            print(device.problem if device.name in device.problem else f"{device.name}: {device.problem}")


def _row(device: "Device") -> Iterator[str]:
    yield device.name
    yield device.model
    yield device.soc
    yield str(device.cores or "")
    yield size(device.memory_bytes) if device.memory_bytes else ""
    yield "" if device.battery_percent is None else f"{device.battery_percent} %"
    yield "" if device.free_bytes is None else size(device.free_bytes)
    yield "can't be used" if device.problem else "emulated" if device.emulated else "ready"
