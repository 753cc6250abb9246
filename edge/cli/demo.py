"""edge demo"""

from pathlib import Path
from typing import Annotated

import typer

from edge.cli._output import Force, Json, Threads, print_json, size


def command(
    model: Annotated[
        str | None, typer.Option(help="A folder, a hub id or a GGUF; SmolLM2-135M-Instruct from PyPI when absent.")
    ] = None,
    recipe: Annotated[str, typer.Option("--recipe", "-r", help="A preset or a TOML file.")] = "int4-gptq",
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for everything the demo makes.")] = Path(
        "edge-demo"
    ),
    threads: Threads = 0,
    force: Force = False,
    json: Json = False,
) -> None:
    """The main job on a real model: compress, export, evaluate, profile, report. A second run reuses what is there."""
    from edge.demo import run_demo

    result = run_demo(model, recipe, output, threads=threads, force=force)
    if json:
        print_json(result)
        return
    print(f"{result.model} · {result.recipe}")
    print(f"  size        {size(result.stored_bytes)}, {result.bits_per_weight:.2f} bits per weight")
    print(f"  perplexity  {result.perplexity:.2f}, float32 {result.perplexity_fp32:.2f}")
    print(f"  speed       {result.prefill_tokens_per_s:.0f} tokens/s prefill, {result.decode_tokens_per_s:.0f} decode")
    print(f"  latency     {result.ttft_ms:.0f} ms to the first token")
    print(f"  memory      {size(result.peak_bytes)} at peak")
    print(f"Report: {result.report}")
