"""The headline table: what each metric shows of a model, for the page and for the card."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from edge.core.measurement import Agreement, Energy, EnergyWindow, Evaluation, Measurement
from edge.profiles import statistics
from edge.profiles.plan import CV_GATE
from edge.profiles.statistics import Summary
from edge.report.results import Row


@dataclass(frozen=True)
class Cell:
    """A value and, smaller, what to know about it. order: what a sortable table sorts by; what has none comes last."""

    value: str
    note: str = ""
    order: float | None = None


@dataclass(frozen=True)
class Table:
    """Rows of cells, each headed by a cell. `note` stands under the title. sortable: by any column, in a browser."""

    columns: list[str]
    rows: list[tuple[Cell, list[Cell]]]
    title: str = ""
    note: str = ""
    sortable: bool = False

    def turned(self) -> Table:
        """Rows as columns. The heads' notes go."""
        cells = list(zip(*(cells for _, cells in self.rows), strict=True))
        named = [(Cell(name), list(column)) for name, column in zip(self.columns, cells, strict=True)]
        return Table([head.value for head, _ in self.rows], named, self.title, self.note)


Show = Callable[[Row], Cell | None]
Metric = tuple[str, Show]
NONE = Cell("–")


def build(rows: Sequence[Row], metrics: Sequence[Metric] | None = None) -> Table:
    """Models side by side, a row per metric. Metrics that no model has a value for are left out."""
    shown = [(title, [show(row) for row in rows]) for title, show in metrics or METRICS]
    kept = [(Cell(title), [cell or NONE for cell in cells]) for title, cells in shown if any(cells)]
    return Table([row.label for row in rows], kept)


def megabytes(count: float) -> str:
    """Decimal megabytes; gigabytes from 10,000 of them."""
    if count >= 1e10:
        return f"{count / 1e9:,.1f} GB"
    return f"{count / 1e6:,.1f} MB" if count < 1e8 else f"{count / 1e6:,.0f} MB"


def number(value: float) -> str:
    """Three digits or so; two of what is small."""
    size = abs(value)
    if 0 < size < 0.1:
        return f"{'-' if value < 0 else ''}{digits(size)}"
    return f"{value:,.0f}" if size >= 100 else f"{value:.1f}" if size >= 10 else f"{value:.2f}"


def spread(summary: Summary) -> str:
    noisy = f", noisy: CV {summary.cv:.0%}" if summary.cv > CV_GATE else ""
    return f"p10–p90 {number(summary.p10)}–{number(summary.p90)}{noisy}"


def digits(value: float) -> str:
    """Two significant digits, never as an exponent."""
    return f"{value:.{max(0, 1 - math.floor(math.log10(value)))}f}" if value > 0 else "0"


def plus_minus(value: float, doubt: float) -> str:
    """Both to the second digit of the doubt."""
    if doubt <= 0:
        return number(value)
    places = max(0, 1 - math.floor(math.log10(doubt)))
    return f"{value:,.{places}f} ± {doubt:,.{places}f}"


def change(evaluation: Evaluation) -> str:
    """By how much the perplexity differs from the original's, empty where that isn't known."""
    if not evaluation.perplexity_original:
        return ""
    return f"{100 * (evaluation.perplexity / evaluation.perplexity_original - 1):+.1f}%"


SOURCES = {
    "external_meter": "external meter",
    "hardware_counter": "hardware counter",
    "gauge": "battery gauge",
    "model": "a model's estimate",
}


def per_token(window: EnergyWindow, *, name: bool = True) -> str:
    """Net of idle with its expanded uncertainty, or that it drowned in it."""
    label = f"{window.name} " if name else ""
    if window.status != "ok":
        return f"{label}{window.status.replace('_', ' ')}"
    net, doubt = (uj / window.tokens / 1000 for uj in (window.net_uj, window.net_uncertainty_uj))
    return f"{label}{number(net)} ± {number(doubt)} mJ/{_unit(window)}"


def _unit(window: EnergyWindow) -> str:
    return "call" if window.name == "call" else "token"


def energy(found: Energy) -> Cell:
    """Gross and net per generated token, the prompt's share included; or why there is none."""
    if found.energy_uj is None or not found.tokens:
        return Cell("not available", found.reason)
    if decode := next((w for w in found.windows if w.name != "prefill"), None):
        said = [per_token(w) for w in found.windows if w is not decode]
        milliwatt_hours = decode.net_uj / decode.tokens / 3.6e6
        if decode.status == "ok":
            said.insert(0, f"{decode.name}, net of idle, k = 2 ({milliwatt_hours:.2g} mWh/{_unit(decode)})")
        whole = f"gross {number(found.energy_uj / 1e6)} J in all"
        return Cell(per_token(decode, name=False), "; ".join([*said, whole, SOURCES[found.source], found.reason]))
    gross = found.energy_uj / found.tokens / 1000
    if found.idle_uw is None:
        return Cell(f"{number(gross)} mJ/token", f"gross; {found.reason}")
    seconds = found.duration_ns / 1e9
    net = gross - found.idle_uw * seconds / found.tokens / 1000
    doubt = (found.idle_spread_uw or 0) * seconds / found.tokens / 1000
    if net <= doubt:
        return Cell(f"{number(gross)} mJ/token", f"gross; net is below resolution; {found.reason}")
    return Cell(f"{number(gross)} mJ/token", f"gross; net of idle {number(net)} ± {number(doubt)}; {found.reason}")


