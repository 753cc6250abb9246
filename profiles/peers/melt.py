"""MELT's table for SmolLM2-135M on this machine: five precisions in two runtimes, and llama.cpp's Q4_0 beside them.

Run as `python -m edge.profiles.peers.melt --output profiles/baselines`; `--prepare` only exports what it needs. The
model is taken off its grid, as for the other baselines, whose compressed folders it reuses. Every engine is profiled by
the one protocol, each time in a process of its own, and they take turns: load that comes and goes hits them all.
Finished turns are kept and not repeated. After Laskaridis et al., "MELTing point: Mobile Evaluation of Language
Transformers", MobiCom 2024.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec

from edge.core.bundle import open_bundle
from edge.core.console import info
from edge.core.errors import EdgeError
from edge.core.files import read_json, write_json, write_text
from edge.core.measurement import Measurement
from edge.models import samples
from edge.models.checkpoint import open_checkpoint
from edge.models.offgrid import take_off_grid
from edge.profiles import statistics
from edge.profiles.peers.command import run_edge
from edge.profiles.run import profile

MODEL = "SmolLM2-135M-Instruct"
PRESETS = {"fp32": "", "int8": "int8", "int4": "int4", "int3": "int3", "int2": "int2"}
RUNTIMES = ("onnx", "executorch")
THREADS = (1, 2)
# What llama.cpp calls Q4_0, embedding and head too, as the presets have them.
Q4_0 = """
schema = 1
name = "Q4_0"
[[steps]]
method = "rtn"
options = {bits = 4, group_size = 32, grid = "symmetric"}
"""


class Row(msgspec.Struct, frozen=True):
    """One engine at one precision: `name` is also the folder of its bundle."""

    precision: str
    runtime: str

    @property
    def name(self) -> str:
        return f"{self.precision}-{self.runtime}"


ROWS = [Row(precision, runtime) for precision in PRESETS for runtime in RUNTIMES] + [Row("Q4_0", "gguf")]


def main() -> None:
    """Export what is missing, measure what is missing, write the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--work", type=Path, default=Path("out/melt"))
    parser.add_argument("--models", type=Path, default=Path("out/baselines"), help="compressed folders to reuse")
    parser.add_argument("--prepare", action="store_true", help="export only")
    parser.add_argument("--rounds", type=int, default=2, help="turns of every engine")
    parser.add_argument("--repetitions", type=int, default=5, help="of a turn")
    parser.add_argument("--prompt-tokens", type=int, default=128)
    parser.add_argument("--generated-tokens", type=int, default=64)
    arguments = parser.parse_args()
    for row in ROWS:
        export(row, arguments.models, arguments.work)
    if arguments.prepare:
        return
    plan = {name: getattr(arguments, name) for name in ("prompt_tokens", "generated_tokens", "repetitions")}
    for number in range(arguments.rounds):
        take_turns(arguments.work, number, plan)
    write(arguments.work, arguments.output)


def export(row: Row, models: Path, work: Path) -> None:
    """The row's bundle, made from a folder of the other baselines where that is there."""
    bundle = work / "bundles" / row.name
    if bundle.exists():
        return
    models.mkdir(parents=True, exist_ok=True)
    bundle.parent.mkdir(parents=True, exist_ok=True)
    run_edge("export", str(_compressed(row.precision, models)), "-o", str(bundle), "--runtime", row.runtime)


def _compressed(precision: str, models: Path) -> Path:
    model = models / MODEL
    if not model.exists():
        take_off_grid(open_checkpoint(samples.fetch(samples.SMOLLM2)), model)
    if precision == "fp32":
        return model
    recipe, folder = PRESETS.get(precision, ""), models / f"preset-{precision}"
    if not recipe:
        recipe = str(models / f"{precision}.toml")
        write_text(Path(recipe), Q4_0)
    if not folder.exists():
        calibration, _ = samples.calibration_and_evaluation_text()
        run_edge("compress", str(model), "-r", recipe, "-o", str(folder), "--calibration-text", str(calibration))
    return folder


def take_turns(work: Path, number: int, plan: dict[str, int]) -> None:
    """Every engine once at every count of threads, in an order that turns over from round to round."""
    turns = [(row, threads) for threads in THREADS for row in ROWS]
    for row, threads in turns if number % 2 == 0 else reversed(turns):
        path = work / "turns" / f"{row.name}-{threads}t-{number}.json"
        if path.exists():
            continue
        path.parent.mkdir(parents=True, exist_ok=True)
        info(f"Round {number + 1}: {row.name}, {threads} threads")
        bundle = open_bundle(work / "bundles" / row.name, verify=number == 0)
        write_json(path, profile(bundle, threads=threads, fresh=True, **plan))


