"""The command line: one file per command, each a thin layer over `edge.api`."""

from __future__ import annotations

import sys
from typing import Annotated

import msgspec
import typer

from edge.cli import (
    compress,
    demo,
    devices,
    doctor,
    evaluate,
    export,
    methods,
    profile,
    recipes,
    report,
    run,
    targets,
)
from edge.core.console import console, set_verbosity
from edge.core.errors import EdgeError

app = typer.Typer(
    name="edge",
    help="Put transformers on phones, Jetsons and CPUs: compress, export, run, measure.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
for panel, modules in {
    "The job": (compress, export, run, evaluate, profile, report, demo),
    "What there is": (recipes, methods, targets, devices, doctor),
}.items():
    for module in modules:
        app.command(module.__name__.rpartition(".")[2], rich_help_panel=panel)(module.command)


def _print_version(asked: bool) -> None:
    if asked:
        from edge import __version__

        print(f"edge {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Errors only.")] = False,
    verbose: Annotated[int, typer.Option("--verbose", "-v", count=True, help="More detail.")] = 0,
    _version: Annotated[
        bool, typer.Option("--version", help="Show the version.", callback=_print_version, is_eager=True)
    ] = False,
) -> None:
    set_verbosity(-1 if quiet else verbose)


def main() -> None:
    """Entry point of `edge`. The only place that turns errors into exit codes."""
    try:
        app()
    except EdgeError as error:
        _show(error)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        console.quiet = False
        console.print("interrupted: the same command goes on where it can resume", markup=False)
        sys.exit(130)
    except BrokenPipeError:
        sys.stderr.close()
        sys.exit(1)
    except OSError as error:
        _show(EdgeError("system", str(error), "check the path, the permissions and the free disk"))
        sys.exit(1)
    except MemoryError:
        _show(EdgeError("memory", "out of memory", "close other programs, or take a smaller model or context"))
        sys.exit(1)


def _show(error: EdgeError) -> None:
    """One line and a hint on stderr; with `--json` one object on stdout as well, so that scripts need no parsing."""
    console.quiet = False
    console.print(f"[bold red]error:[/] {_escape(error.message)}", soft_wrap=True)
    if error.hint:
        console.print(f"[bold]hint:[/] {_escape(error.hint)}", soft_wrap=True)
    if "--json" in sys.argv:
        problem = {"code": error.code, "message": error.message, "hint": error.hint}
        print(msgspec.json.encode({"error": problem}).decode())


def _escape(text: str) -> str:
    from rich.markup import escape

    return escape(text)
