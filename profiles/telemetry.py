"""What a device's sampler reads beside a run, and where the energy of the run comes from.

`columns` follows from the device's tree (see `mirror`): memory of the program, clocks and their caps, temperatures,
the battery, and the files of the best power source that is there. `profiles.sampled` reads what the sampler wrote.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

from edge.core.measurement import Energy
from edge.profiles import journal
from edge.profiles.accounting import account, not_available
from edge.profiles.energy import Window
from edge.profiles.energy_meter import find_source
from edge.profiles.journal import Entry, Repeated, Span
from edge.profiles.mirror import denied
from edge.profiles.plan import Plan, turns_of
from edge.runtimes.probes.power.series import PowerUnavailableError, Series, Source
from edge.runtimes.probes.thermal import NO_READING_C

ZONES = "sys/class/thermal"
CPUS = "sys/devices/system/cpu"
SUPPLY = "sys/class/power_supply"
SLOW_MS, RARE_MS = 1000, 5000
"""How often temperatures and the battery are read, and what costs milliseconds; all else in every tick."""

Power = Callable[[Sequence[Window]], tuple[Series, str]]
"""From the stretches of the load to the power over time, and what to call its source."""


@dataclass(frozen=True)
class Column:
    """A number that the sampler reads: the first integer after `key` in the file `path`, in every `every`-th tick.

    unit: mC, kHz, kB, percent, dC (0.1 °C), flag, or raw for a part of what `profiles.sampled` puts together.
    """

    name: str
    unit: str
    path: str
    key: str = ""
    every: int = 1


def columns(tree: Path, root: str = "/", interval_ms: int = 100) -> list[Column]:
    """What there is to watch on the device whose mirror is `tree`. root: where proc/ and sys/ are on the device.

    Power comes first: its time stamps are the tightest.
    """
    slow, rare = (max(1, round(ms / interval_ms)) for ms in (SLOW_MS, RARE_MS))
    found = find_source(tree)[0]
    of_tree = [
        *(_power(found, tree) if found else []),
        *(Column(f"{kind}/cpu{n}", "kHz", path) for kind in ("frequency", "cap") for n, path in _clocks(tree, kind)),
        Column("memory/resident", "kB", "/proc/{pid}/status", "VmRSS:"),
        Column("memory/peak", "kB", "/proc/{pid}/status", "VmHWM:"),
        *(Column(f"temperature/{name}", "mC", path, every=slow) for name, path in _zones(tree)),
        *_battery(tree, slow),
        Column("memory/proportional", "kB", "/proc/{pid}/smaps_rollup", "Pss:", rare),
    ]
    return [replace(c, path=str(PurePosixPath(root) / c.path)) for c in of_tree]


def text(watched: Sequence[Column]) -> str:
    """The file that the sampler is given."""
    return "".join(f"{c.name}\t{c.unit}\t{c.path}\t{c.key}\t{c.every}\n" for c in watched)


def watched(tree: Path, root: str = "/") -> dict[str, list[str]]:
    """What the runner itself reads around each repetition: paths on the device by `temperature`, `frequency`, `cap`."""
    found = {kind: [path for _, path in _clocks(tree, kind)] for kind in ("frequency", "cap")}
    found["temperature"] = [path for _, path in _zones(tree)]
    return {kind: [str(PurePosixPath(root) / path) for path in paths] for kind, paths in found.items()}


def source_of(tree: Path) -> tuple[Source | None, str]:
    """The best power source of a mirrored device, or why there is none."""
    source, reason = find_source(tree)
    hidden = [name for name in denied(tree) if re.search("power_supply|powercap|i2c|iio", name)]
    if source is None and hidden:
        reason += f"; not readable there: {', '.join(hidden[:3])}{' ..' if len(hidden) > 3 else ''}"
    return source, reason


def energy(entries: Sequence[Entry], plan: Plan, power: Power | str) -> Energy:
    """What the kept repetitions of a journal used, net of the idle stretches around them.

    power: where it comes from (`sampled.from_samples`, `accounting.from_meter`, `perfetto_rails.from_trace`), or why
    from nowhere. Of a device that restarted in between, what came after the restart counts.
    """
    if isinstance(power, str):
        return not_available(power)
    spans, kept = _of_last_boot(entries, plan)
    before = next((_window(s) for s in spans if s.name == "idle before"), None)
    after = next((_window(s) for s in reversed(spans) if s.name == "idle after"), None)
    if before is None or after is None:
        return not_available("the run has no idle stretches before and after it")
    windows = [_window(s) for s in spans if s.name in ("prefill", "decode", "call") and _inside(s, kept)]
    if not windows:
        return not_available("no repetition was kept")
    try:
        series, described = power(windows)
    except PowerUnavailableError as error:
        return not_available(str(error))
    return account(series, described, before, windows, after)


def _of_last_boot(entries: Sequence[Entry], plan: Plan) -> tuple[list[Span], list[Repeated]]:
    """Spans and repetitions that are in the statistics, of the attempts whose clock is the last one's."""
    attempts = journal.attempts(entries)
    same = [entry for a in attempts if a.begin.boot == attempts[-1].begin.boot for entry in a.entries]
    spans = [entry for entry in same if isinstance(entry, Span)]
    kept = [
        turn
        for repetition in journal.finished(same, len(turns_of(plan)))
        if plan.mode == "sustained" or not any(turn.throttled for turn in repetition)
        for turn in repetition
    ]
    return spans, kept


