"""edge export"""

from pathlib import Path
from typing import Annotated

import typer

from edge.cli._output import Force, Json, print_json, size
from edge.core.target import KvCacheType


def command(
    model: Annotated[str, typer.Argument(help="A compressed folder, or any checkpoint for float32.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Bundle folder to write.")],
    target: Annotated[str, typer.Option(help="Platform: `edge targets`.")] = "cpu",
    runtime: Annotated[str, typer.Option(help="Engine: onnx, executorch or gguf (llama.cpp).")] = "onnx",
    kernels: Annotated[str, typer.Option(help="`edge` for ours, `builtin` for a stock runtime.")] = "edge",
    context: Annotated[int | None, typer.Option(help="Tokens that the caches hold; at most 2048 by default.")] = None,
    kv_cache: Annotated[
        KvCacheType | None,
        typer.Option(help="How they do it: by default as compressed for, else float16 (builtin: float32)."),
    ] = None,
    force: Force = False,
    json: Json = False,
) -> None:
    """Write a bundle for a device, held against PyTorch before it takes its name."""
    from edge import api
    from edge.core.errors import UsageError, nearest

    if kernels not in ("edge", "builtin"):
        raise UsageError("export.kernels", f"no kernels are called '{kernels}'", nearest(kernels, ("edge", "builtin")))
    bundle = api.export(
        model,
        output,
        target=target,
        runtime=runtime,
        kernels=kernels,
        context_length=context,
        kv_cache=kv_cache,
        force=force,
    )
    manifest = bundle.manifest
    if json:
        print_json({"output": str(bundle.path), "sha256": bundle.hash, "manifest": manifest})
        return
    print(f"{bundle.path}: {size(manifest.stored_bytes)}, {manifest.bits_per_weight:.2f} bits per weight")
    if manifest.gates:
        gates = manifest.gates
        if gates.kl_divergence_mean is not None:
            print(f"parity: KL divergence {gates.kl_divergence_mean:.2e} (limit {gates.kl_divergence_limit:.0e})")
        if gates.relative_error is not None:
            print(f"parity: relative error {gates.relative_error:.2e} (limit {gates.relative_error_limit:.0e})")
        print(f"slow operators: {', '.join(gates.slow_nodes) or 'none'}")
    for note in manifest.notes:
        print(f"note: {note}")
