"""How a bundle is measured by a session in this process; the native runner (`kernels/runner`) does the same.

Open a session, hold it against the bundle's samples, warm up, then repeat one conversation: a prompt is read and tokens
are made, each timed until the next token is picked (greedy). At least `repetitions` of them and `min_seconds`, and more
while they disagree by over `CV_GATE`, up to `repetitions * EXTENSION`. A repetition during which a cap of the clock was
lower than at the run's beginning is marked, waited after, and done again. Every repetition is in the journal when the
next one begins. Raw samples are kept. A sustained run repeats without rest until its speed is steady
(`edge.profiles.sustained`). Of a model that runs in one call (an encoder, a vision model) the prefill is the call and
nothing is decoded. A second session, opened with the engine's profiler, gives the per-operator rows: its overhead is in
no timing.
"""

from __future__ import annotations

import gc
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from edge.core.bundle import Bundle
from edge.core.console import Ticker, info, progress
from edge.core.errors import EdgeError
from edge.core.measurement import Energy, MemorySample
from edge.core.session import OperatorTime, Session, SessionOptions
from edge.profiles.accounting import not_available
from edge.profiles.answering import measurable
from edge.profiles.cooling import Cooling
from edge.profiles.energy_meter import EnergyMeter
from edge.profiles.fingerprint import fingerprint
from edge.profiles.journal import Journal, ParityChecked, Peak, Repeated, Span, finished
from edge.profiles.parity import check, held
from edge.profiles.plan import CALLS, CV_GATE, EXTENSION, Plan, check_room, turn_prompts, turns_of
from edge.profiles.statistics import summarize
from edge.profiles.sustained import is_steady
from edge.runtimes.probes.clock import frequencies_khz
from edge.runtimes.probes.memory import MemoryTimeline

ROOT = Path("/")
OpenSession = Callable[[SessionOptions], Any]
Begin = Callable[[str, int], None]


class Watched(msgspec.Struct, frozen=True):
    """What a process saw beside its journal. memory: times since `start_ns` on the journal's clock."""

    start_ns: int
    memory: list[MemorySample]
    energy: Energy
    operators: list[OperatorTime]
    device: dict[str, Any]
    schema: int = 1


@dataclass(frozen=True)
class Turn:
    """One turn as it was timed. cpu_ns: processor time of all threads together."""

    start_ns: int
    prompt_tokens: int
    prefill_ns: int
    decode_ns: list[int]
    cpu_ns: int
    encode_ns: int

    def spans(self, made: int) -> list[tuple[str, int, int, int]]:
        """Name, start, end and tokens of its stretches."""
        picked = self.start_ns + self.prefill_ns
        if not made:
            return [("call", self.start_ns, picked, 1)]
        end = picked + sum(self.decode_ns)
        return [("prefill", self.start_ns, picked, self.prompt_tokens), ("decode", picked, end, made - 1)]


def measure(
    bundle: Bundle,
    open_session: OpenSession,
    plan: Plan,
    log: Journal,
    *,
    meter: EnergyMeter | None = None,
    root: Path = ROOT,
) -> Watched:
    """Run the protocol in this process, with sessions from `open_session`, into a journal that has begun.

    root: where /proc and /sys lie. Raises `GateFailed` for a model that doesn't say what it said at export.
    """
    check_room(plan, bundle.manifest.context_length)
    meter_csv = Path(plan.meter_csv) if plan.meter_csv else None
    meter = meter or EnergyMeter(root, idle_s=plan.idle_s, meter_csv=meter_csv)
    timeline = MemoryTimeline()
    with timeline.running():
        start_ns = time.monotonic_ns()
        with _phase(log, "load"):
            opened = open_session(SessionOptions(threads=plan.threads))
        try:
            _hold(opened, bundle, log)
            energy = _Run(measurable(opened, bundle), plan, log, meter, root).go(bundle.manifest.name)
        finally:
            opened.close()
    log.append(Peak, peak_bytes=timeline.peak_bytes)
    try:
        operators = _operators(lambda options: measurable(open_session(options), bundle), plan)
    except EdgeError as error:  # a run of its own: where it fails, the timings are still right
        info(f"No times by operator: {error}")
        operators = []
    return Watched(start_ns, timeline.samples, energy, operators, fingerprint(root))


@contextmanager
def _phase(log: Journal, name: str) -> Iterator[None]:
    start = time.monotonic_ns()
    yield
    log.append(Span, name=name, start_ns=start, end_ns=time.monotonic_ns())


