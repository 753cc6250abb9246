"""ExecuTorch's trace (ETDump) as rows per operator."""

from __future__ import annotations

import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path

import msgspec

from edge.core.errors import EdgeError, EngineMissing
from edge.core.session import OperatorTime

OPERATOR, DELEGATE = "OPERATOR_CALL", "DELEGATE_CALL"  # whole instructions; what lies inside them comes before
NATIVE = "native_call_"  # what an operator call runs
PRODUCT = "Fully Connected"
SCHEMA = "devtools/etdump/etdump_schema_flatcc.fbs"
MAGIC = b"ED00"
FLATC_S = 300


class ProfileEvent(msgspec.Struct, frozen=True):
    """A stretch of time in nanoseconds, on the engine's usual clock. What isn't named is inside a delegate."""

    start_time: int
    end_time: int
    instruction_id: int = -1
    name: str = ""
    delegate_debug_id_str: str = ""

    @property
    def ns(self) -> int:
        return self.end_time - self.start_time


class _Event(msgspec.Struct, frozen=True):
    profile_event: ProfileEvent | None = None


class _Run(msgspec.Struct, frozen=True):
    events: list[_Event] = []


class _Dump(msgspec.Struct, frozen=True):
    run_data: list[_Run]


def recognizes(head: bytes) -> bool:
    """Whether a file that begins so is an ETDump, with or without its size in front."""
    return MAGIC in (head[4:8], head[8:12])


def operator_times(trace: Path, layer_of_node: dict[str, str]) -> list[OperatorTime]:
    """Rows per instruction and per operator inside a delegate, longest first.

    `layer_of_node` names instructions: `17:edge::linear`, or `17` alone. `17.2` is the third product inside instruction
    17, where that is a delegate; what XNNPACK computes just before it is of its layer. The delegate's own row is what
    remains.
    """
    return rows(read(trace), layer_of_node)


def rows(runs: Sequence[Sequence[ProfileEvent]], layer_of_node: dict[str, str]) -> list[OperatorTime]:
    """Rows of these runs, longest first."""
    nodes = {node.partition(":")[0]: node for node in layer_of_node}
    calls: dict[tuple[str, str, str], list[int]] = {}
    for events in runs:
        for key, ns in _times(events, nodes, layer_of_node):
            calls.setdefault(key, []).append(ns)
    found = [
        OperatorTime(node=node, operator=operator, layer=layer, calls=len(ns), total_ns=sum(ns))
        for (node, operator, layer), ns in calls.items()
    ]
    return sorted(found, key=lambda row: -row.total_ns)


def _times(
    events: Sequence[ProfileEvent], nodes: dict[str, str], layer_of_node: dict[str, str]
) -> Iterator[tuple[tuple[str, str, str], int]]:
    """Node, operator and layer of every call of one run, with its time."""
    inside, products, called = 0, 0, ""
    for row in events:
        place = str(row.instruction_id)
        if row.name in (OPERATOR, DELEGATE):
            known = nodes.get(place, place)
            node = known if ":" in known else f"{place}:{called or row.name}"
            yield (node, node.partition(":")[2], layer_of_node.get(known, "")), max(row.ns - inside, 0)
            inside, products, called = 0, 0, ""
        elif named := row.delegate_debug_id_str:
            operator, _, _ = named.partition(" #")
            yield (f"{place}:{named}", operator, layer_of_node.get(f"{place}.{products}", "")), row.ns
            inside, products = inside + row.ns, products + (PRODUCT in operator)
        elif row.name.startswith(NATIVE):
            called = row.name.removeprefix(NATIVE)


def read(trace: Path) -> list[list[ProfileEvent]]:
    """The events of each run, as ExecuTorch's own flatc prints them: importing its reader takes seconds.

    Raises `EngineMissing` without ExecuTorch, `EdgeError` for a file that is damaged or no ETDump.
    """
    spec = find_spec("executorch")
    if spec is None:
        hint = "pip install 'edge-deploy[executorch]'"
        raise EngineMissing("runtime.missing", "reading an ETDump needs ExecuTorch", hint)
    root = Path(next(iter(spec.submodule_search_locations or ["."])))
    schema, flatc = root / SCHEMA, root / "data" / "bin" / "flatc"
    with tempfile.TemporaryDirectory() as folder:
        options = ["--json", "--strict-json", "--raw-binary", "--defaults-json", "-I", str(schema.parent), "-o", folder]
        try:
            with trace.open("rb") as file:
                options += ["--size-prefixed"] if file.read(12)[8:] == MAGIC else []
            subprocess.run(
                [str(flatc), *options, str(schema), "--", str(trace)], capture_output=True, check=True, timeout=FLATC_S
            )
            printed = (Path(folder) / trace.name).with_suffix(".json").read_bytes()
            runs = msgspec.json.decode(printed, type=_Dump).run_data
        except (OSError, subprocess.SubprocessError, ValueError) as error:
            why = "it is damaged" if isinstance(error, subprocess.SubprocessError) else error
            raise EdgeError("runtime.profile", f"ExecuTorch's trace can't be read: {why}", "profile again") from error
    found = [[event.profile_event for event in run.events if event.profile_event] for run in runs]
    if any(event.ns < 0 for events in found for event in events):
        raise EdgeError("runtime.profile", f"{trace} has an event that ends before it begins", "profile again")
    return found
