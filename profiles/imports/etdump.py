"""ExecuTorch's ETDump: time per operator, of loading and of every run; with its ETRecord, by layer."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from zipfile import BadZipFile, ZipFile

import msgspec

from edge.core.errors import EdgeError, UsageError
from edge.core.measurement import Measurement, Protocol, Repetition
from edge.profiles.imports import imported
from edge.runtimes import _etdump

DESCRIPTION = "ExecuTorch's ETDump (*.etdp), with its ETRecord or without"
LOAD, RUN = "Program::load_method", "Method::execute"
METHOD = "forward"
IDENTIFIER, HANDLES, GRAPHS = "ETRECORD_V0", "debug_handle_map", "edge_dialect_exported_program"
MOST_BYTES = 1 << 30  # of a member of the ETRecord, unpacked
NOTE = (
    "from an ETDump: its runs were timed with the tracer on, which slows them, warm-ups count among them, its ticks "
    "are taken for nanoseconds, and what each run read or made is not told; nor are the device, memory and energy"
)


def recognizes(head: bytes) -> bool:
    return _etdump.recognizes(head)


def read(path: Path, record: Path | None) -> list[Measurement]:
    """One measurement, each execution of the method a repetition of one call."""
    runs = _etdump.read(path)
    rows = _etdump.rows(runs, {} if record is None else layers(record))
    events = [event for run in runs for event in run]
    times = [event.ns for event in events if event.name == RUN]
    if not times and not rows:
        raise UsageError("import.empty", f"{path} has no run of the model", "run the model before the dump is written")
    return [
        imported(
            path,
            Protocol(0, 0, 0, len(times), 0),
            NOTE,
            runtime="executorch",
            load_ns=sum(event.ns for event in events if event.name == LOAD),
            repetitions=[Repetition(0, max(ns, 1), [], 0, []) for ns in times],
            operators=rows,
        )
    ]


class _Node(msgspec.Struct, frozen=True):
    metadata: dict[str, str] = {}


class _Graph(msgspec.Struct, frozen=True):
    nodes: list[_Node]


class _Module(msgspec.Struct, frozen=True):
    graph: _Graph


class _Program(msgspec.Struct, frozen=True):
    graph_module: _Module


def layers(record: Path) -> dict[str, str]:
    """The innermost module of each instruction of the method `forward`, by the instruction's number.

    An instruction that is made of several modules, such as a delegate, has none. Only the record's JSON is read, none
    of its tensors. Raises `EdgeError` for a file that is damaged or no ETRecord.
    """
    try:
        with ZipFile(record) as archive:
            names = set(archive.namelist())
            if IDENTIFIER not in names:
                raise EdgeError("import.record", f"{record} is no ETRecord", "give what `ETRecord.save` wrote")
            handles = msgspec.json.decode(_member(archive, HANDLES), type=dict[str, dict[str, int | list[int]]])
            graph = next(name for name in (f"{GRAPHS}/{METHOD}", GRAPHS) if name in names)
            program = msgspec.json.decode(_member(archive, graph), type=_Program)
    except (BadZipFile, OSError, KeyError, StopIteration, msgspec.DecodeError, RecursionError) as error:
        raise EdgeError("import.record", f"{record} can't be read: {error}", "write the ETRecord again") from error
    modules = dict(_modules(program.graph_module.graph))
    found = {}
    for instruction, handle in handles.get(METHOD, {}).items():
        inside = {modules.get(one, "") for one in (handle if isinstance(handle, list) else [handle])}
        if len(inside) == 1:
            found[instruction] = inside.pop()
    return found


def _modules(graph: _Graph) -> Iterator[tuple[int, str]]:
    """Debug handle and module of every node: `nn_module_stack` is `key,path,type;..`, outermost first."""
    for node in graph.nodes:
        handle, stack = node.metadata.get("debug_handle", ""), node.metadata.get("nn_module_stack", "")
        if handle.isdigit() and stack:
            parts = stack.rpartition(";")[2].split(",")
            yield int(handle), parts[1] if len(parts) > 1 else ""


def _member(archive: ZipFile, name: str) -> bytes:
    if archive.getinfo(name).file_size > MOST_BYTES:
        raise EdgeError("import.record", f"{name} in the ETRecord is too large", "write the ETRecord again")
    return archive.read(name)
