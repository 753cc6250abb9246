"""edge compress"""

from pathlib import Path
from typing import Annotated

import typer

from edge.cli._output import Force, Json, print_json, size


def command(
    model: Annotated[str, typer.Argument(help="A Hugging Face folder, a hub id, or a GGUF file.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder to write.")],
    recipe: Annotated[str, typer.Option("--recipe", "-r", help="A preset (`edge recipes`) or a TOML file.")] = "int4",
    calibration_text: Annotated[Path | None, typer.Option(help="Text file for calibrated methods.")] = None,
    force: Force = False,
    json: Json = False,
) -> None:
    """Make a checkpoint small. A killed run resumes at the layer it was at."""
    from edge import api
    from edge.models.checkpoint import open_checkpoint

    folder = api.compress(model, recipe, output, calibration_text=calibration_text, force=force)
    compressed = open_checkpoint(folder)
    bits = 8 * compressed.stored_bytes / compressed.parameters
    if json:
        print_json({"output": str(folder), "stored_bytes": compressed.stored_bytes, "bits_per_weight": bits})
    else:
        print(f"{folder}: {size(compressed.stored_bytes)}, {bits:.2f} bits per weight")
