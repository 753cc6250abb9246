"""What state a device is in while it is measured: recorded always, set on request, given back whatever happens.

Recorded: screen, brightness, airplane mode, battery saver, charging, battery level, thermal status, governors and
nvpmodel.
Set only where the user asks for it (`--prepare`), as it changes somebody's phone:

- Screen on at its lowest brightness, automatic brightness off: its share of the energy is then small and the same in
  idle and load. Not off: unplugged, a phone with its screen off goes to sleep in the middle of a run, and a shell may
  not keep it awake. `screen off` may be asked for where it is on power.
- Airplane mode, unless the connection itself goes over the network; battery saver off, which caps the clocks.
- Fixed-performance mode (Android 11 and newer), where the maker built it in: steady clocks, lower than the highest.
- On boards, for root: the governor `performance`. nvpmodel is left alone: some of its modes need a restart.

`dumpsys battery unplug` isn't used: it tells Android that there is no charger, but the charger goes on feeding it, and
every later reading of the battery service is frozen.

What is to be given back is written down here before anything is set, and on the device too, where a small process gives
it back when it has heard nothing from here for `SILENT_S`: after kill -9 of this process, or a pulled cable.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

import msgspec

from edge.core.console import info
from edge.core.errors import DeviceUnavailable, EdgeError, UsageError, nearest
from edge.core.files import SCHEMA, cache_folder, full_disk_is_an_error, read_json, write_json
from edge.core.transport import Completed, Connection, DeviceLost
from edge.profiles._state_script import SCRIPT
from edge.runtimes.probes.power.battery import parse_dumpsys
from edge.runtimes.probes.thermal import parse_thermalservice

BEAT_S = 20.0
SILENT_S = 240
"""Longer than a run waits for a lost device: one that comes back finds its state as it was set."""
STEP_S = 10
VALUE = re.compile(r"[\w.:-]{1,40}")
ORDER = ("battery-saver", "brightness-mode", "brightness", "screen-timeout", "fixed-performance", "airplane", "screen")
"""Of setting; giving back goes the other way."""
ANDROID = {
    "battery-saver": "0",
    "brightness-mode": "0",
    "brightness": "1",
    "screen-timeout": "2147483647",
    "fixed-performance": "1",
    "airplane": "1",
    "screen": "on",
}
AFTER_BOOT = {"fixed-performance": "0"}
"""What can be set and not read: given back as it is after a start."""
SWITCH = {"0": "off", "1": "on", "null": "off"}
WORDS = {
    "airplane": SWITCH,
    "battery-saver": SWITCH,
    "fixed-performance": SWITCH,
    "brightness-mode": {"0": "manual", "1": "automatic"},
}


class Kept(msgspec.Struct, frozen=True):
    """What to give back to a device: values as they were, by name."""

    device: str
    values: dict[str, str]
    schema: int = SCHEMA


@contextmanager
def prepared(
    connection: Connection, wanted: Mapping[str, str] | bool = False, root: str = ""
) -> Iterator[dict[str, str]]:
    """The device's state as it is (`screen`) and, where `wanted` asks for another, as it was set (`screen set`).

    wanted: values by name, True for those of `preparation`; nothing is set by default. What an earlier process left
    behind is given back first. root: what is before /sys there. Raises `UsageError` for an unknown name, `EdgeError`
    (device.busy) where another process has prepared this device.
    """
    with _locked(connection):
        restore(connection, root)
        values = _read(connection, root)
        state = _shown(values)
        wanted = preparation(connection, root=root) if wanted is True else wanted
        if not wanted:
            yield state
            return
        ordered = _checked(wanted, values)
        before = {name: values.get(name, AFTER_BOOT.get(name, "")) for name in reversed(ordered)}
        _keep(connection, {name: value for name, value in before.items() if value}, root)
        try:
            state |= _set(connection, ordered, root)
            with _heard(connection, ordered, root, state):
                yield state
        finally:
            _give_back(connection, root)


def preparation(connection: Connection, screen: str = "on", root: str = "") -> dict[str, str]:
    """What `--prepare` sets on this device, empty where nothing can be."""
    values = _read(connection, root)
    wanted = {name: "performance" for name in values if name.startswith("governor-")}
    if "brightness" in values or "airplane" in values:
        wanted |= ANDROID | {"screen": screen}
    if _over_network(connection):
        wanted.pop("airplane", None)
    return wanted


def restore(connection: Connection, root: str = "") -> None:
    """Give back what a process that was killed left behind; nothing to do mostly."""
    if _file(connection).exists():
        _give_back(connection, root)


def _checked(wanted: Mapping[str, str], values: Mapping[str, str]) -> dict[str, str]:
    known = [*ORDER, *(name for name in values if name.startswith("governor-"))]
    for name, value in wanted.items():
        if name not in known:
            raise UsageError("state.unknown", f"no state of a device is called '{name}'", nearest(name, known))
        if not VALUE.fullmatch(value):
            raise UsageError("state.value", f"'{value}' is no value for {name}", "give a word or a number")
    return {name: wanted[name] for name in known if name in wanted}


def _read(connection: Connection, root: str) -> dict[str, str]:
    """Values by name, those of Android's services among them."""
    text = _run(connection, "read", root).stdout.decode(errors="replace")
    own, _, services = text.partition("battery:\n")
    cells = [line.split("\t", 1) for line in own.splitlines() if "\t" in line]
    values = {name: value.strip() for name, value in cells if VALUE.fullmatch(value.strip())}
    battery, _, thermal = services.partition("thermal:\n")
    if services:
        found = parse_dumpsys(battery)
        chargers = re.findall(r"^\s*(\w+) powered:\s*true", battery, re.MULTILINE)
        values["charging"] = ", ".join(chargers) or "no"
        values |= {} if found.level_percent is None else {"battery-level": f"{found.level_percent} %"}
        values |= {"battery-readings": "set by hand"} if found.faked else {}
        status = parse_thermalservice(thermal).status
        values |= {} if status is None else {"thermal-status": str(status)}
    return values


