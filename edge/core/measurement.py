"""What was measured, with the raw samples. Statistics are computed when they are shown."""

from __future__ import annotations

from typing import Any, Literal

import msgspec

from edge.core.files import SCHEMA
from edge.core.session import OperatorTime

EnergySource = Literal["external_meter", "hardware_counter", "gauge", "model", "not_available"]


class EnergyWindow(msgspec.Struct, frozen=True):
    """All stretches of one name (prefill, decode; call) together. tokens of a call: how often it was made.

    net is gross less the idle baseline. Uncertainties are expanded, k = 2; net_budget_uj has the standard ones.
    """

    name: str
    status: Literal["ok", "below_resolution", "not_available"]
    tokens: int
    duration_ns: int
    gross_uj: int = 0
    gross_uncertainty_uj: int = 0
    net_uj: int = 0
    net_uncertainty_uj: int = 0
    net_budget_uj: dict[str, float] = {}
    reason: str = ""


class Energy(msgspec.Struct, frozen=True):
    """Joules with where they come from. With `not_available`, `reason` says why; else it names the counters.

    energy_uj is gross. Uncertainties are expanded, k = 2; None in files from before they were told.
    """

    source: EnergySource
    reason: str = ""
    energy_uj: int | None = None
    idle_uw: int | None = None
    idle_spread_uw: int | None = None
    duration_ns: int = 0
    tokens: int = 0
    uncertainty_uj: int | None = None
    net_uj: int | None = None
    net_uncertainty_uj: int | None = None
    windows: list[EnergyWindow] = []


class MemorySample(msgspec.Struct, frozen=True, array_like=True):
    """Resident bytes of the process `time_ns` after the run began."""

    time_ns: int
    resident_bytes: int


class Phase(msgspec.Struct, frozen=True, array_like=True):
    """A named stretch of the run, for the memory timeline."""

    name: str
    start_ns: int
    end_ns: int


class Repetition(msgspec.Struct, frozen=True):
    """One measured conversation: a prefill of `prompt_tokens`, then `decode_ns` for each further token.

    encode_ns: how much of the prefill an encoder-decoder's encoder took. start_ns: since the start of the run. turn:
    which turn of a conversation of several this is, on the context of those before. throttled: a cap of the clock fell
    or the thermal status rose meanwhile, so that it was repeated and is in no statistic, but for a sustained run's.
    temperature_c: of the hottest zone, when it began; None where nobody tells.
    """

    prompt_tokens: int
    prefill_ns: int
    decode_ns: list[int]
    cpu_ns: int
    frequency_khz: list[int]
    encode_ns: int = 0
    start_ns: int = 0
    turn: int = 0
    throttled: bool = False
    temperature_c: float | None = None


Mode = Literal["repetitions", "sustained", "conversation"]


class Protocol(msgspec.Struct, frozen=True):
    """How it was measured. cores: those that it was kept on, empty for all."""

    prompt_tokens: int
    generated_tokens: int
    warm_ups: int
    repetitions: int
    threads: int
    mode: Mode = "repetitions"
    cores: list[int] = []
    turns: list[tuple[int, int]] = []
    min_seconds: float = 0.0
    cool_down_s: float = 0.0
    start_below_c: float | None = None


class Track(msgspec.Struct, frozen=True):
    """Something watched over a run: values at times since its start.

    name: `temperature/cpu-thermal`, `frequency/cpu0`, `cap/cpu0`, `power/VDD_IN`, `memory/resident`, `battery/level`.
    """

    name: str
    unit: Literal["C", "kHz", "uW", "uJ", "B", "percent", "count"]
    time_ns: list[int]
    values: list[float]


class Parity(msgspec.Struct, frozen=True):
    """What was held against the bundle's samples on the device before anything was timed.

    Models that run in one call are held by the relative error of their output, others by KL divergence in nats.
    """

    kl_divergence: float | None
    kl_divergence_limit: float | None
    top1_equal: bool
    relative_error: float | None = None
    relative_error_limit: float | None = None


class SamplerCost(msgspec.Struct, frozen=True):
    """What watching cost: the sampler's own CPU time as a share of one core."""

    rate_hz: float
    cpu_share: float


class Measurement(msgspec.Struct, frozen=True, kw_only=True):
    """One profile of one bundle on one device.

    engine: `python` for a session of the runtime in a Python process, `runner` for the native one, `imported` for
    another tool's result; engine_note says why where it isn't the one asked for. state: of the device, such as screen,
    charging, airplane mode, as it was (`screen`) and as it was set (`screen set`). emulated: no time in it means
    anything. problem: why the run failed; then it may have no repetitions.
    """

    schema: int = SCHEMA
    bundle: str
    bundle_sha256: str
    name: str
    kernels: str
    runtime: str
    recipe: str
    stored_bytes: int
    bits_per_weight: float
    device: dict[str, Any]
    protocol: Protocol
    load_ns: int
    repetitions: list[Repetition]
    operators: list[OperatorTime]
    peak_bytes: int
    memory: list[MemorySample]
    phases: list[Phase]
    energy: Energy
    engine: Literal["python", "runner", "imported"] = "python"
    engine_note: str = ""
    emulated: bool = False
    state: dict[str, str] = {}
    parity: Parity | None = None
    tracks: list[Track] = []
    sampler: SamplerCost | None = None
    measured_at: str = ""
    problem: str = ""


class Evaluation(msgspec.Struct, frozen=True, kw_only=True):
    """Quality of a model or an artefact on a text, and what it lost against the original where that was given.

    perplexity is per token over windows of `context_length`; word_perplexity is per whitespace-separated word.
    """

    schema: int = SCHEMA
    subject: str
    kind: Literal["torch", "artefact"]
    name: str
    recipe: str
    text: str
    text_sha256: str
    context_length: int
    tokens: int
    perplexity: float
    word_perplexity: float
    bits_per_byte: float
    original: str | None = None
    perplexity_original: float | None = None
    kl_divergence: float | None = None
    top1_agreement: float | None = None
    stored_bytes: int
    bits_per_weight: float


class Agreement(msgspec.Struct, frozen=True, kw_only=True):
    """How far a model that isn't a decoder is from the original it was made of, over `samples` texts, images or sounds.

    relative_error: mean of |subject - original| / |original| of first outputs. cosine: of embeddings, where the output
    is hidden states. Agreement is of the most probable class or word with the original's, top5 of that among the
    subject's first five; KL(original || subject) in nats. Of an encoder-decoder that is said of its next tokens along
    the original's greedy answers, of which equal_answers are its own too. data: what it was held on.
    """

    schema: int = SCHEMA
    subject: str
    kind: Literal["torch", "artefact"]
    name: str
    recipe: str
    data: str
    data_sha256: str
    samples: int
    original: str
    relative_error: float
    cosine_mean: float | None = None
    cosine_min: float | None = None
    top1_agreement: float | None = None
    top5_agreement: float | None = None
    kl_divergence: float | None = None
    equal_answers: int | None = None
    stored_bytes: int
    bits_per_weight: float
