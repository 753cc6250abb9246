"""edge profile"""

from pathlib import Path
from typing import Annotated, Literal

import typer

from edge.cli._output import Json, print_json, print_json_rows
from edge.core.errors import UsageError

Mode = Literal["repetitions", "conversation", "sustained"]


def _numbers(text: str | None) -> list[int]:
    """`1,2,4`: each is a measurement of its own."""
    parts = text.split(",") if text is not None else []
    if not all(part.strip().isdecimal() for part in parts):
        raise UsageError("profile.numbers", f"'{text}' is no number", "give one, or several such as 128,512")
    return [int(part) for part in parts]


def command(
    bundle: Annotated[Path, typer.Argument(help="A bundle from `edge export`.")],
    device: Annotated[str, typer.Option(help="Where to run: `edge devices`.")] = "cpu",
    prompt_tokens: Annotated[
        str | None, typer.Option("--prompt-tokens", "-p", help="128 unless said, or 128,512 for both.", metavar="N,..")
    ] = None,
    generated_tokens: Annotated[
        str | None, typer.Option("--generated-tokens", "-n", help="64, of a sustained run 256.", metavar="N,..")
    ] = None,
    repetitions: Annotated[int, typer.Option("--repetitions", "-r", help="Measured runs.", min=5)] = 5,
    threads: Annotated[
        str | None, typer.Option("--threads", "-t", help="Chosen by the runtime unless said.", metavar="N,..")
    ] = None,
    cores: Annotated[
        list[str] | None,
        typer.Option(metavar="N-N", help="Kept on these, such as 4-7; may be repeated. auto: cluster by cluster."),
    ] = None,
    mode: Annotated[Mode | None, typer.Option(help="One conversation again and again, of turns, or until hot.")] = None,
    turns: Annotated[
        str | None, typer.Option(help="A conversation's: PROMPT:GENERATED,.. or a JSON file of prompts.")
    ] = None,
    sustained: Annotated[bool, typer.Option("--sustained", help="Short for --mode sustained.")] = False,
    max_seconds: Annotated[float, typer.Option(help="End of a sustained run that doesn't get steady.", min=1)] = 600,
    cool_down: Annotated[float, typer.Option(help="Seconds of rest between repetitions.", min=0)] = 0,
    start_below: Annotated[float | None, typer.Option(help="Wait until the hottest zone is below this, in °C.")] = None,
    wait: Annotated[float, typer.Option(help="Seconds to wait for that at most.", min=0)] = 300,
    engine: Annotated[
        Literal["auto", "python", "runner"], typer.Option(help="A Python session here, the native runner elsewhere.")
    ] = "auto",
    onnxruntime: Annotated[Path | None, typer.Option(help="Library for the native runner.")] = None,
    prepare: Annotated[bool, typer.Option("--prepare", help="Set screen, radio and clocks, and restore them.")] = False,
    meter_csv: Annotated[Path | None, typer.Option(help="File that an external power meter is writing.")] = None,
    fresh: Annotated[bool, typer.Option("--fresh", help="Don't go on with a run that was cut off.")] = False,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Write the result; of several NAME-p128-t2.json and so on.")
    ] = None,
    json: Json = False,
) -> None:
    """Measure latency, memory, operators and energy; raw samples are kept.

    After 3 warm-ups, at least 5 repetitions and 3 seconds; more where they differ. A run that was killed goes on.
    """
    from edge import api
    from edge.cli._profile_output import show, show_several

    wanted = _mode(mode, sustained=sustained, turns=turns is not None)
    if wanted == "conversation" and (prompt_tokens or generated_tokens):
        hint = "leave -p and -n away: --turns says how many tokens a conversation reads and makes"
        raise UsageError("profile.mode", "a conversation has its own lengths", hint)
    several = api.profile_sweep(
        bundle,
        device=device,
        output=output,
        fresh=fresh,
        onnxruntime=onnxruntime,
        prepare=prepare,
        meter_csv=meter_csv,
        prompt_tokens=_numbers(prompt_tokens),
        generated_tokens=_numbers(generated_tokens),
        threads=_numbers(threads),
        cores=cores or [],
        turns=turns,
        repetitions=repetitions,
        mode=wanted,
        max_seconds=max_seconds,
        cool_down_s=cool_down,
        start_below_c=start_below,
        wait_s=wait,
        engine=engine,
    )
    if json:
        print_json(several[0]) if len(several) == 1 else print_json_rows(several)
    elif len(several) == 1:
        show(several[0])
    else:
        show_several(several)


def _mode(mode: Mode | None, *, sustained: bool, turns: bool) -> Mode:
    """What the three options say together."""
    wanted = {mode} if mode else set()
    wanted |= {"sustained"} if sustained else set()
    wanted |= {"conversation"} if turns else set()
    if len(wanted) > 1:
        asked = " and ".join(sorted(wanted))
        raise UsageError("profile.mode", f"a run can't be {asked} at once", "profile twice, once each way")
    return wanted.pop() if wanted else "repetitions"
