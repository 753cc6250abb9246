"""The Perfetto trace, read back with the format's own protobufs, and by Perfetto's trace processor where it is."""

import importlib.util
import json
import shutil
from collections import defaultdict
from datetime import datetime
from pathlib import Path

import pytest

from edge.core.errors import EdgeError, UsageError
from edge.core.measurement import MemorySample
from edge.report import perfetto, trace, tracks

protobufs = pytest.importorskip("perfetto.protos.perfetto.trace.perfetto_trace_pb2", reason="needs perfetto")

_spec = importlib.util.spec_from_file_location("synthetic", Path(__file__).with_name("synthetic.py"))
synthetic = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(synthetic)
START = perfetto.START_NS
SHELL = shutil.which("trace_processor_shell") or shutil.which("trace_processor")


class Read:
    """A trace as a tree of named tracks with their slices (name, begin, end, depth) and counters (time, value)."""

    def __init__(self, path):
        self.packets = protobufs.Trace.FromString(path.read_bytes()).packet
        self.tracks = {}
        self.slices, self.counters, self.facts = defaultdict(list), defaultdict(list), {}
        open_ = defaultdict(list)
        last = 0
        for packet in self.packets:
            if packet.HasField("track_descriptor"):
                assert packet.track_descriptor.uuid not in self.tracks, "a uuid is there twice"
                self.tracks[packet.track_descriptor.uuid] = packet.track_descriptor
            if not packet.HasField("track_event"):
                continue
            assert packet.timestamp >= last, "events are not in the order of time"
            last, event, at = packet.timestamp, packet.track_event, packet.timestamp - START
            name = self.path(event.track_uuid)
            if event.type == event.TYPE_SLICE_BEGIN:
                open_[name].append((event.name, at))
                self.facts[name, event.name, at] = {a.name: a for a in event.debug_annotations}
            elif event.type == event.TYPE_SLICE_END:
                slice_name, begun = open_[name].pop()
                self.slices[name].append((slice_name, begun, at, len(open_[name])))
            else:
                self.counters[name].append((at, event.double_counter_value))
        assert not any(open_.values()), "a slice has no end"

    def path(self, uuid):
        track = self.tracks[uuid]
        return (f"{self.path(track.parent_uuid)}/" if track.parent_uuid else "") + track.name

    def named(self, kind, end):
        """The one whose path ends so."""
        (found,) = [value for name, value in getattr(self, kind).items() if name.endswith(end)]
        return sorted(found, key=lambda one: (one[1], one[3])) if kind == "slices" else found

    def unit(self, end):
        (track,) = [t for uuid, t in self.tracks.items() if self.path(uuid).endswith(end)]
        return track.counter.unit_name or track.counter.unit


def written(tmp_path, *measurements, **options):
    return Read(trace.write(list(measurements), tmp_path / "new" / "run.pftrace", **options))


def test_tokens_are_slices_where_they_happened(tmp_path):
    run = synthetic.phone()
    read = written(tmp_path, run)
    slices = read.named("slices", "/tokens")
    first, *_, last = run.repetitions
    whole = [s for s in slices if s[3] == 0]
    assert [s[0] for s in whole][-1] == f"repetition {len(run.repetitions)} (throttled)"
    assert whole[0][1:3] == (first.start_ns, first.start_ns + first.prefill_ns + sum(first.decode_ns))
    assert sum(s[0] == "decode" and s[3] == 1 for s in slices) == sum(len(r.decode_ns) for r in run.repetitions)
    steps = [s for s in slices if s[0] == "decode" and s[1] >= last.start_ns]
    assert [end - begin for _, begin, end, _ in steps] == last.decode_ns
    speed = dict(read.named("counters", "/decode speed"))
    assert speed[steps[0][1]] == pytest.approx(1e9 / last.decode_ns[0]) and speed[steps[-1][2]] == 0
    assert read.unit("/decode speed") == "tokens/s"


