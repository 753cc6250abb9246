"""Where the time of a decode step goes: rows of a profiled run, grouped."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from edge.core.session import OperatorTime

# `model.layers.7.mlp.down_proj` and `transformer.h.7.mlp.c_proj`: what comes after the layer's number says its kind.
_LAYER = re.compile(r"^(?:.*?\.)?\d+(?:\.|$)")


@dataclass(frozen=True)
class Share:
    """Time of a group of operators. `step_ns` is per decode step, `share` of the whole step (0 to 1)."""

    name: str
    calls: int
    total_ns: int
    step_ns: float
    share: float


def by_operator(rows: Sequence[OperatorTime]) -> list[Share]:
    """Grouped by the runtime's operator type, slowest first."""
    return _group(rows, lambda row: row.operator)


def by_kind(rows: Sequence[OperatorTime]) -> list[Share]:
    """Grouped by what a layer is, over all layers (`mlp.down_proj`); by operator type where no layer is known."""
    return _group(rows, kind)


def by_layer(rows: Sequence[OperatorTime]) -> list[Share]:
    """Grouped by the model's own layer names; by operator type where no layer is known."""
    return _group(rows, lambda row: row.layer or row.operator)


def steps(rows: Sequence[OperatorTime]) -> int:
    """Decode steps in the profiled run: every operator of the graph runs once in each."""
    return max((row.calls for row in rows), default=0)


def kind(row: OperatorTime) -> str:
    """`mlp.down_proj` for every layer's; the last part of the name outside of layers (`lm_head`)."""
    if not row.layer:
        return row.operator
    inner = _LAYER.sub("", row.layer)
    if not inner:
        return row.operator
    return inner if inner != row.layer else row.layer.rpartition(".")[2]


def _group(rows: Sequence[OperatorTime], key: Callable[[OperatorTime], str]) -> list[Share]:
    groups: dict[str, list[OperatorTime]] = defaultdict(list)
    for row in rows:
        groups[key(row)].append(row)
    whole = sum(row.total_ns for row in rows) or 1
    count = steps(rows) or 1
    shares = []
    for name, members in groups.items():
        total = sum(row.total_ns for row in members)
        shares.append(Share(name, sum(row.calls for row in members), total, total / count, total / whole))
    return sorted(shares, key=lambda share: (-share.total_ns, share.name))
