"""How the numbers of a report came about, and what they don't say."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from edge.core.bundle import Gates
from edge.core.measurement import Agreement, Evaluation, Measurement
from edge.profiles.plan import CV_GATE
from edge.profiles.statistics import decodes, speeds
from edge.report.results import Row, gates_of
from edge.report.table import megabytes

Facts = list[tuple[str, str]]
LOADS = {
    "python": "a new session, its files out of the page cache where the system allows that; the engine was imported",
    "runner": "a new process and session, the model's files out of the page cache where the system allows that",
}


def facts(rows: Sequence[Row]) -> list[tuple[str, Facts]]:
    """Headed lists of name and value: device, protocol, text, export gates. What all rows share is said once."""
    measured = [(row.label, row.measurement) for row in rows if row.measurement]
    timed = [(label, m) for label, m in measured if not m.emulated]
    evaluated = [(row.label, row.evaluation) for row in rows if row.evaluation]
    agreements = [(row.label, row.agreement) for row in rows if row.agreement]
    gates = [(label, found) for label, m in measured if (found := gates_of(m)) is not None]
    return [
        *_shared("Device", measured, lambda m: device_facts(m.device)),
        *_shared("Speed and memory", timed, _protocol),
        *_shared("Quality", evaluated, _text),
        *_shared("Agreement", agreements, _agreement),
        *_shared("Export gates", gates, _gates),
    ]


def caveats(rows: Sequence[Row]) -> list[str]:
    """What a reader should know before using the numbers."""
    measurements = [row.timed for row in rows if row.timed]
    evaluations = [row.evaluation for row in rows if row.evaluation]
    return [*_about_speed(rows, measurements), *_about_quality(evaluations)]


def _shared(
    heading: str, items: Sequence[tuple[str, Any]], describe: Callable[[Any], Facts]
) -> list[tuple[str, Facts]]:
    found: dict[tuple[tuple[str, str], ...], list[str]] = {}
    for label, item in items:
        found.setdefault(tuple(describe(item)), []).append(label)
    if len(found) < 2:
        return [(heading, list(described)) for described in found]
    return [(f"{heading}: {'; '.join(labels)}", list(described)) for described, labels in found.items()]


def device_facts(device: dict[str, Any]) -> Facts:
    """A fingerprint in words, whatever fields it has."""
    shown = {
        "Model": device.get("model"),
        "SoC": device.get("soc"),
        "Processor": device.get("cpu"),
        "Platform": device.get("platform"),
        "Cores": device.get("cores"),
        "Instruction sets": " ".join(device.get("isa") or []),
        "Caches": ", ".join(f"{name} {size}" for name, size in (device.get("caches") or {}).items()),
        "Memory": megabytes(device["memory_bytes"]) if device.get("memory_bytes") else None,
        "Frequency governor": device.get("governor") or "not known",
        "System": ", ".join(str(device[key]) for key in ("os", "kernel") if device.get(key)),
        "Software": ", ".join(f"{name} {found}" for name, found in (device.get("libraries") or {}).items()),
    }
    return [(name, str(value)) for name, value in shown.items() if value]


def _protocol(measurement: Measurement) -> Facts:
    plan = measurement.protocol
    conversation = f"{plan.prompt_tokens} random prompt tokens, then {plan.generated_tokens} greedy ones, batch 1"
    if plan.turns:
        turns = ", ".join(f"{prompt}+{generated}" for prompt, generated in plan.turns)
        conversation = f"{len(plan.turns)} turns of prompt+generated tokens, each on those before: {turns}"
    elif not decodes(measurement):
        conversation = (
            f"one text of {plan.prompt_tokens} random tokens a call" if plan.prompt_tokens else "an image a call"
        )
    if measurement.engine == "imported":
        conversation = conversation if plan.prompt_tokens or plan.generated_tokens else "calls, of what isn't told"
        return [
            ("Conversation", conversation),
            ("Timing", "by another tool, and in its own way"),
        ]
    pauses = [f"{plan.cool_down_s:g} s of cool-down between repetitions"] if plan.cool_down_s else []
    pauses += [f"each began below {plan.start_below_c:g} °C"] if plan.start_below_c is not None else []
    warm = f"after {plan.warm_ups} warm-ups, in a process of their own"
    return [
        ("Conversation", conversation),
        ("Repetitions", "; ".join([warm, *pauses])),
        ("Timing", "each step until its token is picked, so prefill is the time to the first token"),
        ("Load", LOADS[measurement.engine]),
    ]


def _text(evaluation: Evaluation) -> Facts:
    facts = [
        ("Text", f"{evaluation.text}, sha256 {evaluation.text_sha256[:12]}"),
        ("Windows", f"{evaluation.context_length} positions, not overlapping; the first is never predicted"),
        ("Predicted", f"{evaluation.tokens:,} tokens"),
    ]
    if evaluation.original:
        facts.append(("Against", f"{evaluation.original}, window by window; KL is KL(original ‖ compressed) per token"))
    return facts


def _agreement(agreement: Agreement) -> Facts:
    return [
        ("Held on", f"{agreement.data}, sha256 {agreement.data_sha256[:12]}"),
        ("Against", f"{agreement.original} in PyTorch, on the same inputs; KL is KL(original ‖ compressed)"),
    ]


def _gates(gates: Gates) -> Facts:
    parity = f"relative error {gates.relative_error or 0:.2g}, limit {gates.relative_error_limit or 0:.2g}"
    if gates.kl_divergence_mean is not None:
        parity = f"KL {gates.kl_divergence_mean:.2g} nats, limit {gates.kl_divergence_limit:.2g}"
    agreement = [] if gates.top1_agreement is None else [("Top-1 agreement", f"{gates.top1_agreement:.1%}")]
    return [
        ("Parity with PyTorch", parity),
        *agreement,
        ("Largest logit error", f"{gates.max_abs_logit_error:.3g}"),
        ("Weights read back", "bit-equal" if gates.codes_equal else "not equal"),
        ("Slower than fp32", ", ".join(gates.slow_nodes) or "no operator"),
    ]


def _about_speed(rows: Sequence[Row], measurements: Sequence[Measurement]) -> list[str]:
    said = []
    noisy = [
        row.label
        for row in rows
        if row.timed and speeds(row.timed).cv > CV_GATE and row.timed.protocol.mode != "sustained"
    ]
    if noisy:
        said.append(
            f"Speed varied by more than {CV_GATE:.0%} (CV) between repetitions for {'; '.join(noisy)}, after "
            "extra repetitions: something else was running. Read these with their spread."
        )
    for row in rows:
        if row.timed and all(r.throttled for r in row.timed.repetitions) and row.timed.protocol.mode != "sustained":
            said.append(f"Every repetition of {row.label} was throttled: this is not the device at its best.")
    if any(m.device.get("virtual_machine") for m in measurements):
        said.append("Measured in a virtual machine: neighbours and the host's clock are out of sight.")
    if len({m.engine for m in measurements}) > 1:
        said.append("Not all were timed by the same engine or tool: what one counts another may leave out.")
    if len({str(m.device) for m in measurements}) > 1:
        said.append("The rows were not all measured on the same machine and software: don't compare their speeds.")
    if measurements:
        python = any(m.engine == "python" for m in measurements)
        inside = "the runtime, and Python where that ran it," if python else "the runtime"
        said.append(
            f"Peak memory is that of the whole process, with {inside} in it; weights that are mapped from a file "
            "count once they were touched."
        )
    if len({m.energy.source for m in measurements if m.energy.energy_uj is not None}) > 1:
        said.append("Energies come from different kinds of source: don't compare them with each other.")
    reasons = sorted({m.energy.reason for m in measurements if m.energy.energy_uj is None})
    if reasons:
        said.append(f"No energy is given: {'; '.join(reasons)}.")
    return said


def _about_quality(evaluations: Sequence[Evaluation]) -> list[str]:
    said = []
    if len({(e.text_sha256, e.context_length) for e in evaluations}) > 1:
        said.append("The rows were not all evaluated on the same text and context: don't compare their perplexities.")
    if evaluations:
        said.append(
            "Perplexity is per token of this model's tokenizer, on one text: compare it between versions of one model, "
            "not between models. It says little about following instructions or about facts."
        )
    return said