def test_counters_have_names_units_and_values(tmp_path):
    run = synthetic.board()
    read = written(tmp_path, run)
    watched = {track.name: track for track in run.tracks}
    units = {"power/VDD_IN (total)": "W", "frequency/cpu7": "MHz", "cap/cpu7": "MHz", "temperature/big": "°C"}
    units |= {"memory/resident": protobufs.CounterDescriptor.UNIT_SIZE_BYTES, "battery/level": "%"}
    assert {name: read.unit(f"/{name}") for name in units} == units
    power = read.named("counters", "/power/VDD_IN (total)")
    rail = watched["power/VDD_IN"]
    assert power == [(t, pytest.approx(v * 1e-6)) for t, v in zip(rail.time_ns, rail.values, strict=True)]
    cap = read.named("counters", "/cap/cpu7")
    assert [round(v) for _, v in cap] == [2850, 1881, 1881]  # what stays the same isn't said again, but for the end
    assert cap[1][0] / 1e9 == pytest.approx(synthetic.HOT_S, abs=0.2)
    level = read.named("counters", "/battery/level")
    assert level == [(1_000_000_000, 71)]


def test_energy_counters_become_power(tmp_path):
    read = written(tmp_path, synthetic.phone())
    busy = [v for t, v in read.named("counters", "/power/S2M_VDD_CPUCL2") if 6e9 < t < 20e9]
    assert sum(busy) / len(busy) == pytest.approx(3.1, rel=0.02)
    total = [v for t, v in read.named("counters", "/power/sum of 5 rails (total)") if 6e9 < t < 20e9]
    assert sum(total) / len(total) == pytest.approx(3.1 + 1.1 + 0.4 + 0.05 + 0.9, rel=0.02)


def test_phases_and_what_a_click_on_the_run_shows(tmp_path):
    run = synthetic.phone()
    read = written(tmp_path, run)
    phases = read.named("slices", "/phases")
    assert {name for name, *_ in phases} == {"load", "warm-up", "idle before", "measured", "cool-down", "idle after"}
    assert {depth for name, _, _, depth in phases if name == "cool-down"} == {1}  # inside of what is measured
    (facts,) = [found for (name, _, _), found in read.facts.items() if name.endswith("/run")]
    assert facts["device.model"].string_value == "Synthetic Phone 9" and facts["device.cores"].int_value == 8
    assert facts["state.screen set"].string_value == "off" and facts["protocol.threads"].int_value == 4
    assert facts["energy.decode"].string_value == "0.095 ± 0.005 J/token, net, k = 2"


def test_the_sequence_is_one_that_perfetto_reads(tmp_path):
    run = synthetic.phone()
    read = written(tmp_path, run)
    first, *others = read.packets
    assert {packet.trusted_packet_sequence_id for packet in read.packets} == {perfetto.SEQUENCE}
    assert first.sequence_flags == first.SEQ_INCREMENTAL_STATE_CLEARED and first.first_packet_on_sequence
    assert {packet.sequence_flags for packet in others} == {first.SEQ_NEEDS_INCREMENTAL_STATE}
    clocks = {clock.clock_id: clock.timestamp for clock in first.clock_snapshot.clocks}
    ended = datetime.fromisoformat(run.measured_at).timestamp()
    assert clocks[6] == clocks[3] == START and clocks[1] / 1e9 == pytest.approx(ended - tracks.end_s(run), abs=1e-3)
    assert first.clock_snapshot.primary_trace_clock == 6
    roots = [track for track in read.tracks.values() if not track.parent_uuid]
    assert len(roots) == 1 and 0 not in read.tracks
    assert all(track.parent_uuid in read.tracks for track in read.tracks.values() if track.parent_uuid)
    (system,) = [packet.system_info for packet in read.packets if packet.HasField("system_info")]
    assert (system.num_cpus, system.android_soc_model, system.utsname.machine) == (8, "SC9000", "arm64")


def test_several_runs_stand_side_by_side(tmp_path):
    read = written(tmp_path, synthetic.phone(), synthetic.stand_in(), synthetic.failed(), synthetic.conversation())
    roots = [track.name for track in read.tracks.values() if not track.parent_uuid]
    assert len(roots) == 4 and len(set(roots)) == 4
    assert sum("emulated: no time means anything" in name for name in roots) == 1
    assert any(name == "repetition 5, turn 3" for slices in read.slices.values() for name, *_ in slices)


def test_the_same_runs_give_the_same_bytes(tmp_path):
    paths = [trace.write([synthetic.phone()], tmp_path / name) for name in ("a", "b")]
    assert paths[0].read_bytes() == paths[1].read_bytes()


