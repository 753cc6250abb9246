"""edge run"""

import sys
import time
from pathlib import Path
from typing import Annotated, Any

import typer

from edge.cli._forward import run_forward
from edge.cli._output import Json, Threads, print_json


def command(
    bundle: Annotated[Path, typer.Argument(help="A bundle from `edge export`.")],
    prompt: Annotated[str | None, typer.Option("--prompt", "-p", help="Text; read from stdin when absent.")] = None,
    system: Annotated[str | None, typer.Option(help="System message for the chat template.")] = None,
    audio: Annotated[Path | None, typer.Option(help="WAV file to transcribe, for a model that reads sound.")] = None,
    image: Annotated[Path | None, typer.Option(help="Image file, for a model that sees.")] = None,
    raw: Annotated[bool, typer.Option("--raw", help="Continue the text: no chat template.")] = False,
    max_tokens: Annotated[int, typer.Option("--max-tokens", "-n", min=1)] = 256,
    temperature: Annotated[float, typer.Option(help="0 is greedy.")] = 0.0,
    top_k: Annotated[int, typer.Option(help="Keep the k likeliest tokens; 0 keeps all.")] = 0,
    top_p: Annotated[float, typer.Option(help="Keep the likeliest tokens up to this probability.")] = 1.0,
    seed: int = 0,
    threads: Threads = 0,
    json: Json = False,
) -> None:
    """Run a bundle: text is generated, streamed, with its speed; an encoder or a vision model says what it sees."""
    from edge import api
    from edge.answer import EncoderDecoderModel
    from edge.core.errors import UsageError
    from edge.core.session import Sampling
    from edge.models.forward import ImageModel, TextModel

    sampling = Sampling(temperature=temperature, top_k=top_k, top_p=top_p, seed=seed)
    model = api.load(bundle, threads=threads)
    if isinstance(model, TextModel | ImageModel):
        if system is not None or raw or audio is not None:
            raise UsageError("run.option", "--system, --raw and --audio are not for this model", "leave them away")
        run_forward(model, lambda: _prompt(prompt), image, json=json)
        model.close()
        return
    if image is not None:
        raise UsageError("run.image", f"{model.bundle.manifest.name} doesn't see", "leave --image away")
    asked = None if audio is not None else (lambda: _prompt(prompt))
    if isinstance(model, EncoderDecoderModel):
        if system is not None or raw:
            raise UsageError("run.option", "--system and --raw are for chat models", "leave them away")
        result = _answer(model, asked, audio, max_tokens, sampling, show=not json)
    elif asked is None:
        name = model.bundle.manifest.name
        raise UsageError("run.audio", f"{name} reads text, not sound", "leave --audio away")
    else:
        result = _continue(model, asked(), system, raw, max_tokens, sampling, show=not json)
    model.close()
    if json:
        print_json(result)
        return
    sys.stdout.write("\n")
    _say_speed(result)


def _continue(model, prompt, system, raw, max_tokens, sampling, *, show) -> dict[str, Any]:
    """A decoder's text after a prompt."""
    from edge.core.session import generate
    from edge.models.tokenizer import prompt_tokens

    tokens = prompt_tokens(model.tokenizer, prompt, system=system, chat=not raw)
    stop = model.bundle.manifest.eos_token_ids
    clock = _Clock()
    stream = clock.watch(generate(model.session, tokens, max_tokens=max_tokens, stop=stop, sampling=sampling))
    text = _write(model.tokenizer, stream, show)
    return {"text": text, "prompt_tokens": len(tokens), **clock.summary(len(tokens))}


def _answer(model, ask, audio, max_tokens, sampling, *, show) -> dict[str, Any]:
    """An encoder-decoder's answer to a text, or its transcript of a sound file, window after window."""
    prompt = ask() if ask is not None and not model.hears else None
    clock, text, read = _Clock(), "", 0
    for source in model.sources(prompt, audio):
        read += source["input_ids"].size if "input_ids" in source else 0
        stream = clock.watch(model.answer(source, max_tokens=max_tokens, sampling=sampling))
        text += _write(model.tokenizer, stream, show)
    result = {"text": text, "prompt_tokens": read, **clock.summary(read)}
    if audio is not None:
        from edge.models.audio import RATE, read_sound

        seconds = len(read_sound(audio)) / RATE
        result |= {"audio_s": seconds, "real_time_factor": clock.elapsed_s() / seconds}
    return result


def _write(tokenizer, tokens, show: bool) -> str:
    """The text of tokens as they come, on stdout too."""
    from edge.models.tokenizer import stream_text

    pieces = []
    for piece in stream_text(tokenizer, tokens):
        pieces.append(piece)
        if show:
            sys.stdout.write(piece)
            sys.stdout.flush()
    return "".join(pieces)


def _say_speed(result: dict[str, Any]) -> None:
    from edge.core.console import info

    decode = result["decode_tokens_per_s"]
    speed = f"decode: {decode:.1f} tokens/s" if decode else "decode: too short to time"
    first = f"first token after {result['ttft_ms']:.0f} ms"
    if "audio_s" in result:
        info(
            f"{result['audio_s']:.1f} s of sound, {first} · {speed} · real-time factor {result['real_time_factor']:.3f}"
        )
    else:
        info(f"{result['prompt_tokens']} prompt tokens, {first} · {speed}")


def _prompt(given: str | None) -> str:
    if given is not None:
        return given
    if sys.stdin.isatty():
        from edge.core.console import info

        info("Type a prompt, then Ctrl-D:")
    return sys.stdin.read().strip()


class _Clock:
    """When each token came."""

    def __init__(self) -> None:
        self.start_ns = time.perf_counter_ns()
        self.arrivals_ns: list[int] = []

    def watch(self, tokens):
        for token in tokens:
            self.arrivals_ns.append(time.perf_counter_ns())
            yield token

    def elapsed_s(self) -> float:
        """From the start to the last token."""
        return ((self.arrivals_ns or [time.perf_counter_ns()])[-1] - self.start_ns) / 1e9

    def summary(self, prompt_tokens: int) -> dict[str, float | int | None]:
        first = self.arrivals_ns[0] - self.start_ns if self.arrivals_ns else time.perf_counter_ns() - self.start_ns
        decoded = len(self.arrivals_ns) - 1
        decode_ns = self.arrivals_ns[-1] - self.arrivals_ns[0] if decoded > 0 else 0
        return {
            "generated_tokens": len(self.arrivals_ns),
            "ttft_ms": first / 1e6,
            "prefill_tokens_per_s": prompt_tokens * 1e9 / first,
            "decode_tokens_per_s": decoded * 1e9 / decode_ns if decode_ns else None,
        }
