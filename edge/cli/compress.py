"""edge compress"""

import math
from pathlib import Path
from typing import Annotated, Any

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
    rows = _by_encoding(compressed)
    if json:
        planning = (getattr(compressed.config, "edge", None) or {}).get("planning") or {}
        print_json(
            {
                "output": str(folder),
                "stored_bytes": compressed.stored_bytes,
                "bits_per_weight": bits,
                "encodings": rows,
                "planning": planning.get("summary"),
            }
        )
        return
    for row in rows:
        print(f"{row['encoding']}: {row['matrices']} matrices, {row['weights']:,} weights, {size(row['stored_bytes'])}")
    print(f"{folder}: {size(compressed.stored_bytes)}, {bits:.2f} bits per weight")


def _by_encoding(checkpoint) -> list[dict[str, Any]]:
    """What became of the matrices, the largest share first."""
    found: dict[str, dict[str, Any]] = {}
    for name, encoding in checkpoint.encodings.items():
        empty = {"encoding": str(encoding), "matrices": 0, "weights": 0, "stored_bytes": 0}
        row = found.setdefault(str(encoding), empty)
        row["matrices"] += 1
        row["weights"] += math.prod(checkpoint.matrix_shape(name))
        row["stored_bytes"] += checkpoint.stored_bytes_of(name)
    return sorted(found.values(), key=lambda row: -row["stored_bytes"])
