"""Statistics over raw samples, computed when they are shown."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import msgspec
import numpy as np

from edge.core.errors import EdgeError
from edge.core.measurement import Measurement, Repetition


@dataclass(frozen=True)
class Summary:
    """Of samples in one unit. p10 and p90 interpolate between samples; cv is the standard deviation over the mean."""

    count: int
    median: float
    p10: float
    p90: float
    min: float
    max: float
    cv: float


def summarize(samples: Sequence[float]) -> Summary:
    """Raises `EdgeError` where there is no sample."""
    if len(samples) == 0:
        raise EdgeError("measurement.empty", "the measurement has no samples", "profile the bundle again")
    values = np.asarray(samples, np.float64)
    p10, median, p90 = np.percentile(values, [10, 50, 90])
    mean = values.mean()
    cv = float(values.std(ddof=1) / mean) if len(values) > 1 and mean else 0.0
    return Summary(len(values), float(median), float(p10), float(p90), float(values.min()), float(values.max()), cv)


def decodes(measurement: Measurement) -> bool:
    """Whether tokens were generated; a model that runs in one call has the time of that call as `prefill_ns`."""
    return measurement.protocol.generated_tokens > 0


def counted(measurement: Measurement) -> list[Repetition]:
    """The repetitions that statistics are made of: not the throttled ones, but for a sustained run's.

    All of them where every one was throttled: such a device has no other speed, and the report says so.
    """
    if measurement.protocol.mode == "sustained":
        return measurement.repetitions
    return [r for r in measurement.repetitions if not r.throttled] or measurement.repetitions


def conversations(measurement: Measurement) -> list[list[Repetition]]:
    """The counted repetitions, each with its turns: one, but for a conversation of several."""
    found: list[list[Repetition]] = []
    for repetition in counted(measurement):
        if repetition.turn == 0 or not found:
            found.append([])
        found[-1].append(repetition)
    return found


def speeds(measurement: Measurement) -> Summary:
    """Decoded tokens per second, one sample per repetition; calls per second where nothing was decoded."""
    return summarize([_rate(turns) for turns in conversations(measurement)])


def paired_ratio(ours: Sequence[float], theirs: Sequence[float]) -> float:
    """Median of the ratios round by round, of things that took turns: load that comes and goes moves both."""
    return summarize([a / b for a, b in zip(ours, theirs, strict=True)]).median


def prefill_tokens_per_s(measurement: Measurement) -> Summary:
    """Prompt tokens per second, one sample per repetition, over all turns of a conversation."""
    whole = conversations(measurement)
    return summarize([sum(r.prompt_tokens for r in t) / (sum(r.prefill_ns for r in t) / 1e9) for t in whole])


def decode_tokens_per_s(measurement: Measurement) -> Summary:
    """Tokens per second while decoding, one sample per repetition: single tokens are in `decode_ms`."""
    return summarize([_rate(t) for t in conversations(measurement) if any(r.decode_ns for r in t)])


def decode_rate(repetition: Repetition) -> float:
    """Tokens per second over all decode steps of a repetition."""
    return len(repetition.decode_ns) / (sum(repetition.decode_ns) / 1e9)


def _rate(turns: Sequence[Repetition]) -> float:
    steps = [ns for r in turns for ns in r.decode_ns]
    return len(steps) / (sum(steps) / 1e9) if steps else rate(turns[0])


def rate(repetition: Repetition) -> float:
    """Decoded tokens per second; calls per second where nothing was decoded."""
    return decode_rate(repetition) if repetition.decode_ns else 1e9 / repetition.prefill_ns


def ttft_ms(measurement: Measurement) -> Summary:
    """Milliseconds from the prompt to the first token, which was picked: `prefill_ns` runs until then.

    Of a conversation it is the first turn's.
    """
    return summarize([turns[0].prefill_ns / 1e6 for turns in conversations(measurement)])


def encode_ms(measurement: Measurement) -> Summary:
    """Milliseconds that the encoder took, a part of the time to the first token."""
    return summarize([r.encode_ns / 1e6 for r in counted(measurement)])


def decode_ms(measurement: Measurement) -> Summary:
    """Milliseconds per decoded token, one sample per token."""
    return summarize([ns / 1e6 for r in counted(measurement) for ns in r.decode_ns])


def together(runs: Sequence[Measurement]) -> Measurement:
    """Runs of one bundle as one: all repetitions, the median load, the highest peak; the rest is of the last.

    Times of the runs' timelines begin at their own start, so only the last one's are kept.
    """
    last = runs[-1]
    repetitions = [repetition for run in runs for repetition in run.repetitions]
    note = f"of the last of {len(runs)} runs" if len(runs) > 1 else ""
    return msgspec.structs.replace(
        last,
        repetitions=repetitions,
        protocol=msgspec.structs.replace(last.protocol, repetitions=len(repetitions)),
        load_ns=int(np.median([run.load_ns for run in runs])),
        peak_bytes=max(run.peak_bytes for run in runs),
        energy=msgspec.structs.replace(last.energy, reason="; ".join(filter(None, [last.energy.reason, note]))),
    )
