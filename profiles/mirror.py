"""The small files of a device that tell what it is and how it fares, as a local tree: readers with `root=` work on it.

A shell script that needs nothing but a shell prints them in one go: a line with `=` and the path, then each line of the
file after a blank, or `!` and the path of a file that is there and can't be read. `read` is built into the shell, so
three hundred files take no three hundred processes.
"""

from __future__ import annotations

import re
from pathlib import Path

from edge.core.errors import EdgeError
from edge.core.files import full_disk_is_an_error
from edge.core.transport import Connection

MOST_BYTES, MOST_FILES, MOST_OF_ONE = 8 << 20, 8000, 1 << 18
MOST_LINES = 2000
DENIED = "not-readable"
"""A file at the tree's top that lists what is there and can't be read."""
SAFE = re.compile(r"(?:proc|sys)(?:/[\w.,:@+=-]+)+")
CORE = "sys/devices/system/cpu/cpu[0-9]*"
SUPPLY = "sys/class/power_supply/*"
I2C = "sys/bus/i2c/devices/*"
PATTERNS = (
    *("proc/cpuinfo", "proc/meminfo", "proc/version", "proc/device-tree/model", "proc/device-tree/compatible"),
    *("proc/sys/kernel/random/boot_id", "sys/devices/system/cpu/possible", "sys/devices/system/cpu/online"),
    *(f"{CORE}/cpufreq/scaling_{what}" for what in ("cur_freq", "max_freq", "min_freq", "governor")),
    *(f"{CORE}/cpufreq/{what}" for what in ("cpuinfo_max_freq", "cpuinfo_min_freq", "related_cpus")),
    *(f"{CORE}/{what}" for what in ("cpu_capacity", "topology/core_id", "topology/physical_package_id")),
    *(f"sys/devices/system/cpu/cpu0/cache/index[0-9]*/{what}" for what in ("level", "type", "size")),
    *(f"sys/class/thermal/thermal_zone[0-9]*/{what}" for what in ("type", "temp")),
    *(f"{SUPPLY}/{what}" for what in ("type", "status", "online", "capacity", "temp")),
    *(f"{SUPPLY}/{what}_now" for what in ("current", "voltage", "power", "charge", "energy")),
    *(f"sys/class/powercap/intel-rapl*/{what}" for what in ("name", "energy_uj", "max_energy_range_uj")),
    *(f"{I2C}/hwmon/hwmon*/{what}" for what in ("in[1-7]_label", "in[1-7]_input", "curr[1-3]_input")),
    *(f"{I2C}/hwmon/hwmon*/{what}" for what in ("name", "power1_input", "shunt[1-3]_resistor", "update_interval")),
    *(
        f"{chip}/iio:device*/{what}"
        for chip in (I2C, "sys/bus/iio/devices")
        for what in ("rail_name_[0-2]", "in_voltage[0-2]_input", "in_current[0-2]_input", "in_power[0-2]_input")
    ),
)
SCRIPT = f"""
LC_ALL=C
cd "$1" || exit 1
for file in {" ".join(PATTERNS)}; do
  [ -f "$file" ] || continue
  if [ ! -r "$file" ]; then printf '!%s\\n' "$file"; continue; fi
  printf '=%s\\n' "$file"
  count=0
  {{ while [ $count -lt {MOST_LINES} ] && {{ IFS= read -r line || [ -n "$line" ]; }}; do
    printf ' %s\\n' "$line"
    count=$((count + 1))
    line=
  done < "$file"; }} 2>/dev/null
done
exit 0
"""


def mirror(connection: Connection, folder: Path, root: str = "/") -> Path:
    """Make the tree in `folder` and return it. One round trip. root: where proc/ and sys/ are on the device.

    Raises `EdgeError` (device.answer) for an answer that no such script gives: other paths, too long, too many.
    """
    done = connection.run(["sh", "-c", SCRIPT, "edge", root], timeout_s=60)
    if done.code:
        said = done.stderr.decode(errors="replace").strip().splitlines()
        raise _bad(connection, said[-1] if said else f"its shell ended with code {done.code}")
    files, denied = parse(done.stdout, connection.device.name)
    with full_disk_is_an_error(folder):
        folder.mkdir(parents=True, exist_ok=True)
        for name, content in files.items():
            path = folder / name
            try:
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(content)
            except (FileExistsError, NotADirectoryError, IsADirectoryError) as error:
                raise _bad(connection, f"{name} is a file and a folder") from error
        (folder / DENIED).write_text("".join(f"{name}\n" for name in denied))
    return folder


def parse(answer: bytes, device: str = "the device") -> tuple[dict[str, bytes], list[str]]:
    """Content by path, and the paths that can't be read. Paths are relative, below proc/ and sys/."""
    if len(answer) > MOST_BYTES:
        raise EdgeError("device.answer", f"{device} told {len(answer)} bytes about itself", _HINT)
    files: dict[str, list[bytes]] = {}
    denied: list[str] = []
    lines: list[bytes] | None = None
    for line in answer.replace(b"\r\n", b"\n").split(b"\n"):
        mark, rest = line[:1], line[1:]
        if mark == b" " and lines is not None:
            lines.append(rest)
        elif mark in (b"=", b"!"):
            name = _safe(rest, device)
            if mark == b"!":
                denied.append(name)
            lines = files.setdefault(name, []) if mark == b"=" else None
        elif line:
            raise EdgeError("device.answer", f"{device} answered {line[:60]!r}", _HINT)
    content = {name: b"".join(line + b"\n" for line in lines) for name, lines in files.items()}
    if len(content) > MOST_FILES or any(len(text) > MOST_OF_ONE for text in content.values()):
        raise EdgeError("device.answer", f"{device} told of too many or too long files", _HINT)
    return content, denied


def denied(tree: Path) -> list[str]:
    """What a mirrored device has and doesn't show; empty for this machine's own root."""
    try:
        return (tree / DENIED).read_text().splitlines()
    except OSError:
        return []


_HINT = "its shell may not be a POSIX one, or prints something when it starts"


def _safe(raw: bytes, device: str) -> str:
    name = raw.decode(errors="replace")
    if not SAFE.fullmatch(name) or ".." in name.split("/") or len(name) > 300:
        raise EdgeError("device.answer", f"{device} answered with the path {name[:80]!r}", _HINT)
    return name


def _bad(connection: Connection, reason: str) -> EdgeError:
    return EdgeError("device.answer", f"{connection.device.name} didn't tell about itself: {reason}", _HINT)
