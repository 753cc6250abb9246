"""Tables of `edge profile`."""

from __future__ import annotations

from collections.abc import Sequence

from edge.cli._output import print_table, size
from edge.core.measurement import Measurement
from edge.profiles import statistics
from edge.profiles.clusters import cores_text
from edge.profiles.operators import by_operator
from edge.profiles.statistics import Summary

Rows = list[tuple[str, str]]


def show(result: Measurement) -> None:
    """One measurement: what it took, turn by turn or over time, and by operator."""
    print_table(("what", "median (p10 to p90, CV)"), _rows(result))
    if result.protocol.mode == "sustained":
        print_table(("over time", ""), _over_time(result))
    if result.protocol.turns:
        print_table(("turn", "read", "time to first token", "decode"), _turns(result))
    operators = by_operator(result.operators)
    step = "decode" if statistics.decodes(result) else "a call"
    if operators:
        print_table(("operator", f"share of {step}"), [(row.name, f"{100 * row.share:.1f} %") for row in operators[:8]])


def show_several(results: Sequence[Measurement]) -> None:
    """Measurements of a sweep, a row each."""
    columns = ("prompt", "new", "threads", "cores", "first token", "prefill/s", "decode/s", "CV", "memory")
    print_table(columns, [_row(result) for result in results])


def _row(result: Measurement) -> tuple[str, ...]:
    plan, generates = result.protocol, statistics.decodes(result)
    return (
        f"{plan.prompt_tokens}",
        f"{plan.generated_tokens}",
        f"{plan.threads or 'auto'}",
        cores_text(plan.cores) or "all",
        f"{statistics.ttft_ms(result).median:.1f} ms",
        f"{statistics.prefill_tokens_per_s(result).median:.1f}" if plan.prompt_tokens else "",
        f"{statistics.decode_tokens_per_s(result).median:.1f}" if generates else "",
        f"{100 * statistics.speeds(result).cv:.1f} %",
        size(result.peak_bytes),
    )


def _rows(result: Measurement) -> Rows:
    generates = statistics.decodes(result)
    rows = [("time to first token" if generates else "time per call", _spread(statistics.ttft_ms(result), "ms"))]
    if result.repetitions[0].encode_ns:
        rows.append(("encoder", _spread(statistics.encode_ms(result), "ms")))
    if result.protocol.prompt_tokens:
        rows.append(("prefill", _spread(statistics.prefill_tokens_per_s(result), "tokens/s")))
    if generates:
        rows.append(("decode", _spread(statistics.decode_tokens_per_s(result), "tokens/s")))
    rows += [("load", f"{result.load_ns / 1e6:.0f} ms"), ("peak memory", size(result.peak_bytes))]
    throttled = sum(r.throttled for r in result.repetitions if r.turn == 0)
    if throttled and result.protocol.mode != "sustained":
        rows.append(("throttled", f"{throttled} repetitions ran with a lowered clock and were done again"))
    return [*rows, *_energy(result)]


def _turns(result: Measurement) -> list[tuple[str, ...]]:
    """Medians of each turn, over the repetitions."""
    rows = []
    for number in range(len(result.protocol.turns)):
        of = [turns[number] for turns in statistics.conversations(result)]
        first = statistics.summarize([turn.prefill_ns / 1e6 for turn in of]).median
        decode = statistics.summarize([statistics.decode_rate(turn) for turn in of]).median
        rows.append((f"{number + 1}", f"{of[0].prompt_tokens} tokens", f"{first:.1f} ms", f"{decode:.1f} tokens/s"))
    return rows


def _over_time(result: Measurement) -> Rows:
    from edge.profiles.sustained import sustained

    found = sustained(result)
    steady = "" if found.steady else ", not steady when it ended"
    rows = [
        ("cold", f"{found.cold:.1f} tokens/s in the first round"),
        ("warm", f"{found.warm:.1f} tokens/s"),
        ("sustained", f"{found.sustained:.1f} tokens/s, {100 * found.retention:.0f} % of warm{steady}"),
    ]
    if found.throttled_after_s is None:
        return [*rows, ("slowed", "never")]
    heat = "" if found.temperature_c is None else f" at {found.temperature_c:.0f} °C"
    return [*rows, ("slowed", f"after {found.throttled_after_s:.0f} s{heat}: {found.cause}")]


def _energy(result: Measurement) -> Rows:
    """Net of idle by phase, with k = 2; or why there is none."""
    from edge.report.table import per_token

    found = result.energy
    if found.energy_uj is None:
        return [("energy", f"not available: {found.reason}")]
    whole = f"{found.energy_uj / 1e6:.2f} J gross, {found.reason}"
    return [("energy", whole), *((f"energy of {w.name}", per_token(w, name=False)) for w in found.windows)]


def _spread(summary: Summary, unit: str) -> str:
    return f"{summary.median:.1f} {unit} ({summary.p10:.1f} to {summary.p90:.1f}, {100 * summary.cv:.1f} %)"