def _hold(session: Any, bundle: Bundle, log: Journal) -> None:
    parity = held(session, bundle)
    if parity is None:
        info(f"{bundle.path} has no samples to hold it against: nobody knows here whether it computes the right thing")
        return
    log.append(ParityChecked, **msgspec.structs.asdict(parity))
    check(parity, bundle.manifest.name)


class _Run:
    """The repetitions of a plan that its journal doesn't have yet."""

    def __init__(self, session: Session, plan: Plan, log: Journal, meter: EnergyMeter, root: Path) -> None:
        self.session, self.plan, self.log, self.meter, self.root = session, plan, log, meter, root
        self.turns = turns_of(plan)
        self.prompts = turn_prompts(session.vocab_size, plan)
        self.done = finished(log.entries, len(self.turns))
        self.cooling = Cooling(plan, root, self.done)
        self.spent_ns = sum(_duration_ns(turns) for turns in self.done)

    def go(self, name: str) -> Energy:
        """Warm up, repeat as long as it takes, and say what energy that used."""
        total = self.plan.max_seconds if self.plan.mode == "sustained" else self.plan.warm_ups + self.plan.repetitions
        with progress(f"profile {name}", total) as tick:
            with _phase(self.log, "warm-up"):
                for _ in range(self.plan.warm_ups):
                    converse(self.session, self.prompts, self.turns)
                    tick(self.plan.mode != "sustained", "warming up")
            if self.enough():
                reason = "the run was taken up after its last repetition" if self.meter.measures else self.meter.reason
                return not_available(reason)
            return self._metered(tick)

    def _metered(self, tick: Ticker) -> Energy:
        """The measured part, idle stretches around it where something tells energy."""
        taken_up = len(self.done)
        gc.collect()
        gc.disable()  # a collection inside a timed step would be charged to the model
        try:
            self._idle("idle before", self.meter.start)
            while not self.enough():
                self._rest(first=len(self.done) == taken_up)
                self._repeat()
                tick(*self._told())
            self._idle("idle after", self.meter.stop)
        finally:
            gc.enable()
        self._say_noise()
        energy = self.meter.energy()
        if taken_up and energy.energy_uj is not None:
            reason = f"{energy.reason}; of repetitions {taken_up + 1} to {len(self.done)}, after the run was taken up"
            energy = msgspec.structs.replace(energy, reason=reason)
        return energy

    def _idle(self, name: str, wait: Callable[[], None]) -> None:
        if not self.meter.measures:
            return
        with _phase(self.log, name):
            wait()

    def _rest(self, *, first: bool) -> None:
        """What the plan asks for before a repetition; after a throttled one until the device has recovered."""
        if self.plan.mode == "sustained":
            if first:
                self.cooling.wait_to_start(self.log)
            return
        if not first and self.plan.cool_down_s:
            with _phase(self.log, "cool-down"):
                time.sleep(self.plan.cool_down_s)
        if self.done and self.done[-1][0].throttled:
            self.cooling.wait_to_recover(self.log)
        self.cooling.wait_to_start(self.log)

    def _repeat(self) -> None:
        """One repetition, in the journal when this returns."""
        begun = time.monotonic_ns()
        temperature, watch = self.cooling.hottest_mc(), self.cooling.watch()
        turns = converse(self.session, self.prompts, self.turns, self.meter.begin)
        self.meter.begin("")
        clocks, (caps, throttled) = frequencies_khz(self.root), watch()
        index = self.done[-1][0].index + 1 if self.done else 0
        told = {"frequency_khz": clocks, "caps_khz": caps, "throttled": throttled, "temperature_mc": temperature}
        lines: list[tuple[Any, dict[str, Any]]] = []
        for number, (turn, (_, made)) in enumerate(zip(turns, self.turns, strict=True)):
            for name, start, end, tokens in turn.spans(made):
                lines.append((Span, {"name": name, "start_ns": start, "end_ns": end, "tokens": tokens}))
            lines.append((Repeated, {"index": index, "turn": number, **vars(turn), **told}))
        self.done.append([entry for entry in self.log.append_all(lines) if isinstance(entry, Repeated)])
        self.spent_ns += time.monotonic_ns() - begun

    def enough(self) -> bool:
        """Whether there is nothing more to repeat."""
        plan, speeds = self.plan, self._speeds()
        measured_s = self.spent_ns / 1e9
        if plan.mode == "sustained":
            return measured_s >= plan.max_seconds or (
                measured_s >= plan.min_seconds and is_steady(speeds, 2 * plan.repetitions)
            )
        if measured_s < plan.min_seconds:
            return False
        if len(self.done) >= plan.repetitions * EXTENSION:
            return True
        return len(speeds) >= plan.repetitions and summarize(speeds).cv <= CV_GATE

    def _speeds(self) -> list[float]:
        """Of the repetitions that count."""
        sustained = self.plan.mode == "sustained"
        return [speed(turns) for turns in self.done if sustained or not turns[0].throttled]

    def _told(self) -> tuple[float, str]:
        """How far this brought the run, and a note."""
        unit = "calls/s" if self.plan.calls else "tokens/s"
        last = f"{speed(self.done[-1]):.1f} {unit}"
        if self.plan.mode == "sustained":
            return _duration_ns(self.done[-1]) / 1e9, last
        speeds = self._speeds()
        if not speeds or self.done[-1][0].throttled:
            return 0, f"{last}, throttled: done again"
        rates = summarize(speeds)
        return len(speeds) <= self.plan.repetitions, f"{rates.median:.1f} {unit}, CV {rates.cv:.1%}"

    def _say_noise(self) -> None:
        speeds = self._speeds()
        throttled = len(self.done) - len(speeds)
        if throttled:
            what = "and don't count" if speeds else "so that is the speed which is told"
            info(f"Throttled: {throttled} of {len(self.done)} repetitions ran with a lowered clock, {what}")
        if self.plan.mode != "sustained" and speeds and (spread := summarize(speeds).cv) > CV_GATE:
            info(f"Noisy: speed varies by {spread:.0%} over {len(speeds)} repetitions; read it with its spread")


