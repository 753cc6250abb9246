"""ONNX Runtime's profile, a JSON array of events, as rows per operator."""

from __future__ import annotations

from pathlib import Path

import msgspec

from edge.core.errors import EdgeError
from edge.core.session import OperatorTime

KERNEL = "_kernel_time"


class Arguments(msgspec.Struct, frozen=True):
    op_name: str = ""
    provider: str = ""


class Event(msgspec.Struct, frozen=True):
    """A stretch of time: `dur` microseconds from `ts` on. cat: Session, Node, Kernel or Api."""

    name: str
    cat: str
    ts: int
    dur: int = 0
    args: Arguments = Arguments()


def read(trace: Path) -> list[Event]:
    """All events. Raises `EdgeError` for a file that is no profile, or was cut off."""
    try:
        events = msgspec.json.decode(trace.read_bytes(), type=list[Event])
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        hint = "ONNX Runtime completes its profile when the session ends: profile again"
        raise EdgeError("runtime.profile", f"{trace} is no whole profile of ONNX Runtime: {error}", hint) from error
    if any(event.dur < 0 for event in events):
        raise EdgeError("runtime.profile", f"{trace} has an event that ends before it begins", "profile again")
    return events


def operator_times(trace: Path, layer_of_node: dict[str, str]) -> list[OperatorTime]:
    """Rows per node, longest first."""
    return rows(read(trace), layer_of_node)


def rows(events: list[Event], layer_of_node: dict[str, str]) -> list[OperatorTime]:
    """Rows per node of these events, longest first."""
    calls: dict[tuple[str, str], list[int]] = {}
    for event in events:
        if event.cat == "Node" and event.name.endswith(KERNEL):
            key = (event.name.removesuffix(KERNEL), event.args.op_name)
            calls.setdefault(key, []).append(1000 * event.dur)
    found = [
        OperatorTime(node=node, operator=operator, layer=layer_of_node.get(node, ""), calls=len(ns), total_ns=sum(ns))
        for (node, operator), ns in calls.items()
    ]
    return sorted(found, key=lambda row: -row.total_ns)
