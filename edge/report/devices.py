"""Tables of runs: a row per device and model. What the columns can't say stands under the value."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from edge.core.measurement import Energy, EnergySource, EnergyWindow, Measurement
from edge.profiles import statistics
from edge.profiles.clusters import cores_text
from edge.profiles.plan import CV_GATE
from edge.profiles.statistics import Summary
from edge.report import table
from edge.report.results import Row, device_name
from edge.report.table import NONE, SOURCES, Cell, Table, number

ENGINES = {"python": "Python session", "runner": "native runner", "imported": "imported"}
EMULATED = (
    "These ran on emulated processors, to test the way there and back. No time and no energy of them means anything, "
    "so none is shown, and they are compared with nothing."
)
Column = tuple[str, Callable[[Measurement], Cell | None]]


def tables(rows: Sequence[Row]) -> list[Table]:
    """Latency, then energy by the class of its source: classes are never in one table."""
    real = by_device([row for row in rows if row.measurement and not row.emulated])
    return [latency(real), *energies(real)]


def by_device(rows: Sequence[Row]) -> list[Row]:
    """Rows of one device together, in the order that devices came in."""
    order = list(dict.fromkeys(device_name(row.measurement) for row in rows if row.measurement))
    return sorted(rows, key=lambda row: order.index(device_name(row.measurement)) if row.measurement else -1)


def latency(rows: Sequence[Row]) -> Table:
    """Medians with their 10th and 90th percentile. A run that failed is a row too."""
    generating = [row.timed is None or statistics.decodes(row.timed) for row in rows]
    first = "First token, ms" if all(generating) else "First token or call, ms" if any(generating) else "Call, ms"
    columns: list[Column] = [
        (first, _when(table.has_first, _spread(statistics.ttft_ms))),
        ("Prefill, tokens/s", _when(table.has_prefilled, _spread(statistics.prefill_tokens_per_s))),
        ("Decode, tokens/s", _when(table.has_decoded, _spread(statistics.decode_tokens_per_s))),
        ("CV", _cv),
        ("Load, ms", lambda m: Cell(number(m.load_ns / 1e6)) if m.load_ns else None),
        ("Peak memory, MB", lambda m: Cell(number(m.peak_bytes / 1e6)) if m.peak_bytes else None),
        ("Size, MB", lambda m: Cell(number(m.stored_bytes / 1e6)) if m.stored_bytes else None),
    ]
    note = "Medians; under them the 10th to the 90th percentile."
    return _table("Latency and memory", rows, columns, note)


def energies(rows: Sequence[Row]) -> list[Table]:
    """A table per class of source. What has no energy is named with the reason, where others have one."""
    found: dict[EnergySource, list[Row]] = {}
    for row in rows:
        if row.timed and row.timed.energy.energy_uj is not None:
            found.setdefault(row.timed.energy.source, []).append(row)
    shown = [_energy(source, members) for source, members in found.items()]
    return [table_ for table_ in shown if table_]


def _energy(source: EnergySource, rows: Sequence[Row]) -> Table:
    columns: list[Column] = [
        ("Prefill, J/token", lambda m: _joules(m.energy, "prefill")),
        ("Decode, J/token", lambda m: _joules(m.energy, "decode")),
        ("Decode, mWh/token", lambda m: _joules(m.energy, "decode", per_joule=1 / 3.6)),
        ("Call, J", lambda m: _joules(m.energy, "call")),
        ("Gross, J", lambda m: Cell(_gross(m.energy), f"in {m.energy.duration_ns / 1e9:.1f} s")),
        ("Idle, W", lambda m: None if m.energy.idle_uw is None else Cell(number(m.energy.idle_uw / 1e6))),
        ("Read from", lambda m: Cell("", m.energy.reason)),
    ]
    note = "Net of the idle baseline unless it says gross; ± is the expanded uncertainty, k = 2 (about 95 %)."
    return _table(f"Energy by {SOURCES[source]}", rows, columns, note)


def _joules(energy: Energy, name: str, *, per_joule: float = 1.0) -> Cell | None:
    window = next((w for w in energy.windows if w.name == name), None)
    if window is None:
        return None
    if window.status == "not_available" or not window.tokens:
        return Cell("not available", window.reason)
    net, doubt = per_token(window)
    if window.status == "below_resolution":
        return Cell("below resolution", f"under {table.digits(abs(net * per_joule) + doubt * per_joule)}")
    return Cell(table.plus_minus(net * per_joule, doubt * per_joule))


def per_token(window: EnergyWindow) -> tuple[float, float]:
    """Net joules per token, and their expanded uncertainty."""
    return window.net_uj / window.tokens / 1e6, window.net_uncertainty_uj / window.tokens / 1e6


def _gross(energy: Energy) -> str:
    joules = (energy.energy_uj or 0) / 1e6
    return number(joules) if energy.uncertainty_uj is None else table.plus_minus(joules, energy.uncertainty_uj / 1e6)


def runs(rows: Sequence[Row]) -> Table:
    """How each run went: what timed it, in which state the device was, what was held against the samples."""
    columns: list[Column] = [
        ("Engine", lambda m: Cell(ENGINES[m.engine], m.engine_note)),
        ("Runtime", lambda m: Cell(m.runtime, f"{m.kernels} kernels")),
        ("Threads", _threads),
        ("Repetitions", _repetitions),
        ("Parity", _parity),
        ("Clock, GHz", _clock),
        ("Hottest zone, °C", _temperature),
        ("Device state", lambda m: Cell("", _state(m)) if m.state else None),
        ("Watching cost", _sampler),
        ("Measured", lambda m: Cell(m.measured_at[:16].replace("T", " ")) if m.measured_at else None),
    ]
    return _table("Runs", rows, columns, "", failures=False)


def emulated(rows: Sequence[Row]) -> Table:
    """What was shown to work on a stand-in; no times, no joules."""
    columns: list[Column] = [
        ("Went", lambda m: Cell("failed", m.problem) if m.problem else Cell("to its end")),
        ("Engine", lambda m: Cell(ENGINES[m.engine], m.engine_note)),
        ("Repetitions", lambda m: Cell(str(len(m.repetitions)), f"{sum(map(_tokens, m.repetitions)):,} tokens")),
        ("Parity", _parity),
        ("Device state", lambda m: Cell("", _state(m)) if m.state else None),
    ]
    return _table("Emulated", by_device([row for row in rows if row.emulated]), columns, EMULATED, failures=False)


def _table(title: str, rows: Sequence[Row], columns: Sequence[Column], note: str, *, failures: bool = True) -> Table:
    """Without the columns that are empty for all. A run without a repetition has its problem in place of numbers."""
    lines = []
    for row in rows:
        if row.measurement is None:
            continue
        device = device_name(row.measurement)
        where = "; ".join(dict.fromkeys([device, *_special(row.measurement), *row.told]))
        head = Cell(row.model, where)
        if failures and not row.measurement.repetitions:
            went = Cell("failed", row.measurement.problem) if row.measurement.problem else Cell("no times")
            cells = [went, *[NONE] * (len(columns) - 1)]
        else:
            cells = [show(row.measurement) or NONE for _, show in columns]
            if failures and row.measurement.problem:
                head = Cell(row.model, f"{where}; stopped early: {row.measurement.problem}")
            elif failures and (said := table.throttling(row.measurement)):
                head = Cell(row.model, f"{where}; {said}")
        lines.append((head, cells))
    kept = [k for k in range(len(columns)) if any(cells[k] != NONE for _, cells in lines)]
    return Table([columns[k][0] for k in kept], [(h, [cells[k] for k in kept]) for h, cells in lines], title, note)


def _special(measurement: Measurement) -> list[str]:
    """What should be known of a row at once."""
    said = ["imported"] if measurement.engine == "imported" else []
    return said + ([measurement.protocol.mode] if measurement.protocol.mode != "repetitions" else [])


def _when(
    has: Callable[[Measurement], bool], show: Callable[[Measurement], Cell]
) -> Callable[[Measurement], Cell | None]:
    return lambda measurement: show(measurement) if has(measurement) else None


def _spread(samples: Callable[[Measurement], Summary]) -> Callable[[Measurement], Cell]:
    def show(measurement: Measurement) -> Cell:
        found = samples(measurement)
        return Cell(number(found.median), f"{number(found.p10)}–{number(found.p90)}")

    return show


def _cv(measurement: Measurement) -> Cell:
    """Of the speed that the run is about, between repetitions."""
    cv = statistics.speeds(measurement).cv
    return Cell(f"{cv:.1%}", "noisy" if cv > CV_GATE else "")


def _threads(measurement: Measurement) -> Cell:
    plan = measurement.protocol
    cores = f"on cores {cores_text(plan.cores)}" if plan.cores else ""
    return Cell(str(plan.threads) if plan.threads else "default", cores)


def _repetitions(measurement: Measurement) -> Cell:
    plan, throttled = measurement.protocol, sum(r.throttled for r in measurement.repetitions)
    mode = plan.mode if plan.mode != "repetitions" else ""
    return Cell(
        str(len(measurement.repetitions)), ", ".join(filter(None, [mode, f"{throttled} throttled" * bool(throttled)]))
    )


def _parity(measurement: Measurement) -> Cell | None:
    found = measurement.parity
    if found is None:
        return None
    if found.kl_divergence is None:
        error, limit = found.relative_error or 0.0, found.relative_error_limit or 0.0
        said = f"relative error {error:.2g} of at most {limit:.2g}"
    else:
        error, limit = found.kl_divergence, found.kl_divergence_limit or 0.0
        top = "same" if found.top1_equal else "another"
        said = f"KL {error:.2g} of at most {limit:.2g} nats, {top} first choice"
    return Cell("passed" if error <= limit else "failed", said)


def _clock(measurement: Measurement) -> Cell | None:
    speeds = [khz for repetition in measurement.repetitions for khz in repetition.frequency_khz if khz]
    return Cell(f"{min(speeds) / 1e6:.2f}–{max(speeds) / 1e6:.2f}") if speeds else None


def _temperature(measurement: Measurement) -> Cell | None:
    found = [r.temperature_c for r in measurement.repetitions if r.temperature_c is not None]
    return Cell(f"{min(found):.0f}–{max(found):.0f}", "as repetitions began") if found else None


def _state(measurement: Measurement) -> str:
    """What was set stands for itself, with what it was before where that was another."""
    said = []
    for name, value in measurement.state.items():
        now = measurement.state.get(f"{name} set", value)
        if not name.endswith(" set") and value != "null":  # Android's word for a setting that nobody made
            said.append(f"{name} {now}" + (f" (was {value})" if now != value else ""))
    return ", ".join(said)


def _sampler(measurement: Measurement) -> Cell | None:
    found = measurement.sampler
    return Cell(f"{found.cpu_share:.1%} of a core", f"at {found.rate_hz:g} Hz") if found else None


def _tokens(repetition: object) -> int:
    return repetition.prompt_tokens + len(repetition.decode_ns) + bool(repetition.decode_ns)  # type: ignore[attr-defined]
