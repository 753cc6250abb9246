"""Synthetic devices whose true power is known, read through the same files and lines as real ones. Not measurements.

A case draws everything within what a source states about itself: levels, drift, background, load pattern, sampling,
gaps, gain, offset, quantization, clock. `estimate` runs the real readers and the real arithmetic on it.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from edge.profiles.energy import Window, WindowEnergy, idle_baseline, total, window_energy
from edge.runtimes.probes.power import battery, ina3221, meter_csv, nvml, odpm, powermetrics, rapl, tegrastats
from edge.runtimes.probes.power.series import Channel, Series, Source, refreshed, series_of

START_NS = 5_000_000_000_000
RAILS = (0.5, 0.3, 0.2)  # of the total, for boards whose rails are summed


@dataclass(frozen=True)
class Truth:
    """Power in W on a grid of `step_ns` from START_NS on; `load_w` is the part that the load adds."""

    step_ns: int
    power_w: np.ndarray
    load_w: np.ndarray
    windows: list[Window]
    before: Window
    after: Window

    @property
    def end_ns(self) -> int:
        return START_NS + self.step_ns * len(self.power_w)

    def power_uw(self, at_ns: float) -> float:
        return 1e6 * float(self.power_w[min(max(int((at_ns - START_NS) // self.step_ns), 0), len(self.power_w) - 1)])

    def energy_uj(self, at_ns: float, of: str = "power") -> float:
        """Since START_NS."""
        levels = self.power_levels if of == "power" else self.load_levels
        place = min(max((at_ns - START_NS) / self.step_ns, 0.0), len(levels) - 1.001)
        i = int(place)
        return float(levels[i] + (place - i) * (levels[i + 1] - levels[i]))

    @property
    def power_levels(self) -> np.ndarray:
        return _cumulated(self, "power_w")

    @property
    def load_levels(self) -> np.ndarray:
        return _cumulated(self, "load_w")


def _cumulated(truth: Truth, name: str) -> np.ndarray:
    key = f"_{name}_levels"
    if key not in truth.__dict__:
        levels = np.concatenate([[0.0], np.cumsum(getattr(truth, name)) * truth.step_ns / 1000])
        object.__setattr__(truth, key, levels)
    return truth.__dict__[key]


def make_truth(rng: np.random.Generator, scale: float = 1.0, idle_w: float = 2.0, load_w: float = 5.0) -> Truth:
    """Idle, two to four conversations of a prefill and a decode with pauses, idle. Times are in `scale` seconds."""
    step_ns = round(2e6 * scale)
    at = START_NS + round(1e9 * scale * rng.uniform(0.3, 0.6))
    before = Window("idle before", at, at + round(1e9 * scale * rng.uniform(4, 6)))
    at = before.end_ns + round(1e9 * scale * rng.uniform(0.1, 0.5))
    windows = []
    for _ in range(rng.integers(2, 5)):
        for name, shortest, longest in (("prefill", 0.8, 1.5), ("decode", 2.0, 4.0)):
            end = at + round(1e9 * scale * rng.uniform(shortest, longest))
            windows.append(Window(name, at, end, 16))
            at = end
        at += round(1e9 * scale * rng.uniform(0.0, 0.4))
    after_start = at + round(1e9 * scale * rng.uniform(0.3, 0.8))
    after = Window("idle after", after_start, after_start + round(1e9 * scale * rng.uniform(4, 6)))
    points = int((after.end_ns - START_NS + 0.6e9 * scale) // step_ns)
    time = START_NS + step_ns * (np.arange(points) + 0.5)
    load = np.zeros(points)
    levels = {"prefill": load_w * rng.uniform(1.0, 1.6), "decode": load_w * rng.uniform(0.7, 1.0)}
    for window in windows:
        inside = (time >= window.start_ns) & (time < window.end_ns)
        period = 1e9 * scale * rng.uniform(0.01, 0.05)  # tokens: the power goes up and down with each
        wave = 1 + rng.uniform(0, 0.3) * np.sign(np.sin(2 * np.pi * (time[inside] - window.start_ns) / period))
        load[inside] = levels[window.name] * wave
    rest = idle_w * (1 + rng.uniform(-0.03, 0.03) * np.linspace(0, 1, points))
    block = max(1, int(rng.uniform(0.02, 0.2) * 1e9 * scale / step_ns))
    bursts = rng.uniform(0, 0.15) * idle_w * rng.exponential(1.0, points // block + 1).repeat(block)[:points]
    return Truth(step_ns, rest + load + bursts, load, windows, before, after)


def poll_times(rng: np.random.Generator, truth: Truth, interval_ns: float, jitter: float = 0.2) -> np.ndarray:
    """Uneven polls from start to end, with up to two gaps of a few intervals."""
    count = int((truth.end_ns - START_NS) / interval_ns) - 1
    times = START_NS + interval_ns * (np.arange(count) + 0.5 + rng.uniform(-jitter, jitter, count))
    keep = np.ones(count, bool)
    for _ in range(rng.integers(0, 3)):
        gap = rng.integers(1, max(count - 8, 2))
        keep[gap : gap + rng.integers(2, 6)] = False
    return times[keep].astype(np.int64)


def recorded(source: Source, times: np.ndarray, set_to: Callable[[int], None]) -> Series:
    """What the channels read while the device goes through `set_to`."""
    rows = []
    for at in times:
        set_to(int(at))
        rows.append([channel.read() for channel in source.channels])
    kept = [(i, channel) for i, channel in enumerate(source.channels) if channel.name in source.total]
    series = [series_of(channel, times.tolist(), [row[i] for row in rows]) for i, channel in kept]
    return refreshed(source.whole(series))


def put(root: Path, files: dict[str, object]) -> None:
    for name, value in files.items():
        path = f"{root}/{name}"
        if not os.path.exists(path):
            os.makedirs(os.path.dirname(path), exist_ok=True)
        with open(path, "w") as file:  # a Path's own way is three times as slow, and there are many
            file.write(f"{value}\n")


def of_rapl(rng: np.random.Generator, truth: Truth, root: Path) -> Series:
    """Two packages, one with DRAM, with a core domain and psys that must not count; wraps of 30 to 100 J."""
    gain, base = 1 + rng.uniform(-0.05, 0.05), "sys/class/powercap/intel-rapl"
    domains = {":0": ("package-0", 0.5), ":0:0": ("core", 0.4), ":0:1": ("dram", 0.2), ":1": ("package-1", 0.3)}
    domains[":2"] = ("psys", 1.3)
    wraps = {d: int(rng.uniform(30e6, 100e6)) for d in domains}
    offsets = {d: int(rng.uniform(0, wraps[d])) for d in domains}
    for domain, (name, _) in domains.items():
        put(root, {f"{base}{domain}/name": name, f"{base}{domain}/max_energy_range_uj": wraps[domain] - 1})

    def set_to(at: int) -> None:
        updated = at - at % 1_000_000
        for domain, (_, share) in domains.items():
            uj = offsets[domain] + int(gain * share * truth.energy_uj(updated) / 61) * 61
            put(root, {f"{base}{domain}/energy_uj": uj % wraps[domain]})

    set_to(START_NS)
    return recorded(rapl.open_source(root), poll_times(rng, truth, 1e9 * rng.uniform(0.05, 0.15)), set_to)


def _ina(rng: np.random.Generator, truth: Truth, millivolts: float, shunt_uohm: float, share: float):
    """mV and mA as the chip would read a rail: gain, offset, steps."""
    gain, shunt_offset_uv = 1 + rng.uniform(-0.015, 0.015), rng.uniform(-80, 80)

    def read(at: int) -> tuple[int, int]:
        milliamps = gain * share * truth.power_uw(at) / millivolts
        shunt_uv = milliamps * shunt_uohm / 1000 + shunt_offset_uv
        return round(millivolts / 8) * 8, round(1000 * round(shunt_uv / 40) * 40 / shunt_uohm)

    return read


def of_ina3221(rng: np.random.Generator, truth: Truth, root: Path) -> Series:
    """A board with VDD_IN and two parts of it, or one whose three rails are summed; an NC channel."""
    summed = bool(rng.integers(2))
    names = ("VDD_GPU_SOC", "VDD_CPU_CV", "VIN_SYS_5V0") if summed else ("VDD_IN", "VDD_CPU_GPU_CV", "VDD_SOC")
    shares = RAILS if summed else (1.0, 0.4, 0.3)
    chip, shunt = "sys/bus/i2c/devices/1-0040/hwmon/hwmon3", int(rng.choice([2000, 5000]))
    reads = [_ina(rng, truth, 5000, shunt, share) for share in shares]
    for n, name in enumerate(names, 1):
        put(root, {f"{chip}/in{n}_label": name, f"{chip}/shunt{n}_resistor": shunt, f"{chip}/in{n + 3}_input": 400})
    put(root, {f"{chip}/in7_label": "sum of shunt voltages", f"{chip}/in7_input": 9, f"{chip}/update_interval": 4})
    other = "sys/bus/i2c/devices/1-0041/hwmon/hwmon4"
    put(root, {f"{other}/in1_label": "NC", f"{other}/in1_input": 5000, f"{other}/curr1_input": 9999})

    def set_to(at: int) -> None:
        for n, read in enumerate(reads, 1):
            millivolts, milliamps = read(at - int(rng.uniform(0, 4e6)))
            put(root, {f"{chip}/in{n}_input": millivolts, f"{chip}/curr{n}_input": milliamps})

    set_to(START_NS)
    return recorded(ina3221.open_source(root), poll_times(rng, truth, 1e9 * rng.uniform(0.05, 0.15)), set_to)


def of_iio(rng: np.random.Generator, truth: Truth, root: Path) -> Series:
    """JetPack 4."""
    chip, names = "sys/bus/i2c/devices/6-0040/iio:device0", ("POM_5V_IN", "POM_5V_GPU", "POM_5V_CPU")
    reads = [_ina(rng, truth, 5000, 5000, share) for share in (1.0, 0.3, 0.4)]
    put(root, {f"{chip}/rail_name_{n}": name for n, name in enumerate(names)})

    def set_to(at: int) -> None:
        for n, read in enumerate(reads):
            millivolts, milliamps = read(at - int(rng.uniform(0, 10e6)))
            put(root, {f"{chip}/in_voltage{n}_input": millivolts, f"{chip}/in_current{n}_input": milliamps})

    set_to(START_NS)
    return recorded(ina3221.open_source(root), poll_times(rng, truth, 1e9 * rng.uniform(0.05, 0.15)), set_to)


def of_tegrastats(rng: np.random.Generator, truth: Truth, root: Path) -> Series:
    """Lines every 100 ms that arrive up to one interval after they were true."""
    reads = [_ina(rng, truth, 5000, 5000, share) for share in (1.0, 0.4, 0.3)]
    interval = 100_000_000
    lines = []
    for at in poll_times(rng, truth, interval, 0.05):
        age = rng.uniform(0, interval)
        mw = [read(at - age)[0] * read(at - age)[1] // 1000 for read in reads]
        rails = zip(("VDD_IN", "VDD_CPU_GPU_CV", "VDD_SOC"), mw, strict=True)
        text = " ".join(f"{name} {now}mW/{rng.integers(9999)}mW" for name, now in rails)
        lines.append((int(at), f"RAM 1024/7620MB (lfb 2x4MB) CPU [3%@729,off] GR3D_FREQ 63%@[621] tj@53.9C {text}"))
    return tegrastats.series(lines, interval_ns=interval)[0]


def of_battery(rng: np.random.Generator, truth: Truth, root: Path) -> Series:
    """A gauge in mA or µA, of either sign, renewed every 1 to 10 s with the present value or the mean since."""
    refresh = 1e9 * rng.uniform(1, 10)
    unit, sign, mean = int(rng.choice([1, 1000])), int(rng.choice([-1, 1])), bool(rng.integers(2))
    gain, millivolts, phase = 1 + rng.uniform(-0.03, 0.03), rng.uniform(3600, 4300), rng.uniform(0, refresh)

    def reads(power_uw: float) -> int:
        return sign * round(1000 * gain * power_uw / millivolts / unit)

    busy = rng.uniform(1e6, 9e6, 50)  # calibrated under a load that comes and goes
    polls = np.arange(0, 48 * refresh, refresh / 8)
    found = battery.calibrate(polls.astype(int).tolist(), [reads(busy[int(at / refresh)]) for at in polls])
    assert (found.microamps_per_unit, found.discharge_sign) == (unit, sign)
    assert 0.8 * refresh < found.refresh_ns < 1.3 * refresh
    times = poll_times(rng, truth, refresh / 8)
    raw = []
    for at in times:
        renewed = at - (at - START_NS + phase) % refresh
        used = truth.energy_uj(renewed) - truth.energy_uj(renewed - refresh)
        raw.append(reads(1e9 * used / refresh if mean else truth.power_uw(renewed)))
    return battery.power_series(times.tolist(), raw, [millivolts] * len(times), found)


def of_nvml_energy(rng: np.random.Generator, truth: Truth, root: Path) -> Series:
    """A counter in mJ that is renewed every 20 to 100 ms."""
    return _nvml(rng, truth, lambda gain, at, period: gain * truth.energy_uj(at) // 1000 * 1000, "energy")


def of_nvml_power(rng: np.random.Generator, truth: Truth, root: Path) -> Series:
    """The mean of the last period, renewed as often."""

    def mean(gain: float, at: float, period: float) -> float:
        return gain * 1e9 * (truth.energy_uj(at) - truth.energy_uj(at - period)) / period // 1000 * 1000

    return _nvml(rng, truth, mean, "power")


def _nvml(rng: np.random.Generator, truth: Truth, value: Callable[[float, float, float], float], kind: str) -> Series:
    period, gain = 1e9 * rng.uniform(0.02, 0.1), 1 + rng.uniform(-0.05, 0.05)
    now = [START_NS]
    accuracy = replace(rapl.ACCURACY, gain=nvml.STATED_GAIN, resolution=1000, delay_ns=0)
    channel = Channel("gpu", kind, "hardware_counter", lambda: value(gain, now[0] - now[0] % period, period), accuracy)

    def set_to(at: int) -> None:
        now[0] = at

    return recorded(Source("NVML", (channel,), ("gpu",)), poll_times(rng, truth, 20e6), set_to)


def of_meter(rng: np.random.Generator, truth: Truth, root: Path) -> Series:
    """A CSV file on a clock of its own, aligned by the load's pattern; noise, gain, offset."""
    offset, skew = rng.uniform(-1e3, 1e3), 1 + rng.uniform(-2e-5, 2e-5)
    times = np.arange(START_NS, truth.end_ns, 1e9 * rng.uniform(0.001, 0.005))
    gain = 1 + rng.uniform(-0.01, 0.01)
    own = ((times - START_NS) / 1e9 + offset) * skew
    watts = gain * np.array([truth.power_uw(at) for at in times]) / 1e6 + rng.normal(0, 0.05, len(times))
    monsoon = bool(rng.integers(2))
    rows = ["Time(ms),Main(mA),Main Voltage(V)," if monsoon else "time_us,power_mW"]
    for t, w in zip(own, watts, strict=True):
        rows.append(f"{t:.6f},{1000 * w / 4.0:.4f},4.0," if monsoon else f"{1e6 * t:.1f},{1000 * w:.3f}")
    (root / "meter.csv").write_text("\n".join(rows) + "\n")
    meter = meter_csv.read(root / "meter.csv")
    edges = [edge for w in truth.windows for edge in (w.start_ns, w.end_ns)]
    outer = [e for i, e in enumerate(edges) if edges.count(e) == 1 and (i == 0 or e != edges[i - 1])]
    return meter_csv.aligned(meter, meter_csv.align(meter, outer))


