"""edge profile"""

from pathlib import Path
from typing import Annotated

import typer

from edge.cli._output import Json, Threads, print_json, print_table, size


def command(
    bundle: Annotated[Path, typer.Argument(help="A bundle from `edge export`.")],
    device: Annotated[str, typer.Option(help="Where to run: `edge devices`.")] = "cpu",
    prompt_tokens: Annotated[int, typer.Option(min=1)] = 128,
    generated_tokens: Annotated[int, typer.Option(min=2)] = 64,
    repetitions: Annotated[int, typer.Option(help="Measured runs, after 3 warm-ups.", min=5)] = 5,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Write the result for `edge report`.")] = None,
    threads: Threads = 0,
    meter_csv: Annotated[Path | None, typer.Option(help="File that an external power meter is writing.")] = None,
    json: Json = False,
) -> None:
    """Measure latency, memory, operators and energy; raw samples are kept."""
    from edge import api
    from edge.core.files import write_json
    from edge.profiles import statistics
    from edge.profiles.operators import by_operator

    result = api.profile(
        bundle,
        device=device,
        prompt_tokens=prompt_tokens,
        generated_tokens=generated_tokens,
        repetitions=repetitions,
        threads=threads,
        meter_csv=meter_csv,
    )
    if output:
        write_json(output, result)
    if json:
        print_json(result)
        return
    print_table(("what", "median (p10 to p90, CV)"), _rows(result))
    operators = by_operator(result.operators)
    step = "decode" if statistics.decodes(result) else "a call"
    print_table(("operator", f"share of {step}"), [(row.name, f"{100 * row.share:.1f} %") for row in operators[:8]])


def _rows(result) -> list[tuple[str, str]]:
    from edge.profiles import statistics

    generates = statistics.decodes(result)
    rows = [("time to first token" if generates else "time per call", _spread(statistics.ttft_ms(result), "ms"))]
    if result.repetitions[0].encode_ns:
        rows.append(("encoder", _spread(statistics.encode_ms(result), "ms")))
    if result.protocol.prompt_tokens:
        rows.append(("prefill", _spread(statistics.prefill_tokens_per_s(result), "tokens/s")))
    if generates:
        rows.append(("decode", _spread(statistics.decode_tokens_per_s(result), "tokens/s")))
    return [
        *rows,
        ("load", f"{result.load_ns / 1e6:.0f} ms"),
        ("peak memory", size(result.peak_bytes)),
        *_energy(result.energy),
    ]


def _energy(found) -> list[tuple[str, str]]:
    """Net of idle by phase, with k = 2; or why there is none."""
    from edge.report.table import per_token

    if found.energy_uj is None:
        return [("energy", f"not available: {found.reason}")]
    whole = f"{found.energy_uj / 1e6:.2f} J gross, {found.reason}"
    return [("energy", whole), *((f"energy of {w.name}", per_token(w, name=False)) for w in found.windows)]


def _spread(summary, unit: str) -> str:
    return f"{summary.median:.1f} {unit} ({summary.p10:.1f} to {summary.p90:.1f}, {100 * summary.cv:.1f} %)"
