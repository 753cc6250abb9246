"""Perfetto's trace format, as far as edge writes it: tracks, slices, counters.

All packets are of one sequence, whose incremental state begins with the first. Names are written out, so that any
packet can be read by itself. Times are those of the run, counted from `START_NS` of the trace's own clock.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from edge.core.errors import EdgeError

START_NS = 1_000_000_000  # a timestamp of 0 counts as none
SEQUENCE = 1
STATE_CLEARED, STATE_NEEDED = 1, 2
REALTIME, MONOTONIC, BOOTTIME = 1, 3, 6
CATEGORY = "edge"
Arguments = Mapping[str, str | int | float | bool]


@dataclass(frozen=True)
class Slice:
    """A stretch of time on a track. Nested ones lie inside each other."""

    name: str
    start_ns: int
    end_ns: int
    arguments: Arguments = field(default_factory=dict)


@dataclass(frozen=True)
class Unit:
    """A counter's unit, and what a value is multiplied by to be in it. Empty `name`: the format's own for bytes."""

    name: str
    factor: float = 1.0


def protobufs() -> Any:
    """The generated messages. Raises `EdgeError` without the package."""
    try:
        from perfetto.protos.perfetto.trace import perfetto_trace_pb2
    except ImportError as error:
        hint = "pip install 'edge-deploy[trace]'"
        raise EdgeError("trace.package", "a Perfetto trace needs the package perfetto", hint) from error
    return perfetto_trace_pb2


class Writer:
    """Collects tracks and events; `data` is the file."""

    def __init__(self) -> None:
        self._pb = protobufs()
        self._tracks: list[Any] = []
        self._events: list[Any] = []
        self._uuids: set[int] = set()
        self._ranks: dict[int, int] = {}

    def track(self, name: str, parent: int = 0, *, unit: Unit | None = None, about: str = "", axis: str = "") -> int:
        """A track under `parent`, below those that it has already. axis: counters with the same share their scale."""
        descriptor = self._pb.TrackDescriptor()
        descriptor.uuid = uuid = self._uuid(parent, name)
        descriptor.name = name
        descriptor.child_ordering = descriptor.EXPLICIT
        descriptor.sibling_order_rank = self._ranks[parent] = self._ranks.get(parent, 0) + 1
        descriptor.sibling_merge_behavior = descriptor.SIBLING_MERGE_BEHAVIOR_NONE
        if parent:
            descriptor.parent_uuid = parent
        if about:
            descriptor.description = about
        if unit is not None:
            descriptor.counter.unit = 0 if unit.name else descriptor.counter.UNIT_SIZE_BYTES
            descriptor.counter.unit_name = unit.name
            if axis:
                descriptor.counter.y_axis_share_key = axis
        packet = self._pb.TracePacket(track_descriptor=descriptor)
        self._tracks.append(packet)
        return uuid

    def slices(self, name: str, parent: int, found: Iterable[Slice], *, about: str = "") -> None:
        """Slices on a track of this name, and on more where they overlap without lying inside each other."""
        for i, lane in enumerate(lanes(found)):
            uuid = self.track(f"{name} {i + 1}" if i else name, parent, about=about)
            for time_ns, one in lane:
                self._events.append(self._begin(uuid, time_ns, one) if one else self._event(uuid, time_ns, "SLICE_END"))

    def counter(self, name: str, parent: int, times: Sequence[int], values: Sequence[float], unit: Unit, *,
                axis: str = "", about: str = "") -> None:  # fmt: skip
        """A counter keeps its value until the next: of equal ones the first is written, and the last of all."""
        uuid = self.track(name, parent, unit=unit, axis=axis, about=about)
        for i, (time_ns, value) in enumerate(zip(times, values, strict=True)):
            if 0 < i < len(values) - 1 and value == values[i - 1]:
                continue
            packet = self._event(uuid, time_ns, "COUNTER")
            packet.track_event.double_counter_value = value * unit.factor
            self._events.append(packet)

    def system(self, fields: Mapping[str, str | int], kernel: Mapping[str, str]) -> None:
        """What is known of the device, in the places that tools look at."""
        packet = self._pb.TracePacket()
        for name, value in fields.items():
            setattr(packet.system_info, name, value)
        for name, value in kernel.items():
            setattr(packet.system_info.utsname, name, value)
        self._tracks.append(packet)

    def data(self, *, began_ns: int | None = None) -> bytes:
        """The whole file. began_ns: the time of day when the run began, in nanoseconds since 1970."""
        first = self._pb.TracePacket(timestamp=START_NS)
        for clock, value in ((BOOTTIME, START_NS), (MONOTONIC, START_NS), (REALTIME, began_ns)):
            if value is not None:
                first.clock_snapshot.clocks.add(clock_id=clock, timestamp=value)
        first.clock_snapshot.primary_trace_clock = BOOTTIME
        # sorted() keeps the order of what happens at one time, so a slice ends before the next one begins
        packets = [first, *self._tracks, *sorted(self._events, key=lambda packet: packet.timestamp)]
        for i, packet in enumerate(packets):
            packet.trusted_packet_sequence_id = SEQUENCE
            packet.sequence_flags = STATE_NEEDED if i else STATE_CLEARED
        packets[0].first_packet_on_sequence = True
        return self._pb.Trace(packet=packets).SerializeToString(deterministic=True)

    def _uuid(self, parent: int, name: str) -> int:
        """The same for the same place in the tree; never one twice."""
        for again in range(1000):
            digest = hashlib.sha256(f"{parent}/{name}/{again}".encode()).digest()
            uuid = int.from_bytes(digest[:8], "little") >> 1 or 1
            if uuid not in self._uuids:
                self._uuids.add(uuid)
                return uuid
        raise EdgeError("trace.tracks", f"a thousand tracks are called '{name}'")

    def _event(self, track: int, time_ns: int, kind: str) -> Any:
        packet = self._pb.TracePacket(timestamp=START_NS + max(time_ns, 0))
        packet.track_event.track_uuid = track
        packet.track_event.type = getattr(self._pb.TrackEvent, f"TYPE_{kind}")
        return packet

    def _begin(self, track: int, time_ns: int, one: Slice) -> Any:
        packet = self._event(track, time_ns, "SLICE_BEGIN")
        packet.track_event.name = one.name
        packet.track_event.categories.append(CATEGORY)
        for name, value in one.arguments.items():
            annotation = packet.track_event.debug_annotations.add(name=name)
            kind = {bool: "bool_value", int: "int_value", float: "double_value"}.get(type(value), "string_value")
            setattr(annotation, kind, value)
        return packet


def lanes(found: Iterable[Slice]) -> list[list[tuple[int, Slice | None]]]:
    """Begins (with their slice) and ends (None) in order of time. On a lane, slices lie inside each other or apart."""
    done: list[list[tuple[int, Slice | None]]] = []
    stacks: list[list[int]] = []  # ends of the slices that are open
    for one in sorted(found, key=lambda s: (s.start_ns, -s.end_ns)):
        for events, stack in zip(done, stacks, strict=True):
            while stack and stack[-1] <= one.start_ns:
                events.append((stack.pop(), None))
            if not stack or stack[-1] >= one.end_ns:
                break
        else:
            events, stack = [], []
            done.append(events)
            stacks.append(stack)
        events.append((one.start_ns, one))
        stack.append(one.end_ns)
    for events, stack in zip(done, stacks, strict=True):
        events += [(end, None) for end in reversed(stack)]
    return done
