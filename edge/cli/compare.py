"""edge compare"""

from pathlib import Path
from typing import Annotated

import typer

from edge.cli._output import Json, Threads, print_json, print_table

Side = Annotated[Path, typer.Argument(help="A bundle; or a result of `edge profile -o`, or a folder of its results.")]


def command(
    a: Side,
    b: Side,
    device: Annotated[str, typer.Option(help="Where to run bundles: `edge devices`.")] = "cpu",
    rounds: Annotated[int, typer.Option(help="Of four runs of bundles each: A B B A.", min=2)] = 4,
    prompt_tokens: Annotated[int, typer.Option(min=1)] = 128,
    generated_tokens: Annotated[int, typer.Option(min=2)] = 64,
    repetitions: Annotated[int, typer.Option(help="Measured in each run, after 3 warm-ups.", min=1)] = 5,
    min_seconds: Annotated[float, typer.Option(help="Measured in each run at least.", min=0.0)] = 3.0,
    threads: Threads = 0,
    max_regression: Annotated[float, typer.Option(help="Percent that B may be worse by.", min=0.0)] = 0.0,
    anyway: Annotated[bool, typer.Option("--anyway", help="Compare results of different devices.")] = False,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Write it all as JSON, with the runs.")] = None,
    json: Json = False,
) -> None:
    """Say whether B is faster or slower than A, beyond what noise does. Ends with code 4 where it is worse.

    Two bundles are profiled in turns, each run a process of its own; the same command goes on after a kill.
    """
    from edge import api
    from edge.core.errors import GateFailed
    from edge.core.files import write_json

    result = api.compare(
        a,
        b,
        device=device,
        rounds=rounds,
        prompt_tokens=prompt_tokens,
        generated_tokens=generated_tokens,
        repetitions=repetitions,
        min_seconds=min_seconds,
        threads=threads,
        max_regression_percent=max_regression,
        anyway=anyway,
    )
    if output:
        write_json(output, result)
    if json:
        print_json(result)
        if result.regressions:
            raise typer.Exit(GateFailed.exit_code)
        return
    _show(result)
    if result.regressions:
        worse = "; ".join(f"{c.metric} {_percent(c.ratio)}" for c in result.changes if c.metric in result.regressions)
        raise GateFailed("compare.regression", f"B is worse: {worse}", "--max-regression PERCENT allows as much")


def _show(result) -> None:
    floors = {
        "interleaved runs": "from runs of the same side, in turns with the other's",
        "runs": "from runs of the same side",
        "within one run": "from how each run drifted; runs of one bundle differ by more than that",
    }
    print(f"A: {result.a} ({_runs(result.runs_a)})")
    print(f"B: {result.b} ({_runs(result.runs_b)})")
    known = [change for change in result.changes if change.ratio is not None]
    columns = ("", "A", "B", "B to A", "95 % interval", "floor", "B is")
    print_table(columns, [_cells(change) for change in known])
    print(f"Floor: what differs where nothing does, in 99 of 100 comparisons; {floors[result.floor]}.")
    for change in result.changes:
        if change.why:
            print(f"{change.metric}: {change.words}: {change.why}")
    for note in result.notes:
        print(note)


def _cells(change) -> tuple[str, ...]:
    from edge.report.table import number

    interval = f"{100 * (change.low - 1):+.1f} to {_percent(change.high)}"
    sides = [number(side) for side in (change.a, change.b)]
    floor = f"±{100 * change.floor:.1f} %"
    return (f"{change.metric}, {change.unit}", *sides, _percent(change.ratio), interval, floor, change.words)


def _percent(ratio: float) -> str:
    return f"{100 * (ratio - 1):+.1f} %"


def _runs(count: int) -> str:
    return f"{count} run" if count == 1 else f"{count} runs"
