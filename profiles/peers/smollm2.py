"""The baselines on SmolLM2-135M off its grid: quality by method and bits, speed by kernels, memory of compression.

Run as `python -m edge.profiles.peers.smollm2 --output profiles/baselines`. It drives the `edge` command as a user does,
so that each step is a process of its own whose peak memory the kernel reports. Finished rows are kept and not repeated.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import msgspec

from edge.core.bundle import open_bundle
from edge.core.console import info
from edge.core.files import write_json
from edge.core.plugins import RUNTIMES
from edge.core.session import SessionOptions
from edge.models import samples
from edge.models.checkpoint import open_checkpoint
from edge.models.offgrid import take_off_grid
from edge.profiles.fingerprint import fingerprint
from edge.profiles.peers.austen import northanger_abbey
from edge.profiles.peers.command import edge_command, run_edge
from edge.profiles.peers.interleave import interleaved

TEXT_BYTES = 50_000
PRESETS = ("int8", "int4", "int4-gptq", "int3", "int2")
RECIPE = """
schema = 1
name = "{method}{bits}"
[[steps]]
method = "{method}"
options = {{bits = {bits}, group_size = 64}}
rules = [{{module = "embedding", exclude = true}}, {{module = "head", exclude = true}}]
[[steps]]
method = "rtn"
options = {{bits = 8, group_size = 64}}
"""


def main() -> None:
    """Measure what is missing from the output folder."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--work", type=Path, default=Path("out/baselines"))
    parser.add_argument("--only", choices=("quality", "speed", "help"), nargs="*", default=("quality", "speed", "help"))
    arguments = parser.parse_args()
    arguments.output.mkdir(parents=True, exist_ok=True)
    arguments.work.mkdir(parents=True, exist_ok=True)
    model = arguments.work / "SmolLM2-135M-Instruct"
    if not model.exists():
        take_off_grid(open_checkpoint(samples.fetch(samples.SMOLLM2)), model)
    for name in arguments.only:
        {"quality": quality, "speed": speed, "help": startup}[name](model, arguments.work, arguments.output)


def quality(model: Path, work: Path, output: Path) -> None:
    """Perplexity on Northanger Abbey (first 50 kB, context 1024) for float32, and for rtn and gptq at 8, 4, 3, 2 bits.

    The matrices of the layers have the stated bits in groups of 64; embedding and tied head are at 8 bits throughout,
    so that rows differ by method and bits alone. Presets of edge follow, each as it comes.
    """
    text = northanger_abbey(samples.cache_folder())
    calibration, _ = samples.calibration_and_evaluation_text()
    rows = _Rows(output / "smollm2-quality.json", text=f"Northanger Abbey, first {TEXT_BYTES} bytes, context 1024")
    rows.add("float32", lambda: _evaluate(model, text, None))
    for name, recipe in _recipes(work):
        rows.add(name, lambda name=name, recipe=recipe: _quality_row(model, work / name, recipe, text, calibration))


def _recipes(work: Path) -> Iterator[tuple[str, str]]:
    for bits in (8, 4, 3, 2):
        for method in ("rtn", "gptq"):
            path = work / f"{method}{bits}.toml"
            path.write_text(RECIPE.format(method=method, bits=bits))
            yield f"{method}{bits}", str(path)
    for preset in PRESETS:
        yield f"preset {preset}", preset


def _quality_row(model: Path, folder: Path, recipe: str, text: Path, calibration: Path) -> dict[str, Any]:
    folder = folder.with_name(folder.name.replace(" ", "-"))
    start = time.perf_counter()
    options = ("-r", recipe, "-o", str(folder), "--calibration-text", str(calibration), "--force")
    _, peak_bytes = run_edge("compress", str(model), *options)
    seconds = time.perf_counter() - start
    return {"compress_peak_bytes": peak_bytes, "compress_s": seconds, **_evaluate(folder, text, model)}


def _evaluate(path: Path, text: Path, against: Path | None) -> dict[str, Any]:
    original = ("--against", str(against)) if against else ()
    result, _ = run_edge("evaluate", str(path), "-t", str(text), "--max-bytes", str(TEXT_BYTES), *original)
    kept = ("perplexity", "word_perplexity", "bits_per_byte", "kl_divergence", "top1_agreement", "tokens")
    return {key: result[key] for key in (*kept, "stored_bytes", "bits_per_weight")}


def speed(model: Path, work: Path, output: Path) -> None:
    """Decode and prefill in ONNX Runtime: float32 graph, builtin int4, edge int4, taking turns; one and two threads."""
    small = work / "speed-int4"
    if not small.exists():
        run_edge("compress", str(model), "-r", "int4", "-o", str(small))
    bundles = {"float32": (model, "builtin"), "int4 builtin": (small, "builtin"), "int4 edge": (small, "edge")}
    for name, (source, kernels) in bundles.items():
        folder = work / f"bundle-{name.replace(' ', '-')}"
        if not folder.exists():
            run_edge("export", str(source), "-o", str(folder), "--kernels", kernels)
    rows = _Rows(output / "smollm2-speed.json", protocol="prompt 128, 32 decoded, 10 rounds in turns, 2 warm-up rounds")
    for threads in (1, 2):
        rows.add(f"{threads} threads", lambda threads=threads: _speed_row(work, list(bundles), threads))


def _speed_row(work: Path, names: list[str], threads: int) -> dict[str, Any]:
    with ExitStack() as stack:
        sessions = {}
        for name in names:
            bundle = open_bundle(work / f"bundle-{name.replace(' ', '-')}")
            runtime = RUNTIMES.load(bundle.manifest.runtime)
            session = runtime.open(bundle, SessionOptions(threads=threads))
            sessions[name] = stack.enter_context(closing(session))
        turns = interleaved(sessions, rounds=10)
    return {name: {**samples_.summary(), "raw": msgspec.to_builtins(samples_)} for name, samples_ in turns.items()}


def startup(_model: Path, _work: Path, output: Path) -> None:
    """Seconds of `edge --help`, without torch."""
    rows = _Rows(output / "startup.json", command="edge --help")
    rows.add("seconds", lambda: {"samples": sorted(_help_seconds() for _ in range(11))})


def _help_seconds() -> float:
    start = time.perf_counter()
    subprocess.run([str(edge_command()), "--help"], check=True, capture_output=True)
    return time.perf_counter() - start


class _Rows:
    """A JSON file of named rows under the machine's fingerprint, written after each row."""

    def __init__(self, path: Path, **about: str) -> None:
        self.path = path
        self.content: dict[str, Any] = {"schema": 1, "device": fingerprint(), **about, "rows": {}}
        if path.exists():
            self.content["rows"] = json.loads(path.read_text())["rows"]

    def add(self, name: str, measure: Callable[[], dict[str, Any]]) -> None:
        if name not in self.content["rows"]:
            info(f"{self.path.stem}: {name}")
            self.content["rows"][name] = measure()
            write_json(self.path, self.content)


if __name__ == "__main__":
    main()