def _window(span: Span) -> Window:
    return Window(span.name, span.start_ns, span.end_ns, span.tokens)


def _inside(span: Span, kept: Sequence[Repeated]) -> bool:
    middle = (span.start_ns + span.end_ns) // 2
    return any(r.start_ns <= middle <= r.start_ns + r.prefill_ns + sum(r.decode_ns) for r in kept)


def _power(source: Source, tree: Path) -> list[Column]:
    return [
        Column(rail(channel.name, i), "raw", file.relative_to(tree).as_posix())
        for channel in source.channels
        for i, file in enumerate(channel.files)
    ]


def rail(channel: str, part: int) -> str:
    """The name of the column with one of a channel's files."""
    return f"rail/{_plain(channel)}/{part}"


def _clocks(tree: Path, kind: str) -> Iterator[tuple[int, str]]:
    name = {"frequency": "scaling_cur_freq", "cap": "scaling_max_freq"}[kind]
    for file in _numbered(tree / CPUS, "cpu", f"cpufreq/{name}"):
        yield int(file.parts[-3].removeprefix("cpu")), file.relative_to(tree).as_posix()


def _zones(tree: Path) -> Iterator[tuple[str, str]]:
    """Zones that have a reading; those of one name are told apart by their number."""
    seen: set[str] = set()
    for file in _numbered(tree / ZONES, "thermal_zone", "temp"):
        try:
            celsius = int(file.read_text()) / 1000
            name = _plain((file.parent / "type").read_text().strip())
        except (OSError, ValueError):
            continue
        if celsius > NO_READING_C:
            number = file.parent.name.removeprefix("thermal_zone")
            yield (f"{name}.{number}" if name in seen else name), file.relative_to(tree).as_posix()
            seen.add(name)


def _battery(tree: Path, every: int) -> Iterator[Column]:
    """Of batteries level and temperature, of everything else whether it feeds the device."""
    for folder in sorted((tree / SUPPLY).glob("*")):
        kind = _read(folder / "type")
        if kind == "Battery" and (folder / "capacity").exists():
            yield Column("battery/level", "percent", f"{SUPPLY}/{folder.name}/capacity", every=every)
        if kind == "Battery" and (folder / "temp").exists():
            yield Column("temperature/battery", "dC", f"{SUPPLY}/{folder.name}/temp", every=every)
        if kind != "Battery" and (folder / "online").exists():
            yield Column(f"charger/{_plain(folder.name)}", "flag", f"{SUPPLY}/{folder.name}/online", every=every)


def _numbered(folder: Path, stem: str, file: str) -> list[Path]:
    """Files of folders `stem0`, `stem1`, .. in the order of their numbers."""
    numbers = sorted(int(n) for path in folder.glob(f"{stem}[0-9]*") if (n := path.name.removeprefix(stem)).isdecimal())
    return [path for n in numbers if (path := folder / f"{stem}{n}" / file).exists()]


def _plain(name: str) -> str:
    return re.sub(r"[\s/]+", "-", name) or "unnamed"


def _read(file: Path) -> str:
    try:
        return file.read_text().strip()
    except OSError:
        return ""