def write(work: Path, output: Path) -> None:
    """One result per engine and count of threads for `edge report`; all of them as `melt-smollm2.json` and `.md`."""
    made: dict[str, Any] = {}
    joined = None
    results = work / "results"
    results.mkdir(parents=True, exist_ok=True)
    for row, threads, turns in _measured(work):
        joined = statistics.together(turns)
        write_json(results / f"{row.name}-{threads}t.json", joined)
        made[f"{row.name} {threads}t"] = summary(row, threads, turns)
    if joined is None:
        raise EdgeError("bench.empty", f"{work} has no turn of any engine", "run at least one round")
    content = {"schema": 1, "device": joined.device, "protocol": _words(joined, made.values()), "rows": made}
    write_json(output / "melt-smollm2.json", content)
    write_text(output / "melt-smollm2.md", markdown(content))


def _words(one: Measurement, rows: Iterable[dict[str, Any]]) -> str:
    plan, counts = one.protocol, [row["decode_tokens_per_s"]["count"] for row in rows]
    return (
        f"{plan.prompt_tokens} random prompt tokens, then {plan.generated_tokens} greedy ones, batch 1; in turns, each "
        f"a process of its own with {plan.warm_ups} warm-ups and {plan.min_seconds:g} s or more; "
        f"{min(counts)} to {max(counts)} repetitions of a row in all"
    )


def _measured(work: Path) -> Iterator[tuple[Row, int, list[Measurement]]]:
    for threads in THREADS:
        for row in ROWS:
            paths = sorted((work / "turns").glob(f"{row.name}-{threads}t-*.json"))
            if paths:
                yield row, threads, [read_json(path, Measurement) for path in paths]


def summary(row: Row, threads: int, turns: Sequence[Measurement]) -> dict[str, Any]:
    """What the table shows of one engine, with the raw samples that it comes from, turn by turn."""
    joined = statistics.together(turns)
    return {
        "precision": row.precision,
        "runtime": row.runtime,
        "threads": threads,
        "stored_bytes": joined.stored_bytes,
        "bits_per_weight": joined.bits_per_weight,
        "bundle_sha256": joined.bundle_sha256,
        "ttft_ms": vars(statistics.ttft_ms(joined)),
        "prefill_tokens_per_s": vars(statistics.prefill_tokens_per_s(joined)),
        "decode_tokens_per_s": vars(statistics.decode_tokens_per_s(joined)),
        "load_ms": joined.load_ns / 1e6,
        "peak_bytes": joined.peak_bytes,
        "turns": [
            {
                "load_ns": turn.load_ns,
                "peak_bytes": turn.peak_bytes,
                "prefill_ns": [r.prefill_ns for r in turn.repetitions],
                "decode_ns": [sum(r.decode_ns) for r in turn.repetitions],
            }
            for turn in turns
        ],
    }


def markdown(content: dict[str, Any]) -> str:
    """The table for people."""
    device = content["device"]
    lines = [
        f"# {MODEL} on {device.get('cpu')}",
        "",
        f"{content['protocol']}; medians, with the decode speed's CV.",
        "",
    ]
    header = ("engine", "bits", "time to first token", "prefill", "decode", "CV", "load", "peak memory")
    for threads in THREADS:
        rows = [row for row in content["rows"].values() if row["threads"] == threads]
        if rows:
            lines += [f"{threads} thread{'s' if threads > 1 else ''}:", "", _line(header), "|" + "---|" * len(header)]
            lines += [_line(_cells(row)) for row in rows] + [""]
    return "\n".join(lines)


def _cells(row: dict[str, Any]) -> tuple[str, ...]:
    engine = {"onnx": "ONNX Runtime", "executorch": "ExecuTorch", "gguf": "llama.cpp"}[row["runtime"]]
    decode = row["decode_tokens_per_s"]
    return (
        f"{row['precision']}, {engine}",
        f"{row['bits_per_weight']:.2f}",
        f"{row['ttft_ms']['median']:.1f} ms",
        f"{row['prefill_tokens_per_s']['median']:.0f} tokens/s",
        f"{decode['median']:.1f} tokens/s",
        f"{100 * decode['cv']:.1f} %",
        f"{row['load_ms']:.0f} ms",
        f"{row['peak_bytes'] / 1e6:.0f} MB",
    )


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    main()