def _shown(values: Mapping[str, str]) -> dict[str, str]:
    """For people: words for numbers, all cores' governors as one, the chargers of a board as one."""
    state = {name.replace("-", " "): WORDS.get(name, {}).get(value, value) for name, value in values.items()}
    for stem in ("governor", "online"):
        for name in [name for name in state if name.startswith(f"{stem} ")]:
            value = state.pop(name)
            if stem == "online" and value == "1" and "Battery" not in name:
                state.setdefault("charging", name.removeprefix("online "))
            elif stem == "governor":
                state[stem] = ", ".join(sorted({*filter(None, state.get(stem, "").split(", ")), value}))
    return state


def _set(connection: Connection, wanted: Mapping[str, str], root: str) -> dict[str, str]:
    """Set in this order; what each then is, or that the device refused."""
    done = _run(connection, "put", root, stdin=_lines(wanted))
    state: dict[str, str] = {}
    for line in done.stdout.decode(errors="replace").splitlines():
        name, result, now = [*line.split("\t"), "", ""][:3]
        taken = result == "done" and now in ("", wanted.get(name))
        stem = "governor" if name.startswith("governor-") else name.replace("-", " ")
        value = WORDS.get(name, {}).get(wanted.get(name, ""), wanted.get(name, "")) if taken else "refused"
        state[f"{stem} set"] = value if state.get(f"{stem} set", value) == value else "refused"
    return state


def _keep(connection: Connection, values: Mapping[str, str], root: str) -> None:
    """Write down what to give back, here first, then there; and start the process there that would."""
    file = _file(connection)
    with full_disk_is_an_error(file):
        file.parent.mkdir(parents=True, exist_ok=True)
        write_json(file, Kept(connection.device.name, dict(values)))
    kept = _run(connection, "keep", root, stdin=_lines(values))
    if kept.code:
        raise EdgeError("state.keep", f"{connection.device.name}: {kept.stderr.decode(errors='replace').strip()}")
    _guard(connection, root)


def _guard(connection: Connection, root: str) -> None:
    command = [*_command(connection, "guard", root), str(SILENT_S), str(STEP_S)]
    connection.start(command, log=f"{connection.folder}/guard.log")


@contextmanager
def _heard(connection: Connection, wanted: Mapping[str, str], root: str, state: dict[str, str]) -> Iterator[None]:
    """Let the device know that somebody is here. Where it has given its state back meanwhile, set it again."""
    over = threading.Event()

    def beat() -> None:
        count = 0
        while not over.wait(BEAT_S):
            count += 1
            with suppress(EdgeError):
                if b"gone" in _run(connection, "beat", root, str(count)).stdout:
                    kept = read_json(_file(connection), Kept)
                    _run(connection, "keep", root, stdin=_lines(kept.values))
                    _guard(connection, root)
                    _set(connection, wanted, root)
                    state["interrupted"] = "the device gave its state back while it heard nothing, and was set again"

    thread = threading.Thread(target=beat, name="edge-state", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join(timeout=BEAT_S)


def _give_back(connection: Connection, root: str) -> None:
    """Give back now, or say when. What was written down stays until the device has it."""
    file = _file(connection)
    try:
        _run(connection, "restore", root, stdin=_lines(read_json(file, Kept).values))
        file.unlink()
    except (DeviceLost, DeviceUnavailable):
        info(f"{connection.device.name} is gone: it gives its state back by itself within {SILENT_S + STEP_S:.0f} s")


def _run(connection: Connection, action: str, root: str, *more: str, stdin: bytes = b"") -> Completed:
    return connection.run([*_command(connection, action, root), *more], stdin=stdin, timeout_s=60)


def _command(connection: Connection, action: str, root: str) -> list[str]:
    return ["sh", "-c", SCRIPT, "edge", action, f"{connection.folder}/state", root]


def _lines(values: Mapping[str, str]) -> bytes:
    return "".join(f"{name} {value}\n" for name, value in values.items()).encode()


def _over_network(connection: Connection) -> bool:
    name = connection.device.name
    return name.startswith("ssh:") or bool(re.search(r":\d+$|_adb-tls", name.removeprefix("adb:")))


def _file(connection: Connection) -> Path:
    return cache_folder() / "state" / f"{re.sub(r'[^A-Za-z0-9.-]+', '_', connection.device.name)}.json"


@contextmanager
def _locked(connection: Connection) -> Iterator[None]:
    """One process at a time sets a device; the lock goes with the process."""
    file = _file(connection).with_suffix(".lock")
    with full_disk_is_an_error(file):
        file.parent.mkdir(parents=True, exist_ok=True)
        with file.open("w") as held:
            try:
                import fcntl

                fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except ImportError:  # Windows: two at once are not told apart
                pass
            except OSError as error:
                message = f"{connection.device.name} is being profiled by another process"
                raise EdgeError("device.busy", message, "wait until that one is done, or end it") from error
            yield
