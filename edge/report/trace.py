"""One Perfetto trace of profiled runs: tokens, phases, operators, power, clocks, temperatures, memory.

Opens in ui.perfetto.dev, which reads the file in the browser. Every run begins at the trace's start.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import msgspec

from edge.core.errors import EdgeError, UsageError
from edge.core.files import full_disk_is_an_error, write_atomic
from edge.core.measurement import Measurement, Repetition, Track
from edge.core.session import OperatorTime
from edge.profiles import operators, statistics
from edge.report import devices, tracks
from edge.report.perfetto import Slice, Unit, Writer
from edge.report.results import Row, device_name, join

UNITS = {
    "C": Unit("°C"),
    "kHz": Unit("MHz", 1e-3),
    "uW": Unit("W", 1e-6),
    "uJ": Unit("J", 1e-6),
    "B": Unit(""),
    "percent": Unit("%"),
    "count": Unit("count"),
}
ENERGY = ("power", "energy")
GROUPS = ("power", "frequency", "cap", "temperature", "memory")  # shown first, in this order
PROFILED = "from a run of its own with the engine's profiler on, whose clock is not this run's"


def write(measurements: Sequence[Measurement], path: Path, *, engine_trace: Path | None = None) -> Path:
    """Write the trace of all runs. engine_trace: ONNX Runtime's own, of the only run.

    Raises `UsageError` where there is nothing to write or an engine's trace goes with several runs, and `EdgeError`
    without the package `perfetto` or for an engine's trace that is none.
    """
    if not measurements:
        raise UsageError("trace.empty", "these results have no measurement", "give a file of `edge profile -o`")
    if engine_trace is not None and len(measurements) > 1:
        hint = "give the one result that the engine's trace belongs to"
        raise UsageError("trace.engine", "one engine's trace can't belong to several runs", hint)
    writer = Writer()
    for row in join([], measurements):
        if row.measurement:
            _run(writer, row, row.measurement, engine_trace)
    _system(writer, measurements)
    with full_disk_is_an_error(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(path, writer.data(began_ns=_began_ns(measurements[0])))
    return path


def _run(writer: Writer, row: Row, m: Measurement, engine_trace: Path | None) -> None:
    told = [m.name, row.model.removeprefix(f"{m.name} · "), device_name(m), *row.told]
    told += ["emulated: no time means anything"] if m.emulated else []
    root = writer.track(" · ".join(dict.fromkeys(told)), about=f"{m.runtime}, {m.kernels} kernels")
    end_ns = max(int(1e9 * tracks.end_s(m)), 1)
    writer.slices("run", root, [Slice(row.label, 0, end_ns, _facts(m))])
    placed = tracks.placed(m)
    known = bool(placed)
    apart = [p for p in m.phases if not (known and p.name in tracks.STEPS)]
    writer.slices("phases", root, [Slice(p.name, p.start_ns, p.end_ns) for p in apart])
    repetitions = placed or _laid_out(m)
    left = len(m.repetitions) - len(repetitions)
    about = f"{left} repetitions of other runs are not shown" if left else ""
    about = about if known else "when they began isn't known: laid end to end"
    writer.slices("tokens", root, _tokens(repetitions), about=about)
    _speed(writer, root, repetitions)
    if engine_trace is not None:
        _engine(writer, root, m, engine_trace)
    elif m.operators:
        _average_step(writer, root, m)
    _counters(writer, root, m)


def _facts(m: Measurement) -> dict[str, Any]:
    """What a click on the run shows."""
    shown = {f"device.{k}": v for k, v in m.device.items()} | {f"state.{k}": v for k, v in m.state.items()}
    shown |= {f"protocol.{name}": getattr(m.protocol, name) for name in m.protocol.__struct_fields__}
    shown |= {"bundle": m.bundle_sha256, "recipe": m.recipe, "runtime": m.runtime, "kernels": m.kernels}
    shown |= {"engine": devices.ENGINES[m.engine], "engine note": m.engine_note, "problem": m.problem}
    shown |= {"emulated": m.emulated, "measured at": m.measured_at, "peak bytes": m.peak_bytes, "load ns": m.load_ns}
    if m.sampler:
        shown |= {"sampler.rate Hz": m.sampler.rate_hz, "sampler.share of a core": m.sampler.cpu_share}
    if m.parity:
        shown |= {f"parity.{name}": getattr(m.parity, name) for name in m.parity.__struct_fields__}
    shown["energy.source"] = m.energy.source
    shown["energy.from"] = m.energy.reason
    for w in m.energy.windows:
        net, doubt = devices.per_token(w) if w.tokens else (0.0, 0.0)
        told = f"{net:.3g} ± {doubt:.2g} J/token, net, k = 2" if w.status == "ok" else w.status.replace("_", " ")
        shown[f"energy.{w.name}"] = told
    plain = (str, int, float, bool)
    return {k: v if isinstance(v, plain) else json.dumps(v) for k, v in shown.items() if v not in (None, "", [], {})}


def _laid_out(m: Measurement) -> list[Repetition]:
    """One after the other."""
    found, at = [], 0
    for r in m.repetitions:
        found.append(msgspec.structs.replace(r, start_ns=at))
        at = tracks.end_ns(found[-1])
    return found


def _tokens(repetitions: Sequence[Repetition]) -> list[Slice]:
    """Turns of a conversation bear the number of their repetition too."""
    found, number = [], 0
    several = any(r.turn for r in repetitions)
    for r in repetitions:
        number += r.turn == 0
        name = f"repetition {number}" + (f", turn {r.turn + 1}" if several else "")
        found += _repetition(name, r)
    return found


def _repetition(name: str, r: Repetition) -> list[Slice]:
    """A repetition; in it the prompt and every step."""
    facts: dict[str, Any] = {"prompt tokens": r.prompt_tokens, "decoded": len(r.decode_ns), "CPU ns": r.cpu_ns}
    facts |= {"tokens/s": statistics.decode_rate(r)} if r.decode_ns else {}
    facts |= {"hottest zone °C": r.temperature_c} if r.temperature_c is not None else {}
    throttled = " (throttled)" if r.throttled else ""
    begun, middle = r.start_ns, r.start_ns + r.prefill_ns
    found = [Slice(name + throttled, begun, tracks.end_ns(r), facts | {"throttled": r.throttled})]
    if r.prefill_ns:
        found.append(Slice("prefill" if r.decode_ns else "call", begun, middle, {"tokens": r.prompt_tokens}))
    if r.encode_ns:
        found.append(Slice("encode", begun, begun + r.encode_ns))
    for step, ns in enumerate(r.decode_ns):
        found.append(Slice("decode", middle, middle + ns, {"token": step + 2}))
        middle += ns
    return found


def _speed(writer: Writer, root: int, repetitions: Sequence[Repetition]) -> None:
    """One value per decode step, from its begin on; 0 in between."""
    times: list[int] = []
    values: list[float] = []
    for r in repetitions:
        at = r.start_ns + r.prefill_ns
        for ns in r.decode_ns:
            times.append(at)
            values.append(1e9 / ns if ns else 0.0)
            at += ns
        if r.decode_ns:
            times.append(at)
            values.append(0.0)
    if times:
        writer.counter("decode speed", root, times, values, Unit("tokens/s"))


def _average_step(writer: Writer, root: int, m: Measurement) -> None:
    """Rows are sums over a profiled run: shown as one step, layer by layer, each with its mean time."""
    steps = operators.steps(m.operators) or 1
    found, at = [], 0
    for row in sorted(m.operators, key=_place):
        ns = max(row.total_ns // steps, 1)
        facts = {"layer": row.layer, "node": row.node, "calls": row.calls, "total ns": row.total_ns}
        found.append(Slice(f"{row.operator} {row.layer or row.node}", at, at + ns, facts))
        at += ns
    what = "decode step" if statistics.decodes(m) else "call"
    whole = Slice(f"mean of {steps} {what}s", 0, at)
    about = f"Means over {steps} {what}s, {PROFILED}. Layer by layer: the order within a layer isn't known."
    writer.slices(f"operators: an average {what}", root, [whole, *found], about=about)


def _place(row: OperatorTime) -> tuple[int, Any]:
    """Embeddings, then layer by layer, then what comes behind them."""
    name = row.layer or row.node
    behind = 0 if "embed" in name else 1 if any(c.isdigit() for c in name) else 2
    return behind, tracks.natural(name)


def _engine(writer: Writer, root: int, m: Measurement, file: Path) -> None:
    """ONNX Runtime's events: the session's own, and every operator of every step, by thread."""
    layers = {row.node: row.layer for row in m.operators}
    threads: dict[str, list[Slice]] = {}
    for event in engine_events(file):
        node = event["name"].removesuffix("_kernel_time")
        facts = {key: str(value) for key, value in (event.get("args") or {}).items() if value not in ("", [], {})}
        is_node = event.get("cat") == "Node"
        name = f"{facts.get('op_name', '')} {layers.get(node) or node}".strip() if is_node else node
        start = int(1000 * event["ts"])
        threads.setdefault(str(event.get("tid", 0)), []).append(
            Slice(name, start, start + int(1000 * event["dur"]), facts)
        )
    group = writer.track("operators: the engine's trace", root, about=f"All events, {PROFILED}.")
    for i, found in enumerate(threads.values()):
        writer.slices("session" if i == 0 else f"thread {i + 1}", group, found)


def engine_events(file: Path) -> list[dict[str, Any]]:
    """Complete events of ONNX Runtime's JSON trace. Raises `EdgeError` for another file."""
    try:
        found = [e for e in json.loads(file.read_bytes()) if e.get("ph", "X") == "X" and e.get("dur", 0) > 0]
        if not all(isinstance(e["name"], str) and e["ts"] >= 0 for e in found) or not found:
            raise ValueError("it has no complete events")
    except OSError as error:
        raise UsageError("trace.missing", f"can't read {file}: {error.strerror}", "check the path") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        hint = "give the JSON file that ONNX Runtime's profiler wrote"
        raise EdgeError("trace.engine", f"{file} is no trace of ONNX Runtime: {error}", hint) from error
    return found


