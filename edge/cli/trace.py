"""edge trace"""

from pathlib import Path
from typing import Annotated

import typer

from edge.cli._output import Json, print_json


def command(
    results: Annotated[list[Path], typer.Argument(help="JSON files from `edge profile -o`.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Trace to write, for ui.perfetto.dev.")],
    engine_trace: Annotated[
        Path | None, typer.Option(help="ONNX Runtime's own JSON trace: every operator call instead of an average step.")
    ] = None,
    json: Json = False,
) -> None:
    """One Perfetto trace of profiled runs: tokens, operators, power, clocks, temperatures, memory."""
    from edge import api

    path = api.trace(results, output, engine_trace=engine_trace)
    if json:
        print_json({"trace": str(path)})
    else:
        print(path)
