"""Runs on devices in the report: tables, timelines, sweeps, and what must not be shown together."""

import importlib.util
import re
from itertools import pairwise
from pathlib import Path

import msgspec
import pytest

from edge.core.files import write_json
from edge.core.measurement import Energy, Protocol, Repetition, Track
from edge.report import card, devices, html, modes, overview, plots, tracks
from edge.report.plots import timeline
from edge.report.results import join, load_results

_spec = importlib.util.spec_from_file_location("synthetic", Path(__file__).with_name("synthetic.py"))
synthetic = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(synthetic)
phone, board = synthetic.phone, synthetic.board


def cells(table):
    """By the head of a row and the title of a column: (value, note)."""
    return {
        (head.value, column): (cell.value, cell.note)
        for head, line in table.rows
        for column, cell in zip(table.columns, line, strict=True)
    }


def titles(rows):
    return [table.title for table in overview.results(rows)]


def test_latency_is_a_row_per_device_and_model():
    rows = join([], [phone(), board(recipe="int8", bundle="b8"), phone(recipe="int2", bundle="b2")])
    latency, *_ = devices.tables(rows)
    assert [(head.value, head.note.split(";")[0]) for head, _ in latency.rows] == [
        ("int4, edge kernels", "Synthetic Phone 9"),
        ("int2, edge kernels", "Synthetic Phone 9"),  # rows of one device stand together
        ("int8, edge kernels", "Jetson Orin Nano (synthetic)"),
    ]
    found = cells(latency)
    calm = [r for r in phone().repetitions if not r.throttled]
    value, spread = found["int4, edge kernels", "Decode, tokens/s"]
    speeds = sorted(63e9 / sum(r.decode_ns) for r in calm)
    assert float(value) == pytest.approx(speeds[len(speeds) // 2], rel=0.01) and "–" in spread
    assert found["int4, edge kernels", "CV"][0].endswith("%")
    assert found["int4, edge kernels", "Peak memory, MB"] == ("249", "")
    assert "1 of 7 repetitions were throttled, left out here" in latency.rows[0][0].note


def test_energy_says_its_doubt_and_keeps_classes_apart():
    meter = board(recipe="int8", bundle="b8", energy=synthetic.energy("external_meter", "Monsoon", 61_000))
    none = phone(recipe="int2", bundle="b2", energy=Energy("not_available", "no rails"))
    counter = phone(energy=synthetic.energy("hardware_counter", "ODPM", 95_000, prefill="below_resolution"))
    _, *found = devices.tables(join([], [counter, meter, none]))
    assert [table.title for table in found] == ["Energy by hardware counter", "Energy by external meter"]
    assert [len(table.rows) for table in found] == [1, 1]
    told = cells(found[0])
    assert told["int4, edge kernels", "Decode, J/token"] == ("0.0950 ± 0.0050", "")
    assert told["int4, edge kernels", "Decode, mWh/token"] == ("0.0264 ± 0.0014", "")
    value, under = told["int4, edge kernels", "Prefill, J/token"]
    assert value == "below resolution" and under == "under 0.0043"  # 0.0034 and 0.0009 at most
    assert "k = 2" in found[0].note


def test_a_failed_run_stays_in_the_tables_with_its_problem():
    rows = join([], [phone(), synthetic.failed()])
    assert cells(overview.results(rows)[0])["Run", "float32, edge kernels"] == ("failed", synthetic.failed().problem)
    latency, *_ = devices.tables(rows)
    assert cells(latency)["float32, edge kernels", "First token, ms"] == ("failed", synthetic.failed().problem)
    for made in (html.render([], [synthetic.failed()], title="t"), card.render([], [synthetic.failed()], title="t")):
        assert "too little memory on the device" in made
    assert overview.lead(join([], [synthetic.failed(), phone()])).label == "int4, edge kernels"


def test_emulated_runs_are_apart_and_tell_no_time():
    evaluation = synthetic.evaluation(subject="elsewhere", recipe="int2, edge kernels")
    rows = join([evaluation], [synthetic.stand_in(), phone(), synthetic.stand_in(recipe="int2", bundle="b2")])
    assert overview.lead(rows).label == "int4, edge kernels · Synthetic Phone 9"
    for table in (*overview.results(rows), overview.runs(rows)):
        heads = [head.value for head, _ in table.rows] + table.columns
        told = [cell.value for head, line in table.rows for cell in line if "int2" in head.value]
        assert not [head for head in heads if "emulated" in head] and not [v for v in told if "tokens/s" in v]
    for section in plots.sections(rows):
        for figure in section.figures:
            assert "Stand-in" not in str(figure) and (
                section.title == "Quality against size" or "int2" not in str(figure)
            )
    apart = overview.emulated(rows)
    assert len(apart.rows) == 2 and "No time and no energy" in apart.note
    assert not re.search(r"tokens/s|J/token| ms", str(apart.rows))
    page = html.render([], [synthetic.stand_in()], title="t")
    assert "Headline numbers" not in page and "<h2>Emulated</h2>" in page and "<h2>Latency" not in page


def test_imported_results_without_times_sizes_or_energy():
    empty = {"stored_bytes": 0, "bits_per_weight": 0.0, "device": {}, "energy": Energy("not_available", "not told")}
    only_decode = [Repetition(0, 0, [10_000_000] * 64, 0, []) for _ in range(5)]
    made = synthetic.imported(**empty, repetitions=only_decode, protocol=Protocol(0, 65, 0, 5, 2))
    operators = synthetic.imported(**empty, recipe="", repetitions=[], operators=phone().operators)
    for page in (html.render([], [made, operators], title="t"), card.render([], [made, operators], title="t")):
        text = page.partition("<script>")[0]
        assert "imported" in text and "failed" not in text
    latency = devices.latency(join([], [made, operators]))
    assert latency.columns == ["First token, ms", "Decode, tokens/s", "CV"]
    assert [[cell.value for cell in line] for _, line in latency.rows] == [["–", "100", "0.0%"], ["no times", "–", "–"]]
    assert [s.title for s in plots.sections(join([], [operators]))] == ["Where the time goes"]
    assert html.tiles(join([], [made])[0])[0].title == "Decode"


def test_the_timeline_shows_what_was_watched_on_one_axis():
    (figure,) = timeline.figures([("int4", phone())])
    axes = [name for name in figure.layout if name.startswith("yaxis")]
    assert [figure.layout[name]["title"]["text"] for name in axes] == [
        *("tokens/s", "clock, GHz", "°C", "power, W", "memory, MB")
    ]
    domains = [figure.layout[name]["domain"] for name in axes]
    assert all(above[0] >= below[1] for above, below in pairwise(domains))
    assert {trace["xaxis"] for trace in figure.data} == {"x"}
    lines = {trace["name"]: trace for trace in figure.data}
    assert {"repetition", "throttled", "cpu0–3", "cpu4–5", "cpu6–7", "big", "4 others", "sum of 5 rails"} <= set(lines)
    assert len(figure.data) <= 5 * 2 * timeline.LINES
    red = [shape for shape in figure.layout["shapes"] if "208,52,44" in shape["fillcolor"]]
    throttled = [r for r in phone().repetitions if r.throttled]
    assert [shape["x0"] for shape in red] == [pytest.approx(r.start_ns / 1e9, abs=1e-3) for r in throttled]
    assert {name["text"] for name in figure.layout["annotations"]} >= {"load", "warm-up", "measured"}
    watts = lines["sum of 5 rails"]
    at = [y for x, y in zip(watts["x"], watts["y"], strict=True) if x is not None and 6 < x < 20]
    assert sum(at) / len(at) == pytest.approx(5.55, rel=0.02)


def test_a_timeline_of_memory_alone_and_of_nothing():
    old = synthetic.measurement()
    (figure,) = timeline.figures([("int4", old)])
    assert figure.layout["yaxis"]["title"]["text"] == "memory, MB" and "yaxis2" not in figure.layout
    assert timeline.figures([("int4", synthetic.measurement(memory=[]))]) == []


def test_power_of_counters_that_move_rarely_and_wrap():
    ramp = [0.0, 0.0, 2e6, 2e6, 4e6, 1e6, 3e6]
    track = Track("energy/CPU", "uJ", [int(i * 1e9) for i in range(7)], ramp)
    (rail,) = tracks.power(phone(tracks=[track], device={}))
    assert rail.power_uw == [1e6, 1e6, 2e6] and not rail.total  # 2 J in 2 s, twice; nothing over the wrap; 2 J in 1 s


def test_the_total_is_the_rail_that_carries_the_others():
    rails = {rail.name: rail.total for rail in tracks.power(board())}
    assert rails == {"VDD_IN": True, "VDD_CPU_GPU_CV": False, "VDD_SOC": False}
    unknown = board(device={}, tracks=[t for t in board().tracks if "VDD_IN" not in t.name])
    assert not any(rail.total for rail in tracks.power(unknown))


def test_repetitions_of_several_runs_are_not_laid_over_each_other():
    first, last = phone(), phone(seed=9)
    both = phone(repetitions=[*first.repetitions, *last.repetitions])
    assert tracks.placed(both) == last.repetitions
    assert tracks.placed(synthetic.imported()) == []


def test_windows_of_steps_end_where_the_steps_do():
    repetition = Repetition(4, 5, [10, 10, 20, 20, 40], 0, [], start_ns=100)
    found = tracks.windows(repetition, 2)
    assert found == [(115, 2e9 / 20), (165, 3e9 / 80)]
    assert tracks.windows(repetition, 10) == [(155, 5e9 / 100)]


def test_sweeps_are_found_and_drawn():
    rows = join([], synthetic.sweep())
    found = [(sweep.axis, [(name, len(group)) for name, group in sweep.series]) for sweep in modes.sweeps(rows)]
    assert found == [
        ("cores", [("int8, edge kernels", 3)]),
        ("threads", [("int4, edge kernels", 4)]),
        ("prompt tokens", [("int2, edge kernels", 3)]),
    ]
    (section,) = [s for s in plots.sections(rows) if s.title == "Threads, cores and lengths"]
    decode = {figure.title.split(":")[0]: figure.data[0] for figure in section.figures}
    assert decode["Decode by threads"]["x"] == [1, 2, 4, 8]
    assert decode["Decode by cores"]["x"] == ["cpu0-3", "cpu4-5", "cpu6-7"] and len(decode) == 6
    assert "int4, edge kernels · 8 threads" in [row.label for row in rows]
    assert modes.sweeps(join([], [phone(), phone(seed=4)])) == []  # the same again is no sweep


def test_sustained_runs_say_what_was_left_and_why():
    rows = join([], [synthetic.sustained()])
    told = cells(modes.sustained_table(rows))
    assert told["int4, edge kernels", "Retention"][0] == "70%"
    assert float(told["int4, edge kernels", "Slowed"][0].split()[1]) == pytest.approx(88, abs=2)
    assert "cpu6 fell from 2.85 to 1.88 GHz; the hottest zone at" in told["int4, edge kernels", "Cause"][1]
    assert "Sustained speed" in titles(rows) and [t.title for t in html.tiles(rows[0])][1] == "Sustained"
    assert "varied" not in html.render([], [synthetic.sustained()], title="t")
    assert modes.sustained_table(join([], [phone()])) is None


def test_conversations_are_told_turn_by_turn():
    run = synthetic.conversation()
    (talk,) = modes.turn_tables(join([], [run]))
    assert [head.value for head, _ in talk.rows] == ["Turn 1", "Turn 2", "Turn 3"]
    told = cells(talk)
    assert told["Turn 3", "Reads, tokens"] == ("32", "after 222") and told["Turn 1", "Makes, tokens"][0] == "64"
    speeds = [float(told[f"Turn {n}", "Decode, tokens/s"][0]) for n in (1, 2, 3)]
    assert speeds == sorted(speeds, reverse=True) and speeds[0] == pytest.approx(1000 / 12, rel=0.03)
    section = next(s for s in plots.sections(join([], [run])) if s.title == "Conversation")
    assert [len(figure.data[0]["x"]) for figure in section.figures] == [3, 3]


def test_sweeps_in_one_file_and_comparisons_are_read(tmp_path):
    write_json(tmp_path / "sweep.json", synthetic.sweep())
    assert load_results([tmp_path / "sweep.json"]).measurements == synthetic.sweep()
    write_json(tmp_path / "compared.json", synthetic.comparison())
    loaded = load_results([tmp_path / "compared.json"])
    assert [len(m.repetitions) for m in loaded.measurements] == [14, 15 - 1]
    assert [m.recipe for m in loaded.measurements] == ["int4", "int8"]
    page = html.render([], loaded.measurements, title="t", comparisons=loaded.comparisons)
    assert "<h2>Comparison</h2>" in page and "+28.0%" in page and "±1.0%" in page and "A note." in page
    alone = msgspec.structs.replace(loaded.comparisons[0], runs=[])
    assert "+28.0%" in card.render([], [], title="t", comparisons=[alone])
