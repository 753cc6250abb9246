"""edge evaluate"""

from pathlib import Path
from typing import Annotated

import typer

from edge.cli._output import Json, Threads, print_json, size


def command(
    model: Annotated[str, typer.Argument(help="A bundle (runs in its runtime) or a checkpoint (runs in PyTorch).")],
    text: Annotated[Path | None, typer.Option("--text", "-t", help="UTF-8 text to score.")] = None,
    against: Annotated[str | None, typer.Option(help="The original, for KL divergence and agreement.")] = None,
    images: Annotated[Path | None, typer.Option(help="Folder with images, for a vision model.")] = None,
    audio: Annotated[Path | None, typer.Option(help="WAV file or a folder of them, for a model that hears.")] = None,
    context: Annotated[int | None, typer.Option(help="Tokens per window; 1024 or what the model holds.", min=2)] = None,
    max_bytes: Annotated[int | None, typer.Option(help="Score the beginning of the text only.", min=1)] = None,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Write the result for `edge report`.")] = None,
    threads: Threads = 0,
    json: Json = False,
) -> None:
    """Say what a model lost: perplexity, bits per byte, divergence from the original, size."""
    from edge import api
    from edge.core.files import write_json
    from edge.core.measurement import Agreement

    options = {"context_length": context, "max_bytes": max_bytes, "threads": threads}
    result = api.evaluate(model, text, against=against, images=images, audio=audio, **options)
    if output:
        write_json(output, result)
    if json:
        print_json(result)
        return
    if isinstance(result, Agreement):
        _show_agreement(result)
    else:
        _show(result)
    print(f"size              {size(result.stored_bytes)}, {result.bits_per_weight:.2f} bits per weight")


def _show_agreement(result) -> None:
    print(f"held on           {result.data}")
    print(f"relative error    {result.relative_error:.2e}")
    if result.cosine_mean is not None:
        print(f"cosine            {result.cosine_mean:.5f} mean, {result.cosine_min:.5f} smallest")
    if result.kl_divergence is not None:
        agreement = f"top-1 agreement {100 * result.top1_agreement:.1f} %"
        if result.top5_agreement is not None:
            agreement += f", top-5 {100 * result.top5_agreement:.1f} %"
        print(f"KL divergence     {result.kl_divergence:.5f} nats, {agreement}")
    if result.equal_answers is not None:
        print(f"equal answers     {result.equal_answers} of {result.samples}")


def _show(result) -> None:
    print(
        f"perplexity        {result.perplexity:.3f} per token (context {result.context_length}, {result.tokens} tokens)"
    )
    print(f"                  {result.word_perplexity:.3f} per word, {result.bits_per_byte:.4f} bits per byte")
    if result.perplexity_original is not None:
        print(f"original          {result.perplexity_original:.3f} per token")
        print(f"KL divergence     {result.kl_divergence:.5f} nats, top-1 agreement {100 * result.top1_agreement:.1f} %")