def of_powermetrics(rng: np.random.Generator, truth: Truth, root: Path) -> Series:
    """Means over 100 ms, printed as whole mW at the end of each interval. A model: far off, and said to be."""
    gain, interval = 1 + rng.uniform(-0.2, 0.2), 100_000_000
    times = range(START_NS + interval, truth.end_ns, interval)
    lines = []
    for at in times:
        mw = gain * (truth.energy_uj(at) - truth.energy_uj(at - interval)) / (interval / 1e6)
        lines += [(at, f"CPU Power: {mw:.0f} mW"), (at, f"Combined Power (CPU + GPU + ANE): {mw:.0f} mW")]
    return powermetrics.series(lines, interval)


def of_odpm(rng: np.random.Generator, truth: Truth, root: Path) -> Series:
    """A Perfetto trace with bucks, a linear regulator behind one of them, and clocks that differ."""
    from perfetto.protos.perfetto.trace.perfetto_trace_pb2 import Trace

    sleep_ns, gain = int(rng.uniform(0, 1e12)), 1 + rng.uniform(-0.05, 0.05)
    rails = {"S1M_VDD_CPU": 0.6, "S2S_VDD_GPU": 0.4, "L15M_VDD_SLC": 0.1}
    trace = Trace()
    snapshot = trace.packet.add().clock_snapshot
    for clock, ns in ((odpm.BOOTTIME, START_NS + sleep_ns), (odpm.MONOTONIC, START_NS)):
        snapshot.clocks.add(clock_id=clock, timestamp=ns)
    for at in poll_times(rng, truth, 1e9 * rng.uniform(0.05, 0.2)):
        packet = trace.packet.add().power_rails
        for i, share in enumerate(rails.values()):
            uws = int(gain * share * truth.energy_uj(at))
            packet.energy_data.add(index=i, timestamp_ms=(int(at) + sleep_ns) // 1_000_000, energy=uws)
    for i, name in enumerate(rails):  # descriptors come late
        trace.packet[-1].power_rails.rail_descriptor.add(index=i, rail_name=name)
    (root / "trace").write_bytes(trace.SerializeToString())
    return odpm.whole(odpm.read_trace(root / "trace"))


KINDS: dict[str, tuple[Callable[[np.random.Generator, Truth, Path], Series], float]] = {
    "rapl": (of_rapl, 1.0),
    "ina3221": (of_ina3221, 1.0),
    "iio": (of_iio, 1.0),
    "tegrastats": (of_tegrastats, 3.0),
    "battery": (of_battery, 60.0),
    "nvml energy": (of_nvml_energy, 1.0),
    "nvml power": (of_nvml_power, 1.0),
    "meter": (of_meter, 1.0),
    "powermetrics": (of_powermetrics, 3.0),
    "odpm": (of_odpm, 1.0),
}


@dataclass(frozen=True)
class Case:
    """A phase as it was reported, and the truth."""

    energy: WindowEnergy
    gross_uj: float
    net_uj: float

    @property
    def gross_covered(self) -> bool:
        return abs(self.energy.gross.energy_uj - self.gross_uj) <= self.energy.gross.expanded_uj

    @property
    def net_covered(self) -> bool:
        return abs(self.energy.net.energy_uj - self.net_uj) <= self.energy.net.expanded_uj


def run_case(kind: str, seed: int, root: Path, load_w: float | None = None) -> dict[str, Case]:
    """Prefill and decode of one random device. load_w 0: the load adds nothing."""
    rng = np.random.default_rng([seed, *kind.encode()])
    make, scale = KINDS[kind]
    load = rng.uniform(2, 10) if load_w is None else load_w
    truth = make_truth(rng, scale, rng.uniform(1, 4), load)
    series = make(rng, truth, root)
    idle = idle_baseline(series, truth.before, truth.after)
    cases = {}
    for phase in ("prefill", "decode"):
        mine = [w for w in truth.windows if w.name == phase]
        found = total([window_energy(series, w, idle) for w in mine], phase)
        gross, net = (
            sum(truth.energy_uj(w.end_ns, of) - truth.energy_uj(w.start_ns, of) for w in mine)
            for of in ("power", "load")
        )
        cases[phase] = Case(found, gross, net)
    return cases
