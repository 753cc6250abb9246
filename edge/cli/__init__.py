"""The command line: one file per command, each a thin layer over `edge.api`."""

from __future__ import annotations

import functools
import inspect
import logging
import sys
from collections.abc import Callable
from typing import Annotated, Any

import msgspec
import typer

from edge.cli import (
    bench,
    compare,
    compress,
    demo,
    devices,
    doctor,
    evaluate,
    export,
    import_,
    methods,
    profile,
    recipes,
    report,
    run,
    study,
    targets,
    trace,
)
from edge.core.console import console, set_verbosity
from edge.core.errors import EdgeError

INTERRUPTED = 130  # what typer makes of Ctrl-C

app = typer.Typer(
    name="edge",
    help="Put transformers on phones, Jetsons and CPUs: compress, export, run, measure.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Errors only.")]
Verbose = Annotated[bool, typer.Option("--verbose", "-v", help="More detail.")]


def _with_verbosity(command: Callable[..., None]) -> Callable[..., None]:
    """The command with -q and -v of its own, so that they may stand before or behind its name."""

    @functools.wraps(command)
    def run(*, quiet: bool, verbose: bool, **options: Any) -> None:
        if quiet or verbose:
            set_verbosity(-1 if quiet else 1)
        command(**options)

    signature = inspect.signature(command)
    extra = [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=False, annotation=kind)
        for name, kind in (("quiet", Quiet), ("verbose", Verbose))
    ]
    run.__signature__ = signature.replace(parameters=[*signature.parameters.values(), *extra])
    run.__annotations__ = {**command.__annotations__, "quiet": Quiet, "verbose": Verbose}
    return run


for panel, modules in {
    "The job": (compress, export, run, evaluate, profile, compare, study, import_, report, trace, demo),
    "What there is": (recipes, methods, targets, devices, doctor),
}.items():
    for module in modules:
        name = module.__name__.rpartition(".")[2].rstrip("_")  # `import` is a word of Python's own
        app.command(name, rich_help_panel=panel)(_with_verbosity(module.command))

bench_app = typer.Typer(help="Time kernels and whole models, and measure a training's memory.", no_args_is_help=True)
for command in (bench.kernels, bench.peers, bench.edkm):
    bench_app.command(command.__name__)(_with_verbosity(command))
app.add_typer(bench_app, name="bench", rich_help_panel="The job")


def _print_version(asked: bool) -> None:
    if asked:
        from edge import __version__

        print(f"edge {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    quiet: Quiet = False,
    verbose: Verbose = False,
    _version: Annotated[
        bool, typer.Option("--version", help="Show the version.", callback=_print_version, is_eager=True)
    ] = False,
) -> None:
    set_verbosity(-1 if quiet else int(verbose))


def main() -> None:
    """Entry point of `edge`."""
    # What torchao says at import, of libraries for other machines, is of no use to anybody here.
    for name in ("torchao", "torch.utils._pytree"):
        logging.getLogger(name).setLevel(logging.ERROR)
    guarded(app)


def guarded(job: Callable[[], None]) -> None:
    """Run a command. The only place that turns errors into exit codes."""
    try:
        job()
    except EdgeError as error:
        _show(error)
        sys.exit(error.exit_code)
    except SystemExit as end:
        if end.code == INTERRUPTED:
            console.quiet = False
            console.print("interrupted: the same command goes on where it can resume", markup=False)
        raise
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
