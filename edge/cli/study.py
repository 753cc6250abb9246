"""edge study"""

from pathlib import Path
from typing import Annotated

import typer

from edge.cli._output import Json, Threads, print_json, print_table

SHOWN = {
    "Bits per weight": "bits",
    "Perplexity": "perplexity",
    "KL divergence": "KL",
    "Top-1 agreement": "top-1",
    "Size": "size",
    "Decode": "decode",
    "Time to compress": "compressed in",
}
"""Columns of the page that a terminal has room for."""


def command(
    model: Annotated[str, typer.Argument(help="Hugging Face folder, hub id or GGUF file of a language model.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for the table and the results behind it.")],
    text: Annotated[Path, typer.Option("--text", "-t", help="UTF-8 text for perplexity and KL divergence.")],
    methods: Annotated[str, typer.Option(metavar="NAME,..", help="From `edge methods`; rotate+gptq for both.")] = "",
    bits: Annotated[str, typer.Option(metavar="N,..", help="Bits of the layers' matrices.")] = "4,3,2",
    recipe: Annotated[
        list[str] | None, typer.Option("--recipe", "-r", help="One more row: a preset or a TOML file. May be repeated.")
    ] = None,
    peers: Annotated[
        str, typer.Option(metavar="NAME,..", help="llama.cpp, onnxruntime, or one format: llama.cpp:Q4_K_M.")
    ] = "",
    calibration_text: Annotated[Path | None, typer.Option(help="Text that calibrated methods see.")] = None,
    samples: Annotated[int, typer.Option(help="Windows of it.", min=1)] = 64,
    sequence_length: Annotated[int, typer.Option(help="Tokens of each.", min=1)] = 512,
    group_size: Annotated[int, typer.Option(help="Weights that share a scale; 0 for a row.", min=0)] = 64,
    head_bits: Annotated[str, typer.Option(metavar="N|same", help="Bits of embedding and head, by rtn for all.")] = "8",
    max_bytes: Annotated[int | None, typer.Option(help="Score the beginning of the text only.", min=1)] = None,
    context: Annotated[int | None, typer.Option(help="Tokens per window; 1024 or what the model holds.", min=2)] = None,
    tasks: Annotated[str, typer.Option(metavar="NAME,..", help="lm-eval's, where their data is at hand.")] = "",
    task_limit: Annotated[int | None, typer.Option(help="Documents of each task.", min=1)] = None,
    speed: Annotated[bool, typer.Option(help="Export each and time it in the runtime.")] = True,
    keep_models: Annotated[bool, typer.Option(help="Keep the compressed folders and bundles.")] = False,
    threads: Threads = 0,
    json: Json = False,
) -> None:
    """Compare methods, bits, recipes and other toolkits on one model: quality, size, time, memory, speed.

    Each is measured in a process of its own. The same command goes on where it stopped.
    """
    from edge.study.run import study

    found = study(
        model,
        output,
        text=text,
        methods=_names(methods),
        bits=_numbers(bits),
        recipes=recipe or [],
        peers=_names(peers),
        calibration_text=calibration_text,
        samples=samples,
        sequence_length=sequence_length,
        group_size=group_size,
        head_bits="same" if head_bits == "same" else _numbers(head_bits)[0],
        max_bytes=max_bytes,
        context_length=context,
        tasks=_names(tasks),
        task_limit=task_limit,
        speed=speed,
        keep_models=keep_models,
        threads=threads,
    )
    if json:
        print_json(found)
        return
    _show(found)
    print(output / "study.html")


def _show(found) -> None:
    from edge.study.table import build

    whole = build(found)
    kept = [index for index, column in enumerate(whole.columns) if column in SHOWN]
    columns = [SHOWN[whole.columns[index]] for index in kept]
    print_table(("", *columns), [(head.value, *(cells[i].value for i in kept)) for head, cells in whole.rows])
    for row in found.rows:
        for failure in row.failures:
            print(f"{row.label}: no {failure.stage}: {failure.message}")


def _names(text: str) -> list[str]:
    return list(dict.fromkeys(name.strip() for name in text.split(",") if name.strip()))


def _numbers(text: str) -> list[int]:
    from edge.core.errors import UsageError

    names = _names(text)
    if not names or not all(name.isdecimal() and 1 <= int(name) <= 16 for name in names):
        raise UsageError("study.bits", f"'{text}' is no number of bits", "give one, or several such as 4,3,2")
    return [int(name) for name in names]