def converse(
    session: Session, prompts: Sequence[Sequence[int]], turns: Sequence[tuple[int, int]], begin: Begin | None = None
) -> list[Turn]:
    """One conversation, turn by turn. Each time runs until the token is picked: `prefill_ns` is that to the first one.

    A later turn also reads the last token that the one before it made. `begin` hears which stretch begins and how many
    tokens it reads or makes; a call counts as one.
    """
    done: list[Turn] = []
    picked = 0
    for prompt, (_, made) in zip(prompts, turns, strict=True):
        tokens = [picked, *prompt] if done else list(prompt)
        read = session.extend if done else session.prefill
        if begin:
            begin(*("prefill", len(tokens)) if made else ("call", 1))
        cpu, start = time.process_time_ns(), time.monotonic_ns()
        before = time.perf_counter_ns()
        picked = int(np.argmax(read(tokens)[-1]))
        prefill_ns = time.perf_counter_ns() - before
        if begin and made:
            begin("decode", made - 1)
        decode_ns = []
        for _ in range(made - 1):
            before = time.perf_counter_ns()
            picked = int(np.argmax(session.decode(picked)[-1]))
            decode_ns.append(time.perf_counter_ns() - before)
        cpu_ns, encode_ns = time.process_time_ns() - cpu, getattr(session, "encode_ns", 0)
        done.append(Turn(start, len(tokens), prefill_ns, decode_ns, cpu_ns, encode_ns))
    return done


def speed(turns: Sequence[Repeated]) -> float:
    """Decoded tokens per second over the turns of a repetition; calls per second where nothing was decoded."""
    decode_ns = sum(sum(turn.decode_ns) for turn in turns)
    if decode_ns:
        return sum(len(turn.decode_ns) for turn in turns) / (decode_ns / 1e9)
    return len(turns) / (sum(turn.prefill_ns for turn in turns) / 1e9)


def _duration_ns(turns: Sequence[Repeated]) -> int:
    return sum(turn.prefill_ns + sum(turn.decode_ns) for turn in turns)


def _operators(open_session: Callable[[SessionOptions], Session], plan: Plan) -> list[OperatorTime]:
    """Rows over single-token steps alone, or over calls.

    The prompt too is fed token by token, so that the context is a real one.
    """
    with tempfile.TemporaryDirectory() as folder:
        options = SessionOptions(threads=plan.threads, profile_path=str(Path(folder) / "trace"))
        session = open_session(options)
        try:
            prompt = turn_prompts(session.vocab_size, plan)[0]
            if plan.calls:
                for _ in range(CALLS):
                    session.prefill(prompt)
                return session.end_profile()
            logits = session.prefill(prompt[:1])
            for token in prompt[1:]:
                logits = session.decode(token)
            for _ in range(turns_of(plan)[0][1] - 1):
                logits = session.decode(int(np.argmax(logits[-1])))
            return session.end_profile()
        finally:
            session.close()