def _counters(writer: Writer, root: int, m: Measurement) -> None:
    """Power as watts with the total first; everything else as it was watched."""
    groups: dict[str, list[Track]] = {}
    for track in m.tracks:
        if track.values:
            kind = track.name.partition("/")[0]
            groups.setdefault("power" if kind in ENERGY else kind, []).append(track)
    if m.memory and not any(track.name == "memory/resident" for track in m.tracks):
        times, sizes = [s.time_ns for s in m.memory], [float(s.resident_bytes) for s in m.memory]
        groups.setdefault("memory", []).append(Track("memory/resident", "B", times, sizes))
    for kind in sorted(groups, key=lambda kind: (*GROUPS, kind).index(kind)):
        group = writer.track(kind, root)
        if kind == "power":
            for rail in sorted(tracks.power(m), key=lambda rail: (not rail.total, -rail.mean_uw)):
                name = f"{rail.name} (total)" if rail.total else rail.name
                writer.counter(name, group, rail.time_ns, rail.power_uw, UNITS["uW"], axis=f"{root} power")
            continue
        axis = f"{root} clock" if kind in ("frequency", "cap") else f"{root} {kind}"
        for track in sorted(groups[kind], key=lambda track: tracks.natural(track.name)):
            writer.counter(tracks.short(track), group, track.time_ns, track.values, UNITS[track.unit], axis=axis)


def _system(writer: Writer, measurements: Sequence[Measurement]) -> None:
    """The format has room for one device: told where all runs were on one."""
    device = measurements[0].device
    if any(m.device != device for m in measurements):
        return
    fields: dict[str, str | int] = {}
    fields |= {"num_cpus": int(device["cores"])} if device.get("cores") else {}
    fields |= {"system_ram_bytes": int(device["memory_bytes"])} if device.get("memory_bytes") else {}
    if "android" in str(device.get("platform")) and device.get("soc"):
        fields |= {"android_soc_model": str(device["soc"])}
    kernel = {"release": device.get("kernel"), "machine": device.get("architecture")}
    writer.system(fields, {name: str(value) for name, value in kernel.items() if value})


def _began_ns(m: Measurement) -> int | None:
    """The time of day at the run's start, about: a result says when it ended."""
    try:
        ended = datetime.fromisoformat(m.measured_at).timestamp() if m.measured_at else None
    except ValueError:
        return None
    return None if ended is None else int((ended - tracks.end_s(m)) * 1e9)
