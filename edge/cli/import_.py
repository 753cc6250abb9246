"""edge import"""

from pathlib import Path
from typing import Annotated

import typer

from edge.cli._output import Force, Json, print_json, print_table


def command(
    files: Annotated[list[Path], typer.Argument(help="Results of llama-bench, ONNX Runtime's profiler, ExecuTorch.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="JSON to write; more are OUT-2.json and so on.")],
    etrecord: Annotated[Path | None, typer.Option(help="ETRecord that says of which layer an ETDump tells.")] = None,
    force: Force = False,
    json: Json = False,
) -> None:
    """Take over what another tool measured, for `edge report` and `edge compare`."""
    from edge import api
    from edge.core.console import info
    from edge.core.files import full_disk_is_an_error, refuse_existing, write_json

    found = api.import_results(files, etrecord=etrecord)
    paths = [output if i == 1 else output.with_stem(f"{output.stem}-{i}") for i in range(1, len(found) + 1)]
    for path in paths:
        refuse_existing(path, force=force)
    for path, measurement in zip(paths, found, strict=True):
        with full_disk_is_an_error(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            write_json(path, measurement)
    for note in dict.fromkeys(measurement.engine_note for measurement in found):
        info(note)
    if json:
        print_json({"results": [str(path) for path in paths], "notes": [one.engine_note for one in found]})
        return
    columns = ("file", "model", "what", "repetitions", "operators")
    print_table(columns, [_cells(path, result) for path, result in zip(paths, found, strict=True)])


def _cells(path, result) -> tuple[str, ...]:
    plan = result.protocol
    made = max(plan.generated_tokens - 1, 0)
    what = [f"{plan.prompt_tokens} read"] * bool(plan.prompt_tokens) + [f"{made} made"] * bool(made)
    name = f"{result.name}, {result.recipe}" if result.recipe else result.name
    return (str(path), name, ", ".join(what) or "calls", str(plan.repetitions), str(len(result.operators)))
