"""ExecuTorch's trace (ETDump) as rows per operator."""

from __future__ import annotations

import json
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from edge.core.errors import EdgeError
from edge.core.session import OperatorTime

CALLS = ("OPERATOR_CALL", "DELEGATE_CALL")  # whole instructions; what lies inside them comes before
PRODUCT = "Fully Connected"
SCHEMA = "devtools/etdump/etdump_schema_flatcc.fbs"


def operator_times(trace: Path, layer_of_node: dict[str, str]) -> list[OperatorTime]:
    """Rows per instruction and per operator inside a delegate, longest first.

    `layer_of_node` names instructions: `17:edge::linear`. `17.2` is the third product inside instruction 17, where that
    is a delegate; what XNNPACK computes just before it is of its layer. The delegate's own row is what remains.
    """
    nodes = {node.partition(":")[0]: node for node in layer_of_node}
    calls: dict[tuple[str, str, str], list[int]] = {}
    for run in _read(trace)["run_data"]:
        for (node, operator, layer), ns in _times(run.get("events", ()), nodes, layer_of_node):
            calls.setdefault((node, operator, layer), []).append(ns)
    rows = [
        OperatorTime(node=node, operator=operator, layer=layer, calls=len(ns), total_ns=sum(ns))
        for (node, operator, layer), ns in calls.items()
    ]
    return sorted(rows, key=lambda row: -row.total_ns)


def _times(
    events: Sequence[Any], nodes: dict[str, str], layer_of_node: dict[str, str]
) -> Iterator[tuple[tuple[str, str, str], int]]:
    """Node, operator and layer of every call of one run, with its time."""
    inside, products = 0, 0
    for row in (event["profile_event"] for event in events if event.get("profile_event")):
        ns, place = row["end_time"] - row["start_time"], str(row["instruction_id"])
        if row.get("name") in CALLS:
            node = nodes.get(place, place)
            yield (node, node.partition(":")[2], layer_of_node.get(node, "")), max(ns - inside, 0)
            inside, products = 0, 0
        elif named := row.get("delegate_debug_id_str"):
            operator, _, _ = named.partition(" #")
            yield (f"{place}:{named}", operator, layer_of_node.get(f"{place}.{products}", "")), ns
            inside, products = inside + ns, products + (PRODUCT in operator)


def _read(trace: Path) -> Any:
    """The trace as ExecuTorch's own flatc prints it: importing its reader takes seconds."""
    spec = find_spec("executorch")
    root = Path(next(iter(spec.submodule_search_locations or ["."]))) if spec else Path()
    schema, flatc = root / SCHEMA, root / "data" / "bin" / "flatc"
    with tempfile.TemporaryDirectory() as folder:
        options = ["--json", "--strict-json", "--raw-binary", "--size-prefixed", "--defaults-json"]
        command = [str(flatc), *options, "-I", str(schema.parent), "-o", folder, str(schema), "--", str(trace)]
        try:
            subprocess.run(command, capture_output=True, check=True)
            return json.loads((Path(folder) / trace.name).with_suffix(".json").read_bytes())
        except (OSError, subprocess.CalledProcessError, ValueError) as error:
            raise EdgeError("runtime.profile", f"ExecuTorch's trace can't be read: {error}", "profile again") from error
