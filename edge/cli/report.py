"""edge report"""

from pathlib import Path
from typing import Annotated

import typer

from edge.cli._output import Json, print_json


def command(
    results: Annotated[list[Path], typer.Argument(help="JSON files that evaluate, profile, compare and import wrote.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="HTML file to write; a .md card goes beside it.")],
    title: Annotated[str, typer.Option(help="Heading of the page.")] = "edge report",
    json: Json = False,
) -> None:
    """One self-contained HTML page and a Markdown card from results."""
    from edge import api

    path = api.report(results, output, title=title)
    if json:
        print_json({"report": str(path), "card": str(path.with_suffix(".md"))})
    else:
        print(path)