def test_runs_without_times_of_their_own(tmp_path):
    """Another tool's result says how long, not when; an older one has memory samples and no tracks."""
    read = written(tmp_path, synthetic.imported())
    whole = [s for s in read.named("slices", "/tokens") if s[3] == 0]
    assert whole[0][1] == 0 and [s[1] for s in whole[1:]] == [s[2] for s in whole[:-1]]
    (tokens,) = [t for t in read.tracks.values() if t.name == "tokens"]
    assert "laid end to end" in tokens.description
    old = synthetic.measurement(memory=[MemorySample(0, 10), MemorySample(5, 30)])
    assert written(tmp_path, old).named("counters", "/memory/resident") == [(0, 10), (5, 30)]


def test_operators_as_an_average_step(tmp_path):
    run = synthetic.phone()
    slices = written(tmp_path, run).named("slices", "/operators: an average decode step")
    assert slices[0][0] == "mean of 191 decode steps"
    inner = [s for s in slices if s[3] == 1]
    assert len(inner) == len(run.operators)
    assert slices[0][2] == sum(row.total_ns // 191 for row in run.operators)
    names = [s[0] for s in inner]
    assert names.index("Linear model.layers.2.mlp.down_proj") < names.index("Linear model.layers.10.mlp.down_proj")


def engine_file(path):
    events = [
        {"cat": "Session", "name": "model_run", "ph": "X", "ts": 10, "dur": 90, "tid": 1, "args": {}},
        {"cat": "Node", "name": "/0/mlp.down_proj_kernel_time", "ph": "X", "ts": 20, "dur": 30, "tid": 1,
         "args": {"op_name": "Linear", "output_size": "4"}},
        {"cat": "Node", "name": "x_fence_before", "ph": "X", "ts": 20, "dur": 0, "tid": 1, "args": {}},
    ]  # fmt: skip
    path.write_text(json.dumps(events))
    return path


def test_the_engines_own_trace_takes_the_averages_place(tmp_path):
    read = written(tmp_path, synthetic.phone(), engine_trace=engine_file(tmp_path / "ort.json"))
    assert read.named("slices", "/operators: the engine's trace/session") == [
        ("model_run", 10_000, 100_000, 0),
        ("Linear model.layers.0.mlp.down_proj", 20_000, 50_000, 1),
    ]
    assert not [name for name in read.slices if "average" in name]


def test_what_is_no_trace_is_refused(tmp_path):
    with pytest.raises(UsageError, match="no measurement"):
        trace.write([], tmp_path / "x")
    two = [synthetic.phone(), synthetic.phone()]
    with pytest.raises(UsageError, match="several runs"):
        trace.write(two, tmp_path / "x", engine_trace=engine_file(tmp_path / "ort.json"))
    for content in ("not json", "{}", "[]", '[{"name": 3, "dur": 1, "ts": 1}]'):
        (tmp_path / "bad").write_text(content)
        with pytest.raises(EdgeError, match="no trace of ONNX Runtime"):
            trace.write(two[:1], tmp_path / "x", engine_trace=tmp_path / "bad")
    with pytest.raises(UsageError, match="can't read"):
        trace.write(two[:1], tmp_path / "x", engine_trace=tmp_path / "absent")


def test_slices_that_overlap_get_lanes():
    found = perfetto.lanes([perfetto.Slice("a", 0, 10), perfetto.Slice("b", 5, 15), perfetto.Slice("c", 10, 12)])
    names = [[(time, one.name if one else "") for time, one in lane] for lane in found]
    assert names == [[(0, "a"), (10, ""), (10, "c"), (12, "")], [(5, "b"), (15, "")]]


@pytest.mark.skipif(SHELL is None, reason="needs Perfetto's trace_processor_shell in the PATH")
def test_the_trace_processor_reads_it(tmp_path):
    from perfetto.trace_processor import TraceProcessor, TraceProcessorConfig

    run = synthetic.phone()
    path = trace.write([run], tmp_path / "run.pftrace")
    with TraceProcessor(trace=str(path), config=TraceProcessorConfig(bin_path=SHELL)) as processor:
        (row,) = processor.query("select count(*) as n from slice where name = 'decode'")
        assert row.n == sum(len(r.decode_ns) for r in run.repetitions)
        (row,) = processor.query("select count(*) as n from stats where severity = 'error' and value > 0")
        assert row.n == 0
