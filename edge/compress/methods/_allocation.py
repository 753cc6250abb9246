"""What an allocation is held to, and what it says of itself."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from rich.table import Table

from edge.compress.method import Task
from edge.compress.methods._latency import KernelTimes
from edge.compress.methods._trial import Outcome
from edge.compress.planning import PlanRequest
from edge.core.console import console, info
from edge.core.errors import UsageError
from edge.core.weight import Dense
from edge.models.checkpoint import Checkpoint


@dataclass(frozen=True)
class Budget:
    """`limit` on the whole model, of which `fixed` is taken by what isn't planned for: bytes, or nanoseconds a token
    of all matrix products if `times` are given. `asked` is the option that the limit comes from, and its value.
    """

    limit: int
    fixed: int
    asked: tuple[str, float]
    times: KernelTimes | None = None

    def weight(self, checkpoint: Checkpoint, name: str, outcome: Outcome) -> int:
        """What a tensor takes of it by a choice."""
        if self.times is None:
            return outcome.stored_bytes
        if name == lookup_only(checkpoint):
            return 0
        return self.times.nanoseconds(outcome.encoding, outcome.stored_bytes, checkpoint.matrix_shape(name))

    def in_its_unit(self, amount: int, checkpoint: Checkpoint) -> float:
        """Bytes or nanoseconds as the option counts them, rounded up to four digits after the point."""
        unit = {"bits_per_weight": checkpoint.parameters / 8, "size_mb": 1e6, "latency_ms": 1e6}[self.asked[0]]
        return -(-amount * 10_000 // unit) / 10_000

    def too_small(self, smallest: int, checkpoint: Checkpoint) -> UsageError:
        """The error for a limit that the smallest choices exceed."""
        option, value = self.asked
        least = self.in_its_unit(self.fixed + smallest, checkpoint)
        message = f"{option} = {value:g} can't be kept: the smallest choices need {least:g}"
        return UsageError("allocate.budget", message, f"give {option} = {least:g} or more, or add smaller choices")


def lookup_only(checkpoint: Checkpoint) -> str | None:
    """An embedding that isn't the head as well: a token reads one row of it."""
    spec = checkpoint.spec
    return None if spec.tied_copies else next((name for name, kind in spec.matrices() if kind == "embedding"), None)


def fixed_bytes(request: PlanRequest) -> int:
    """Bytes on disk of all tensors that the plan is not for."""
    checkpoint, total = request.checkpoint, 0
    for name in checkpoint.names():
        if name in request.tasks:
            continue
        if name in request.others:
            total += _form(request, name)[1]
        else:
            tensor = checkpoint.tensor(name)
            # What a preparation folds scales into, norms and biases, is written as float32.
            total += tensor.numel() * (4 if tensor.dim() == 1 else tensor.element_size())
        checkpoint.release()
    return total


def fixed_nanoseconds(request: PlanRequest, times: KernelTimes) -> int:
    """Time of the products with matrices that the plan is not for."""
    checkpoint, total = request.checkpoint, 0
    for name, _ in checkpoint.spec.matrices():
        if name in request.tasks or name == lookup_only(checkpoint):
            continue
        total += times.nanoseconds(*_form(request, name), checkpoint.matrix_shape(name))
    return total


def encoded_bytes(encoding: Any, shape: tuple[int, int]) -> int:
    """What a matrix [rows, columns] takes on disk in an encoding."""
    return sum(part.packed().nbytes for part in encoding.compact_layout(*shape).values())


def _form(request: PlanRequest, name: str) -> tuple[Any, int]:
    """Encoding and bytes of a matrix that the plan is not for."""
    shape, task = request.checkpoint.matrix_shape(name), request.others.get(name)
    if task is None:
        encoding: Any = Dense("float32")
    elif not task.method.CALIBRATED:  # it may choose the encoding by the weights, and takes seconds
        weight = torch.from_numpy(request.checkpoint.matrix(name).dequantize())
        tensor = task.run(name, weight, None)
        return tensor.encoding, tensor.stored_bytes
    else:
        encoding = task.options.encoding
    return encoding, encoded_bytes(encoding, shape)


def show(
    checkpoint: Checkpoint, budget: Budget, chosen: Mapping[str, tuple[Task, Outcome]], sensitivity: str
) -> dict[str, Any]:
    """Print a table of matrix kinds and what they are given, and return the same and more for the artefact."""
    counts: defaultdict[str, Counter[str]] = defaultdict(Counter)
    weights: Counter[str] = Counter()
    stored: Counter[str] = Counter()
    divergence: Counter[str] = Counter()
    for name, (task, outcome) in chosen.items():
        kind = name.removesuffix(".weight").rpartition(".")[2]
        rows, columns = checkpoint.matrix_shape(name)
        counts[kind][_label(task, outcome)] += 1
        weights[kind] += rows * columns
        stored[kind] += outcome.stored_bytes
        divergence[kind] += outcome.divergence  # type: ignore[assignment]
    labels = _by_size(chosen)
    table = Table(box=None, header_style="bold")
    for index, column in enumerate(("matrices", *labels, "bits per weight", "predicted KL, nats")):
        table.add_column(column, overflow="fold", no_wrap=index == 0)
    for kind, given in counts.items():
        bits = f"{8 * stored[kind] / weights[kind]:.2f}"
        table.add_row(kind, *(str(given[label] or "") for label in labels), bits, f"{divergence[kind]:.4f}")
    console.print(table)
    used = budget.fixed + sum(budget.weight(checkpoint, name, outcome) for name, (_, outcome) in chosen.items())
    total = sum(outcome.divergence for _, outcome in chosen.values())
    option, value = budget.asked
    used_in_unit = budget.in_its_unit(used, checkpoint)
    info(
        f"Predicted: KL divergence {total:.4f} nats per token by {sensitivity}, {option} {used_in_unit:g} of {value:g}"
    )
    if budget.times is not None and budget.times.by_bandwidth:
        encodings = ", ".join(sorted(budget.times.by_bandwidth))
        info(f"No kernel was measured for {encodings}: bytes at {budget.times.gb_per_s:.1f} GB/s")
    return {
        "budget": {option: value},
        "used": {option: used_in_unit},
        "sensitivity": sensitivity,
        "predicted_divergence_nats": total,
        "tensors": {name: {"divergence_nats": outcome.divergence} for name, (_, outcome) in chosen.items()},
    }


def _label(task: Task, outcome: Outcome) -> str:
    return f"{task.resolved.method} {outcome.encoding}"


def _by_size(chosen: Mapping[str, tuple[Task, Outcome]]) -> Sequence[str]:
    """Labels of what was given, those that take least of a weight first."""
    sizes = {_label(task, outcome): outcome.stored_bytes for task, outcome in chosen.values()}
    return sorted(sizes, key=lambda label: (label.partition(" ")[2], label))
