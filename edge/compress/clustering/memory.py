"""What autograd keeps to cluster the weights of one decoder layer: DKM beside the parts of eDKM (its paper's table 2).

The bytes are counted where they are kept, in the hooks that autograd calls for each tensor that it saves, during a real
forward pass over a LLaMA-7B layer's matrices or their scaled copies. Each saved tensor is copied, as when it is
offloaded from a GPU to CPU memory: the paper's baseline. What is not copied torch keeps once, which makes DKM's bytes
those of `marshaling`. Shares of learners are counted in as many gloo processes.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from edge.compress.clustering.saved_tensors import SavedTensors
from edge.compress.clustering.soft import soft_assign
from edge.compress.clustering.uniquify import soft_assign_unique
from edge.core.errors import EdgeError, UsageError

WIDTH, INNER_WIDTH = 4096, 11008  # of LLaMA-7B
ITERATIONS = 3
SHARD_BYTES = 1024  # so that small copies of the layer are sharded where the layer itself is


@dataclass(frozen=True)
class Row:
    """rows, columns: of the layer's matrices side by side. saved_bytes: by one learner, for all of them."""

    variant: str
    rows: int
    columns: int
    bits: int
    saved_bytes: int
    ratio_to_dkm: float


@dataclass(frozen=True)
class Variant:
    """How a layer is clustered and what is saved. resident: the 16-bit weights live on anyway, and are not counted."""

    name: str
    assign: Callable[..., Any]
    marshal: bool = False
    shard: bool = False
    resident: bool = False


VARIANTS = (
    Variant("dkm", soft_assign),
    Variant("marshaling", soft_assign, marshal=True),
    Variant("uniquification", soft_assign_unique),
    Variant("sharding", soft_assign, shard=True),
    Variant("marshaling+uniquification", soft_assign_unique, marshal=True),
    Variant("all", soft_assign_unique, marshal=True, shard=True),
    Variant("uniquification in place", soft_assign_unique, resident=True),
)


def bench(
    scale: int = 8, bits: int = 3, learners: int = 8, device: str = "cpu", done: Callable[[int], None] = lambda _: None
) -> list[Row]:
    """A row for each variant. scale: the layer's widths are LLaMA-7B's divided by it. done: hears of variants done.

    Raises `EdgeError` if a learner fails.
    """
    saved = {}
    for variant in (v for v in VARIANTS if not v.shard):
        saved[variant.name] = saved_bytes(variant, scale, bits, device)
        done(1)
    saved |= _with_learners(scale, bits, learners, device)
    done(sum(v.shard for v in VARIANTS))
    matrices = shapes(scale)
    columns = min(matrices[0])
    rows = sum(r * c for r, c in matrices) // columns
    dkm = saved["dkm"]
    return [Row(v.name, rows, columns, bits, saved[v.name], dkm / saved[v.name]) for v in VARIANTS]


def device(name: str) -> str:
    """`auto` is the CUDA device where there is one. Raises `UsageError` for a device that isn't there."""
    there = ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"]
    if name not in ("auto", *there):
        raise UsageError("edkm.device", f"there is no device '{name}'", f"use {' or '.join(there)}")
    return there[-1] if name == "auto" else name


def shapes(scale: int) -> list[tuple[int, int]]:
    """[rows, columns] of the matrices of a decoder layer: query, key, value, output, gate, up, down."""
    width, inner = WIDTH // scale, INNER_WIDTH // scale
    return [(width, width)] * 4 + [(inner, width)] * 2 + [(width, inner)]


def saved_bytes(variant: Variant, scale: int, bits: int, device: str) -> int:
    """Kept after the forward pass, summed over the matrices: one at a time, as they share nothing."""
    total = 0
    for rows, columns in shapes(scale):
        weight = torch.empty(rows, columns, dtype=torch.bfloat16, device=device)
        weight.normal_(std=0.02, generator=torch.Generator(device).manual_seed(0)).requires_grad_()
        spread = torch.linspace(-0.04, 0.04, 2**bits, device=device, dtype=torch.bfloat16).reshape(1, -1, 1)
        temperature = float(spread[0, 1, 0] - spread[0, 0, 0]) ** 2
        resident = [weight] if variant.resident else []
        options = {"marshal": variant.marshal, "shard": variant.shard, "shard_bytes": SHARD_BYTES, "resident": resident}
        with SavedTensors(offload=True, **options) as saved:
            # a tolerance of 0: all iterations take place, as they do while a training moves weights
            kept = variant.assign(weight.view(1, -1, 1), spread, temperature, iterations=ITERATIONS, tolerance=0.0)
        total += saved.saved_bytes
        del kept
    return total


def _with_learners(scale: int, bits: int, learners: int, device: str) -> dict[str, int]:
    """Bytes by name of the sharded variants: of the learner that keeps the most."""
    with tempfile.TemporaryDirectory() as folder:
        try:
            torch.multiprocessing.spawn(_learner, (learners, folder, scale, bits, device), nprocs=learners)
        except torch.multiprocessing.ProcessException as error:
            message = f"a learner failed: {str(error).strip().splitlines()[-1]}"
            raise EdgeError("edkm.learner", message, "use fewer learners, or a larger scale") from error
        lines = (Path(folder) / "bytes").read_text().splitlines()
    return {name: int(count) for name, count in (line.split("=") for line in lines)}


def _learner(rank: int, learners: int, folder: str, scale: int, bits: int, device: str) -> None:
    torch.set_num_threads(max(1, (os.cpu_count() or 1) // learners))
    meeting = f"file://{folder}/meeting"
    dist.init_process_group("gloo", init_method=meeting, rank=rank, world_size=learners)
    sharded = [variant for variant in VARIANTS if variant.shard]
    counts = torch.tensor([saved_bytes(variant, scale, bits, device) for variant in sharded])
    dist.all_reduce(counts, dist.ReduceOp.MAX)
    if rank == 0:
        lines = [f"{v.name}={count}" for v, count in zip(sharded, counts.tolist(), strict=True)]
        (Path(folder) / "bytes").write_text("\n".join(lines))
    dist.destroy_process_group()
