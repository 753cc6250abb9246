"""How a bundle is measured.

In a process of its own, so that memory and load time are the model's and not those of whatever ran before: open a
session from files that are not in the page cache, warm up, then repeat one conversation: a prefill of `prompt_tokens`
and `generated_tokens` more, each timed until the next token is picked (greedy). At least `repetitions` of them and
`min_seconds`, and more while they disagree by over `CV_GATE`, up to `repetitions * EXTENSION`. Raw samples are kept.
Of a model that runs in one call (an encoder, a vision model) the prefill is the call, nothing is decoded, and there are
`CALLS` times as many repetitions. A second session, opened with the engine's profiler, gives the per-operator rows: its
overhead is in no timing.
"""

from __future__ import annotations

import gc
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from edge.core.bundle import Bundle
from edge.core.console import Ticker, info, progress
from edge.core.measurement import Energy, Measurement, Protocol, Repetition
from edge.core.session import OperatorTime, Session, SessionOptions
from edge.profiles.assemble import identity
from edge.profiles.energy_meter import EnergyMeter
from edge.profiles.fingerprint import fingerprint
from edge.profiles.plan import CALLS, CV_GATE, EXTENSION, Plan, check_room, turn_prompts
from edge.profiles.statistics import rate, summarize
from edge.runtimes.probes.clock import frequencies_khz
from edge.runtimes.probes.memory import MemoryTimeline

OpenSession = Callable[[SessionOptions], Session]


def profile(bundle: Bundle, **options: Any) -> Measurement:
    """Measure `bundle` on this machine in a fresh process. `options` are the fields of `Plan`.

    Raises `UsageError` for an option out of range or a conversation longer than the context, and `EdgeError` where the
    process dies.
    """
    from edge.profiles.worker import run_apart

    task = bundle.manifest.task
    if task in ("encoder", "vision"):
        repetitions = CALLS * options.get("repetitions", Plan().repetitions)
        options |= {"calls": True, "generated_tokens": 0, "repetitions": repetitions}
        options |= {"prompt_tokens": 0} if task == "vision" else {}
    plan = Plan(**options)
    check_room(plan, bundle.manifest.context_length)
    return run_apart(bundle, plan)


def measure(bundle: Bundle, open_session: OpenSession, plan: Plan, meter: EnergyMeter | None = None) -> Measurement:
    """Run the protocol in this process, with sessions from `open_session`."""
    check_room(plan, bundle.manifest.context_length)
    meter = meter or EnergyMeter(meter_csv=Path(plan.meter_csv) if plan.meter_csv else None)
    timeline = MemoryTimeline()
    with timeline.running():
        with timeline.phase("load"):
            start = time.perf_counter_ns()
            session = open_session(SessionOptions(threads=plan.threads))
            load_ns = time.perf_counter_ns() - start
        try:
            repetitions, energy = _repeat(session, plan, timeline, meter, bundle.manifest.name)
        finally:
            session.close()
    return Measurement(
        **identity(bundle),
        device=fingerprint(),
        protocol=Protocol(plan.prompt_tokens, plan.generated_tokens, plan.warm_ups, len(repetitions), plan.threads),
        load_ns=load_ns,
        repetitions=repetitions,
        operators=_operators(open_session, plan),
        peak_bytes=timeline.peak_bytes,
        memory=timeline.samples,
        phases=timeline.phases,
        energy=energy,
    )


def _repeat(
    session: Session, plan: Plan, timeline: MemoryTimeline, meter: EnergyMeter, name: str
) -> tuple[list[Repetition], Energy]:
    prompt = turn_prompts(session.vocab_size, plan)[0]
    with progress(f"profile {name}", plan.warm_ups + plan.repetitions) as tick:
        with timeline.phase("warm-up"):
            for _ in range(plan.warm_ups):
                converse(session, prompt, plan.generated_tokens)
                tick(1, "warming up")
        gc.collect()
        gc.disable()  # a collection inside a timed step would be charged to the model
        try:
            meter.start()
            with timeline.phase("measured"):
                repetitions = _measured(session, prompt, plan, meter, tick)
            meter.stop()
        finally:
            gc.enable()
    spread = summarize([rate(r) for r in repetitions]).cv
    if spread > CV_GATE:
        info(f"Noisy: speed varies by {spread:.0%} over {len(repetitions)} repetitions; read it with its spread")
    return repetitions, meter.energy()


def _measured(session: Session, prompt: list[int], plan: Plan, meter: EnergyMeter, tick: Ticker) -> list[Repetition]:
    """At least the planned repetitions and seconds; more while their decode speeds disagree."""
    done: list[Repetition] = []
    start = time.perf_counter()
    while len(done) < plan.repetitions * EXTENSION:
        done.append(converse(session, prompt, plan.generated_tokens, meter.begin))
        meter.begin("")
        rates = summarize([rate(r) for r in done])
        unit = "calls/s" if plan.calls else "tokens/s"
        tick(1 if len(done) <= plan.repetitions else 0, f"{rates.median:.1f} {unit}, CV {rates.cv:.1%}")
        enough = len(done) >= plan.repetitions and time.perf_counter() - start >= plan.min_seconds
        if enough and rates.cv <= CV_GATE:
            break
    return done


def converse(
    session: Session, prompt: list[int], generated_tokens: int, begin: Callable[[str, int], None] | None = None
) -> Repetition:
    """One conversation. Each time runs until the token is picked, so `prefill_ns` is the time to the first token.

    `begin` hears which stretch begins and how many tokens it reads or makes; a call counts as one.
    """
    if begin:
        begin(*("prefill", len(prompt)) if generated_tokens else ("call", 1))
    cpu = time.process_time_ns()
    before = time.perf_counter_ns()
    token = int(np.argmax(session.prefill(prompt)[-1]))
    prefill_ns = time.perf_counter_ns() - before
    if begin and generated_tokens:
        begin("decode", generated_tokens - 1)
    decode_ns = []
    for _ in range(generated_tokens - 1):
        before = time.perf_counter_ns()
        token = int(np.argmax(session.decode(token)[-1]))
        decode_ns.append(time.perf_counter_ns() - before)
    encode_ns = getattr(session, "encode_ns", 0)
    return Repetition(len(prompt), prefill_ns, decode_ns, time.process_time_ns() - cpu, frequencies_khz(), encode_ns)


def _operators(open_session: OpenSession, plan: Plan) -> list[OperatorTime]:
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
            for _ in range(plan.generated_tokens - 1):
                logits = session.decode(int(np.argmax(logits[-1])))
            return session.end_profile()
        finally:
            session.close()
