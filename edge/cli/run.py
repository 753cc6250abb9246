"""edge run"""

import sys
import time
from pathlib import Path
from typing import Annotated

import typer

from edge.cli._output import Json, Threads, print_json


def command(
    bundle: Annotated[Path, typer.Argument(help="A bundle from `edge export`.")],
    prompt: Annotated[str | None, typer.Option("--prompt", "-p", help="Text; read from stdin when absent.")] = None,
    system: Annotated[str | None, typer.Option(help="System message for the chat template.")] = None,
    raw: Annotated[bool, typer.Option("--raw", help="Continue the text: no chat template.")] = False,
    max_tokens: Annotated[int, typer.Option("--max-tokens", "-n", min=1)] = 256,
    temperature: Annotated[float, typer.Option(help="0 is greedy.")] = 0.0,
    top_k: Annotated[int, typer.Option(help="Keep the k likeliest tokens; 0 keeps all.")] = 0,
    top_p: Annotated[float, typer.Option(help="Keep the likeliest tokens up to this probability.")] = 1.0,
    seed: int = 0,
    threads: Threads = 0,
    json: Json = False,
) -> None:
    """Generate text with a bundle, streamed; speed at the end."""
    from edge import api
    from edge.core.console import info
    from edge.core.session import Sampling, generate
    from edge.models.tokenizer import prompt_tokens, stream_text

    sampling = Sampling(temperature=temperature, top_k=top_k, top_p=top_p, seed=seed)
    model = api.load(bundle, threads=threads)
    tokens = prompt_tokens(model.tokenizer, _prompt(prompt), system=system, chat=not raw)
    stop = model.bundle.manifest.eos_token_ids
    clock = _Clock()
    stream = clock.watch(generate(model.session, tokens, max_tokens=max_tokens, stop=stop, sampling=sampling))
    pieces = []
    for piece in stream_text(model.tokenizer, stream):
        pieces.append(piece)
        if not json:
            sys.stdout.write(piece)
            sys.stdout.flush()
    model.close()
    result = {"text": "".join(pieces), "prompt_tokens": len(tokens), **clock.summary(len(tokens))}
    if json:
        print_json(result)
        return
    sys.stdout.write("\n")
    decode = result["decode_tokens_per_s"]
    speed = f"{decode:.1f} tokens/s" if decode else "too short to time"
    info(f"{len(tokens)} prompt tokens, first token after {result['ttft_ms']:.0f} ms · decode: {speed}")


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
