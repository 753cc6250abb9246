"""ExecuTorch's trace (ETDump) as rows per operator."""

from __future__ import annotations

import json
import subprocess
import tempfile
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from edge.core.errors import EdgeError
from edge.core.session import OperatorTime

CALLS = ("OPERATOR_CALL", "DELEGATE_CALL")  # whole instructions; what else is logged lies inside them
SCHEMA = "devtools/etdump/etdump_schema_flatcc.fbs"


def operator_times(trace: Path, layer_of_node: dict[str, str]) -> list[OperatorTime]:
    """Rows per instruction, longest first. `layer_of_node` names instructions: `17:edge::linear`."""
    nodes = {int(node.partition(":")[0]): node for node in layer_of_node}
    calls: dict[int, list[int]] = {}
    for run in _read(trace)["run_data"]:
        for event in run.get("events", ()):
            row = event.get("profile_event")
            if row and row.get("name") in CALLS:
                calls.setdefault(row["instruction_id"], []).append(row["end_time"] - row["start_time"])
    rows = []
    for instruction, ns in calls.items():
        node = nodes.get(instruction, str(instruction))
        operator, layer = node.partition(":")[2], layer_of_node.get(node, "")
        rows.append(OperatorTime(node=node, operator=operator, layer=layer, calls=len(ns), total_ns=sum(ns)))
    return sorted(rows, key=lambda row: -row.total_ns)


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
