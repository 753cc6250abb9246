"""Android phones over Google's adb: the user's own, else the one that PyPI's `adbutils` brings."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import socket
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path

from edge.core.errors import DeviceUnavailable, UsageError
from edge.core.target import Device
from edge.runtimes.transports._probe import in_parallel
from edge.runtimes.transports._shell import ShellConnection

SDKS = ("$ANDROID_HOME", "$ANDROID_SDK_ROOT", "~/Android/Sdk", "~/Library/Android/sdk")
NETWORK = re.compile(r"(?:\[[\da-fA-F:.%\w]+\]|[\w.-]+):\d+")
STATES = "device|offline|unauthorized|authorizing|connecting|recovery|rescue|sideload|bootloader|host|no permissions"
LINE = re.compile(rf"(?P<serial>\S.*?)\s+(?P<state>{STATES})(?=\s|$)(?P<rest>.*)")
TRACKED_S = 10.0
"""Seconds after which waiting for a device looks again for what is wrong with it."""
HINTS = {
    "offline": "plug it in again, or run `adb reconnect offline`",
    "unauthorized": "unlock it and accept the dialog about USB debugging",
    "authorizing": "unlock it and accept the dialog about USB debugging",
    "connecting": "try again in a moment",
    "no permissions": "install the udev rules for Android (Debian: android-udev-rules) and plug it in again",
}


class AdbConnection(ShellConnection):
    """Each command is an `adb shell` of its own, through adb's server."""

    def __init__(self, serial: str) -> None:
        super().__init__(f"adb:{serial}")
        self._serial = serial
        self._adb = find_adb()
        if NETWORK.fullmatch(serial) and states(self._adb).get(serial) != "device":
            self._join()
        self._check()
        if "shell_v2" not in self._ask("features").split():
            raise DeviceUnavailable("device.old", f"{self.name} has no shell with exit codes", "it needs Android 7")
        self.look()

    def _here(self, command: Sequence[str]) -> list[str]:
        # An escape character would make adb read stdin byte by byte.
        return [self._adb, "-s", self._serial, "shell", "-T", "-e", "none", shlex.join(command)]

    def _ask(self, *arguments: str) -> str:
        return _adb(self._adb, "-s", self._serial, *arguments)

    def _join(self) -> None:
        """Connect to a device on the network. adb's exit code has said nothing for most of its life."""
        said = _adb(self._adb, "connect", self._serial)
        if "connected to" not in said or "failed" in said or "unable" in said:
            _adb(self._adb, "disconnect", self._serial)  # else adb lists it, and goes on trying
            hint = "switch on wireless debugging, or run `adb tcpip 5555` while it is plugged in"
            raise DeviceUnavailable("device.unreachable", f"can't reach {self.name}: {said.strip()}", hint)

    def _check(self, patience_s: float = 5) -> None:
        """Raise unless adb calls it ready; one that has just been joined needs a moment."""
        end = time.monotonic() + patience_s
        while (state := states(self._adb).get(self._serial)) in ("offline", "connecting", "authorizing"):
            if time.monotonic() > end:
                break
            time.sleep(0.2)
        if state is None:
            hint = "see `edge devices`; plug it in, and switch on USB debugging"
            raise DeviceUnavailable("device.missing", f"there is no {self.name}", hint)
        if state != "device":
            raise DeviceUnavailable("device.not_ready", f"{self.name}: {state}", hint_for(state))

    def _come_back(self, timeout_s: float) -> None:
        if NETWORK.fullmatch(self._serial):
            if states(self._adb).get(self._serial) == "offline":
                _adb(self._adb, "disconnect", self._serial)
            self._join()
        elif states(self._adb).get(self._serial) != "device":
            wait_for(self._serial, min(timeout_s, TRACKED_S))
        self._check(patience_s=2)


def connect(address: str) -> AdbConnection:
    """A serial number as `adb devices` shows it, HOST:PORT of one on the network, or nothing for the only one."""
    if not address:
        found = states(find_adb())
        if len(found) != 1:
            hint = f"write one of: {', '.join(f'adb:{serial}' for serial in found)}" if found else "plug one in"
            raise UsageError("device.which", f"adb sees {len(found)} devices", hint)
        (address,) = found
    if address.startswith("-"):
        raise UsageError("device.address", f"'adb:{address}' is not a device", "write adb:SERIAL or adb:HOST:PORT")
    return AdbConnection(address)


def devices() -> list[Device]:
    """All that adb sees; none where there is no adb. Asking starts its server, as every use of adb does."""
    try:
        found = parse(_adb(find_adb(), "devices", "-l"))
    except DeviceUnavailable:
        return []
    ready = in_parallel(connect, [device.name for device in found if not device.problem])
    known = {device.name: device for device in ready}
    return [known.get(device.name, device) for device in found]


def find_adb() -> str:
    """The user's own adb first: two versions would end each other's server. Raises `DeviceUnavailable`."""
    for sdk in SDKS:
        tool = Path(os.path.expandvars(sdk)).expanduser() / "platform-tools" / "adb"
        if os.access(tool, os.X_OK):
            return str(tool)
    if own := shutil.which("adb"):
        return own
    try:
        import adbutils
    except ImportError as error:
        hint = 'install Android\'s platform-tools, or run: pip install "edge-deploy[adb]"'
        raise DeviceUnavailable("adb.missing", "there is no adb here, which phones need", hint) from error
    return str(adbutils.adb_path())


def states(adb: str) -> dict[str, str]:
    """What adb says of each device, by serial."""
    return {m["serial"]: m["state"] for m in map(LINE.fullmatch, _lines(_adb(adb, "devices"))) if m}


def parse(listing: str) -> list[Device]:
    """Devices from `adb devices -l`, with their problems; nothing else is known of them yet."""
    found = []
    for match in filter(None, map(LINE.fullmatch, _lines(listing))):
        said = dict(word.split(":", 1) for word in match["rest"].split() if ":" in word)
        model = said.get("model", "").replace("_", " ")
        state = match["state"]
        problem = "" if state == "device" else f"{state} ({hint_for(state)})"
        found.append(Device(f"adb:{match['serial']}", "adb", model, 0, 0, problem=problem))
    return found


def hint_for(state: str) -> str:
    """What to do about a device that isn't in the state `device`."""
    return HINTS.get(state, "start Android on it")


def _lines(listing: str) -> list[str]:
    """Without the heading and what adb says of its server."""
    lines = map(str.strip, listing.splitlines())
    return [line for line in lines if line and not line.startswith(("*", "List of devices"))]


def _adb(adb: str, *arguments: str, timeout_s: float = 20) -> str:
    """stdout and stderr of a command to adb itself. Raises `DeviceUnavailable` where that hangs or can't start."""
    try:
        done = subprocess.run(
            [adb, *arguments],
            check=False,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=timeout_s,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        hint = "run `adb kill-server`, then try again"
        raise DeviceUnavailable("adb.hangs", f"adb {arguments[-1]} gives no answer: {error}", hint) from error
    return done.stdout + done.stderr


def wait_for(serial: str, timeout_s: float) -> None:
    """Until adb's server reports the device as ready, or the time is over. Without adbutils: one second."""
    try:
        from adbutils import AdbClient, AdbError
    except ImportError:
        time.sleep(1)
        return
    client = AdbClient(socket_timeout=timeout_s)
    try:
        # Where no server listens adbutils starts one, of an adb that may not be ours.
        socket.create_connection((client.host, client.port), timeout_s).close()
        for event in client.track_devices():
            if (event.serial, event.status) == (serial, "device"):
                return
    except (AdbError, OSError):
        time.sleep(1)