def _size(row: Row) -> Cell | None:
    """None of an imported result that doesn't tell it."""
    if not row.stored_bytes:
        return None
    return Cell(megabytes(row.stored_bytes), f"{row.bits_per_weight:.2f} bits per weight")


def _perplexity(evaluation: Evaluation) -> Cell:
    if not evaluation.perplexity_original:
        return Cell(perplexity(evaluation.perplexity))
    return Cell(
        perplexity(evaluation.perplexity),
        f"original {perplexity(evaluation.perplexity_original)}, {change(evaluation)}",
    )


def perplexity(value: float) -> str:
    return f"{value:.2f}" if value < 1e4 else f"{value:.2e}"


def _divergence(evaluation: Evaluation) -> Cell | None:
    if evaluation.kl_divergence is None or evaluation.top1_agreement is None:
        return None
    return Cell(f"{evaluation.kl_divergence:.3g} nats", f"top-1 agreement {evaluation.top1_agreement:.1%}")


def _closeness(agreement: Agreement) -> Cell | None:
    if agreement.cosine_mean is None:
        return None
    return Cell(f"{agreement.cosine_mean:.4f}", f"smallest {agreement.cosine_min or 0:.4f}; {agreement.data}")


def _classes(agreement: Agreement) -> Cell | None:
    if agreement.top1_agreement is None:
        return None
    divergence = f"KL {agreement.kl_divergence or 0:.3g} nats"
    return Cell(f"{agreement.top1_agreement:.1%}", f"top-5 {agreement.top5_agreement or 0:.1%}, {divergence}")


def _peak(measurement: Measurement) -> Cell | None:
    return Cell(megabytes(measurement.peak_bytes), "whole process") if measurement.peak_bytes else None


def has_prefilled(measurement: Measurement) -> bool:
    return all(r.prompt_tokens and r.prefill_ns for r in measurement.repetitions)


def has_first(measurement: Measurement) -> bool:
    """Whether somebody timed the first token or the call."""
    return all(r.prefill_ns for r in measurement.repetitions)


def generates(measurement: Measurement) -> bool:
    return statistics.decodes(measurement) and has_first(measurement)


def has_decoded(measurement: Measurement) -> bool:
    return any(r.decode_ns for r in measurement.repetitions)


def _of_evaluation(show: Callable[[Evaluation], Cell | None]) -> Show:
    return lambda row: None if row.evaluation is None else show(row.evaluation)


def _of_agreement(show: Callable[[Agreement], Cell | None]) -> Show:
    return lambda row: None if row.agreement is None else show(row.agreement)


def _of_measurement(show: Callable[[Measurement], Cell | None]) -> Show:
    return lambda row: None if row.timed is None else show(row.timed)


def _went(row: Row) -> Cell | None:
    """Nothing of a run that simply went well."""
    found = row.measurement
    if found is None:
        return None
    if found.problem:
        return Cell("stopped early" if found.repetitions else "failed", found.problem)
    throttled = sum(r.throttled for r in found.repetitions)
    if throttled and found.protocol.mode != "sustained":
        return Cell("throttled", throttling(found))
    return None


def throttling(measurement: Measurement) -> str:
    """How many repetitions were throttled and what became of them; empty for none."""
    throttled, count = sum(r.throttled for r in measurement.repetitions), len(measurement.repetitions)
    if not throttled:
        return ""
    if throttled == count:
        return f"all {count} repetitions were throttled"
    left_out = "" if measurement.protocol.mode == "sustained" else ", left out here"
    return f"{throttled} of {count} repetitions were throttled{left_out}"


def _speed(samples: Callable[[Measurement], Summary], unit: str, has: Callable[[Measurement], bool]) -> Show:
    def show(measurement: Measurement) -> Cell | None:
        if not has(measurement):
            return None
        summary = samples(measurement)
        long = measurement.protocol.mode == "sustained"
        return Cell(f"{number(summary.median)} {unit}", "median of all rounds" if long else spread(summary))

    return _of_measurement(show)


QUALITY: list[Metric] = [
    ("Size", _size),
    ("Perplexity", _of_evaluation(_perplexity)),
    ("KL divergence", _of_evaluation(_divergence)),
    ("Cosine to the original", _of_agreement(_closeness)),
    ("Agreement with the original", _of_agreement(_classes)),
]
SPEED: list[Metric] = [
    ("Run", _went),
    ("Prefill", _speed(statistics.prefill_tokens_per_s, "tokens/s", has_prefilled)),
    ("Decode", _speed(statistics.decode_tokens_per_s, "tokens/s", has_decoded)),
    ("Time to first token", _speed(statistics.ttft_ms, "ms", generates)),
    ("Time per call", _speed(statistics.ttft_ms, "ms", lambda m: not statistics.decodes(m) and has_first(m))),
    ("Load time", _of_measurement(lambda m: Cell(f"{number(m.load_ns / 1e6)} ms") if m.load_ns else None)),
    ("Peak memory", _of_measurement(_peak)),
    ("Energy", _of_measurement(lambda m: energy(m.energy))),
]
METRICS = [*QUALITY, *SPEED]
