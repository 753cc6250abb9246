"""`profile` on a device: with the native runner, or with a Python session there where it has none for the bundle."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import msgspec

from edge.core.bundle import Bundle
from edge.core.console import info
from edge.core.errors import DeviceUnavailable, EdgeError, GateFailed, UsageError
from edge.core.measurement import Energy, Measurement
from edge.core.session import OperatorTime
from edge.core.transport import Connection
from edge.profiles import accounting, journal, sampled, telemetry
from edge.profiles.android_watch import Watch, watching
from edge.profiles.assemble import measurement_of
from edge.profiles.deploy import deploy, native_engine, persist
from edge.profiles.device_run import Run
from edge.profiles.fingerprint import device_fingerprint
from edge.profiles.gauge import observed
from edge.profiles.mirror import mirror
from edge.profiles.outcome import Outcome
from edge.profiles.perfetto_rails import Rails, from_trace, has_rails, traced
from edge.profiles.plan import Plan, check_room, digest
from edge.profiles.state import prepared
from edge.runtimes.probes.power.series import Source
from edge.runtimes.transports import connect

FAILURES: dict[str, type[EdgeError]] = {"parity": GateFailed, "usage": UsageError}
KEPT = ("disk",)
"""Ends after which the same run can go on."""


@dataclass(frozen=True)
class There:
    """What a device shows of itself: its tree as files here, what the sampler reads, and its source of power."""

    tree: Path
    columns: list[telemetry.Column]
    source: Source | None
    no_source: str


def profile_on(
    name: str, bundle: Bundle, plan: Plan, *, library: Path | None = None, prepare: bool = False, fresh: bool = False
) -> Outcome:
    """Measure `bundle` on the device `name`. Taken up where an earlier run of the same plan stopped, unless `fresh`.

    library: ONNX Runtime's for the device. prepare: bring the device into a steady state for the run, and back again.
    Raises `DeviceUnavailable` where the device can't be used or stays away; the error of a run that failed is in what
    comes back, with what it got.
    """
    check_room(plan, bundle.manifest.context_length)
    with closing(connect(name)) as connection, looked_at(connection, plan) as there:
        if reason := native_engine(bundle, connection.device):
            from edge.profiles.python_there import profile_in_python

            if plan.engine == "runner":
                raise UsageError("profile.engine", reason, "leave --engine away")
            return profile_in_python(connection, bundle, plan, reason)
        with prepared(connection, prepare) as state:
            return _run(connection, bundle, plan, there, library=library, state=state, fresh=fresh)


@contextmanager
def looked_at(connection: Connection, plan: Plan) -> Iterator[There]:
    """What the device shows of itself before the run."""
    with TemporaryDirectory() as folder:
        tree = mirror(connection, Path(folder))
        source, reason = telemetry.source_of(tree)
        yield There(tree, telemetry.columns(tree, interval_ms=plan.sample_ms), source, reason)


def _run(
    connection: Connection,
    bundle: Bundle,
    plan: Plan,
    there: There,
    *,
    library: Path | None,
    state: dict[str, str],
    fresh: bool,
) -> Outcome:
    deployed = deploy(connection, bundle, library)
    run = Run(
        connection=connection,
        bundle=bundle,
        plan=msgspec.structs.replace(plan, idle_s=_rest_s(connection, plan, there, deployed.sampler)),
        digest=digest(plan, bundle.hash, connection.device.name, "runner"),
        deployed=deployed,
        watched=telemetry.watched(there.tree),
        columns=telemetry.text(there.columns),
    )
    if fresh:
        run.remove()
        run.forget()
    with watching(connection) as watch, traced(connection, run.digest[:16]) as rails:
        run.send()
        end = run.follow()
    ok = end.code == "ok"
    measurement = _assemble(run, there, watch, rails, state=state, operators=_operators(run) if ok else [])
    if end.code not in KEPT:
        run.remove()
    if ok:
        return Outcome(measurement, run.local)
    kind = FAILURES.get(end.code, EdgeError)
    message = f"on {connection.device.name}: {end.message or end.code}"
    return Outcome(measurement, run.local, kind(f"profile.{end.code}", message, _hint(end.code)))


def _rest_s(connection: Connection, plan: Plan, there: There, sampler: str) -> float:
    """How long to rest before and after: none where nothing tells energy, longer where a gauge is renewed rarely.

    On an emulated device no joule means anything, so none is waited for.
    """
    if plan.meter_csv or connection.device.emulated or persist(connection, lambda: has_rails(connection)):
        return plan.idle_s
    source = there.source
    if source is None:
        return 0.0
    return max(plan.idle_s, persist(connection, lambda: observed(connection, sampler, source, there.columns)).idle_s)


def _operators(run: Run) -> list[OperatorTime]:
    """The profile by operator is a run of its own: where it fails, the timings are still right."""
    try:
        return run.operators()
    except DeviceUnavailable:
        raise
    except EdgeError as error:
        info(f"No times by operator: {error}")
        return []


def _assemble(
    run: Run, there: There, watch: Watch, rails: Rails, *, state: dict[str, str], operators: list[OperatorTime]
) -> Measurement:
    entries = run.entries()
    attempts = journal.attempts(entries)
    segments = sampled.parse(run.samples())
    tracks = sampled.tracks(segments, there.columns, attempts)
    tracks += sampled.power_tracks(segments, there.source, attempts) if there.source else []
    tracks += watch.tracks(segments, attempts, tracks)
    versions = attempts[-1].begin.versions if attempts else {}
    more: dict[str, Any] = {"sampler": sampled.cost(segments)} if segments else {}
    return measurement_of(
        run.bundle,
        run.plan,
        entries,
        device=device_fingerprint(run.connection.device, there.tree, versions),
        energy=_energy(run, there, segments, rails),
        tracks=tracks,
        memory=sampled.memory(segments, attempts),
        operators=operators,
        emulated=run.connection.device.emulated,
        state=state,
        **more,
    )


def _energy(run: Run, there: There, segments: list[sampled.Segment], rails: Rails) -> Energy:
    """From an external meter's file where there is one, else the rails of a trace, else what the sampler read."""
    if run.plan.meter_csv:
        meter = Path(run.plan.meter_csv)
        return telemetry.energy(run.entries(), run.plan, lambda windows: accounting.of_meter(meter, windows))
    power: telemetry.Power | str
    if rails.series:
        power = from_trace(rails.series)
    else:
        power = sampled.from_samples(segments, there.source) if there.source else there.no_source
    return telemetry.energy(run.entries(), run.plan, power)


def _hint(code: str) -> str:
    return {
        "disk": "make room there and run the same command again: what is finished is kept",
        "parity": "don't time or deploy it there; export it again, report what stays",
        "model": "export the model again",
        "library": "name another library with --onnxruntime",
    }.get(code, "run the same command again, or with --fresh")
