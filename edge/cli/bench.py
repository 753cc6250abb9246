"""edge bench kernels, edge bench peers, edge bench edkm"""

from pathlib import Path
from typing import Annotated

import typer

from edge.cli._output import print_json_rows, print_table, size

Rows = Annotated[bool, typer.Option("--json", help="Print a JSON array on stdout, one object a line and row.")]
Output = Annotated[Path | None, typer.Option("--output", "-o", help="Write everything as JSON, raw samples included.")]
ThreadCounts = Annotated[str, typer.Option("--threads", help="Thread counts, like 1,2.")]


def kernels(
    pattern: Annotated[str, typer.Option("--filter", help="Rows by name, like 'affine4*_m1_*'.")] = "*",
    threads: ThreadCounts = "1,2",
    peers: Annotated[bool, typer.Option(help="Run other libraries on the same shapes.")] = True,
    seconds: Annotated[float, typer.Option(help="Timing of each shape and thread count.", min=0.0)] = 8.0,
    quick: Annotated[bool, typer.Option("--quick", help="Few samples and little memory: a try, not a result.")] = False,
    output: Output = None,
    json: Rows = False,
) -> None:
    """Time the kernels with cold weights, beside other libraries and the machine's own limits.

    Rows of one shape take turns in one process. Compare within one run only.
    """
    from edge.core.files import write_json
    from edge.profiles.peers.matmul import COLD_BYTES, run
    from edge.profiles.peers.matmul.cases import select
    from edge.profiles.statistics import summarize

    cold_bytes, seconds = (run.QUICK_COLD_BYTES, run.QUICK_SECONDS) if quick else (COLD_BYTES, seconds)
    result = run.bench(select(pattern, _counts(threads)), peers=peers, seconds=seconds, cold_bytes=cold_bytes)
    if output:
        write_json(output, result)
    if json:
        print_json_rows(result.rows)
        return
    for where, probes in result.probes.items():
        read, int8 = summarize(probes.read_gb_per_s), summarize(probes.int8_gops)
        limits = f"read {read.median:.1f} GB/s ({read.min:.1f} to {read.max:.1f})"
        print(f"{where}: {limits}, int8 {int8.median:.0f} GOPS")
    columns = ("row", "kernel", "us, median (min to max)", "GB/s", "of read", "GOPS", "of int8", "best peer")
    print_table(columns, [_kernel_cells(row) for row in result.rows])


def peers(
    model: Annotated[
        str, typer.Option(help="smollm2, synthetic-587m (random weights), or a folder, a GGUF or a hub id.")
    ] = "smollm2",
    pattern: Annotated[str, typer.Option("--filter", help="Engines and formats, like 'edge*' or '*Q4*'.")] = "*",
    threads: ThreadCounts = "1,2",
    prompt_tokens: Annotated[int, typer.Option(min=1, max=900)] = 512,
    generated_tokens: Annotated[int, typer.Option(min=1, max=100)] = 64,
    rounds: Annotated[int, typer.Option(help="Turns of each engine that count; one more warms up.", min=1)] = 7,
    output: Output = None,
    json: Rows = False,
) -> None:
    """Time whole models in llama.cpp, onnxruntime-genai and edge, in turns, with ratios to the best peer.

    What the engines need (GGUF files, bundles) is made on first use and kept in the cache.
    """
    from edge.core.files import write_json
    from edge.profiles.peers.engines import run

    protocol = run.Protocol(prompt_tokens, generated_tokens, rounds)
    result = run.bench(model, threads=_counts(threads), pattern=pattern, protocol=protocol)
    if output:
        write_json(output, result)
    if json:
        print_json_rows(result.rows)
        return
    columns = ("engine, format", "threads", "size", "prefill tokens/s", "to best", "decode tokens/s", "to best peer")
    print_table(columns, [_peer_cells(row) for row in result.rows])


def edkm(
    scale: Annotated[int, typer.Option(help="Divides the widths of LLaMA-7B; 1 has them in full.", min=1, max=64)] = 8,
    bits: Annotated[int, typer.Option(help="Of a cluster's index.", min=1, max=8)] = 3,
    learners: Annotated[int, typer.Option(help="Processes that share what is sharded.", min=2, max=64)] = 8,
    device: Annotated[str, typer.Option(help="cpu, cuda, or auto: cuda where there is one.")] = "auto",
    json: Rows = False,
) -> None:
    """Measure the memory that training a decoder layer's clusters takes: DKM beside the parts of eDKM.

    Bytes are counted where autograd saves tensors for the backward pass, each copied like one offloaded from a GPU.
    """
    from edge.compress.clustering import memory
    from edge.core.console import progress

    with progress("clustering a layer", len(memory.VARIANTS)) as done:
        rows = memory.bench(scale, bits, learners, memory.device(device), done)
    if json:
        print_json_rows(rows)
        return
    kept_once = next(row.saved_bytes for row in rows if row.variant == "marshaling")
    columns = ("variant", "saved", "bytes a weight", "less than DKM", "than DKM without copies")
    print_table(columns, [_edkm_cells(row, kept_once) for row in rows])
    first = rows[0]
    print(f"{first.rows} x {first.columns} weights, {bits} bits; of each of {learners} processes where it shards")
    print("in place: 16-bit weights, which live on anyway, are the index themselves")


def _edkm_cells(row, kept_once: int) -> tuple[str, ...]:
    a_weight = row.saved_bytes / (row.rows * row.columns)
    ratios = (f"{ratio:,.1f}x" for ratio in (row.ratio_to_dkm, kept_once / row.saved_bytes))
    return row.variant, size(row.saved_bytes), f"{a_weight:.2f}", *ratios


def _peer_cells(row) -> tuple[str, ...]:
    prefill = (row.prefill_tokens_per_s, row.prefill_tokens_per_s_min, row.prefill_tokens_per_s_max)
    decode = (row.decode_tokens_per_s, row.decode_tokens_per_s_min, row.decode_tokens_per_s_max)
    return (
        f"{row.engine} {row.format}",
        str(row.threads),
        size(row.stored_bytes),
        "{:.0f} ({:.0f} to {:.0f})".format(*prefill),
        "" if row.best_prefill_peer is None else f"{row.prefill_ratio_to_best_peer:.2f}x",
        "{:.1f} ({:.1f} to {:.1f})".format(*decode),
        "" if row.best_peer is None else f"{row.ratio_to_best_peer:.2f}x {row.best_peer}",
    )


def _kernel_cells(row) -> tuple[str, ...]:
    peak, best = row.share_of_int8_peak, row.best_peer
    return (
        row.name,
        row.kernel,
        f"{row.median_us:.1f} ({row.min_us:.1f} to {row.max_us:.1f})",
        f"{row.gb_per_s:.1f}",
        f"{row.share_of_read_bandwidth:.0%}",
        f"{row.gops:.0f}",
        "" if peak is None else f"{peak:.0%}",
        "" if best is None else f"{row.ratio_to_best_peer:.2f}x {best}",
    )


def _counts(text: str) -> list[int]:
    """Thread counts from "1,2"."""
    from edge.core.errors import UsageError

    counts = [int(part) if part.strip().isdigit() else 0 for part in text.split(",")]
    if min(counts) < 1:
        raise UsageError("bench.threads", f"'{text}' is no list of thread counts", "--threads 1,2")
    return sorted(set(counts))
