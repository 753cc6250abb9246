"""A journal outlives whoever writes it: torn lines, full disks, other plans, other boots; and what is made of one."""

import errno
import os
import subprocess
import sys

import msgspec
import pytest

from edge.core.errors import EdgeError, UsageError
from edge.core.measurement import Phase, Repetition
from edge.profiles import journal
from edge.profiles.assemble import measurement_of
from edge.profiles.journal import Begin, End, ParityChecked, Peak, Repeated, Span, attempts, finished, taken_up
from edge.profiles.plan import Plan, digest, turn_prompts
from edge.profiles.tests.bigram import make_bundle

DIGEST = "d" * 64


def begin(log, at_ns=0, boot="boot"):
    log.append(Begin, at_ns=at_ns, plan=DIGEST, engine="python", pid=1, boot=boot)


def repeat(log, index, start_ns=0, turn=0, **more):
    fields = {"prompt_tokens": 6, "prefill_ns": 100, "decode_ns": [10, 10], "cpu_ns": 1} | more
    log.append(Repeated, index=index, turn=turn, start_ns=start_ns, **fields)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "run" / journal.NAME


def test_what_was_written_is_read_back_with_rising_numbers(path):
    with taken_up(path, DIGEST) as log:
        begin(log)
        repeat(log, 0, temperature_mc=41000, caps_khz=[1, 2])
        log.append(End, at_ns=9, code="ok")
        written = log.entries
    assert journal.read(path) == written and [entry.seq for entry in written] == [0, 1, 2]
    assert path.read_bytes().count(b"\n") == 3


def test_a_torn_last_line_is_cut_off_and_the_run_goes_on(path):
    with taken_up(path, DIGEST) as log:
        begin(log)
        repeat(log, 0)
        repeat(log, 1)
    whole = path.read_bytes()
    for cut in range(1, len(whole.splitlines(keepends=True)[-1]) + 1):
        path.write_bytes(whole[:-cut])
        with taken_up(path, DIGEST) as log:
            assert [r[0].index for r in finished(log.entries)] == [0]
            begin(log, 5)
            repeat(log, 1, 7)
        entries = journal.read(path)
        assert [entry.seq for entry in entries] == [0, 1, 2, 3]
        assert [r[0].start_ns for r in finished(entries)] == [0, 7]


def test_zeros_after_a_power_cut_are_a_torn_line(path):
    with taken_up(path, DIGEST) as log:
        begin(log)
    path.write_bytes(path.read_bytes() + bytes(100))
    with taken_up(path, DIGEST) as log:
        assert len(log.entries) == 1
    assert journal.read(path) == log.entries


@pytest.mark.parametrize("damage", [lambda lines: [lines[0], b"{}\n", lines[2]], lambda lines: [lines[0], lines[2]]])
def test_damage_in_the_middle_is_an_error(path, damage):
    with taken_up(path, DIGEST) as log:
        begin(log)
        repeat(log, 0)
        repeat(log, 1)
    path.write_bytes(b"".join(damage(path.read_bytes().splitlines(keepends=True))))
    with pytest.raises(EdgeError, match="damaged") as error, taken_up(path, DIGEST):
        pass
    assert "--fresh" in error.value.hint


def test_the_journal_of_another_plan_is_refused(path):
    with taken_up(path, DIGEST) as log:
        begin(log)
    before = path.read_bytes()
    with pytest.raises(UsageError, match="another plan"), taken_up(path, "e" * 64):
        pass
    assert path.read_bytes() == before


def test_two_at_once_are_refused(path):
    with taken_up(path, DIGEST), pytest.raises(EdgeError, match="runs already"), taken_up(path, DIGEST):
        pass


@pytest.mark.parametrize("room", [0, 40])
def test_a_full_disk_keeps_what_was_finished(path, monkeypatch, room):
    real, left = os.write, None

    def write(file, data):
        """As on a disk that has room for a part of the line."""
        nonlocal left
        if left == 0:
            raise OSError(errno.ENOSPC, "no space")
        written = real(file, data[:left])
        left = None if left is None else left - written
        return written

    monkeypatch.setattr(os, "write", write)
    with taken_up(path, DIGEST) as log:
        begin(log)
        repeat(log, 0)
        kept, left = path.read_bytes(), room
        with pytest.raises(EdgeError) as error:
            repeat(log, 1)
        assert error.value.code == "disk.full" and path.read_bytes() == kept
        left = None
        repeat(log, 1)
    assert [r[0].index for r in finished(journal.read(path))] == [0, 1]


def test_a_killed_writer_leaves_whole_entries(path):
    """Kills in the midst of appending, a hundred times faster than any run appends."""
    code = f"""
import itertools, sys
from pathlib import Path
from edge.profiles.journal import Begin, Repeated, taken_up
with taken_up(Path({str(path)!r}), {DIGEST!r}) as log:
    log.append(Begin, at_ns=0, plan={DIGEST!r}, engine="python", pid=1, boot="b")
    print("ready", flush=True)
    for i in itertools.count(len(log.entries)):
        log.append(Repeated, index=i, turn=0, start_ns=i, prompt_tokens=1, prefill_ns=1, decode_ns=[1] * 99, cpu_ns=1)
"""
    for _ in range(3):
        writer = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
        writer.stdout.readline()
        while len(path.read_bytes()) < 20000:
            pass
        writer.kill()
        writer.wait()
        entries, _ = journal.parse(path.read_bytes())
        assert len(entries) > 20
    with taken_up(path, DIGEST) as log:
        assert [entry.seq for entry in log.entries] == list(range(len(log.entries)))


def test_a_conversation_that_was_cut_off_is_done_again(path):
    with taken_up(path, DIGEST) as log:
        begin(log)
        for turn in (0, 1):
            repeat(log, 0, turn, turn)
        repeat(log, 1, 2, 0)
        begin(log, 50)
        for turn in (0, 1):
            repeat(log, 1, 60 + turn, turn)
        repeat(log, 2, 70, 0)
    assert [[t.start_ns for t in turns] for turns in finished(log.entries, 2)] == [[0, 1], [60, 61]]


def test_clocks_of_two_boots_are_told_apart(path):
    with taken_up(path, DIGEST) as log:
        begin(log, 1_000_000)
        repeat(log, 0, 1_000_500)
        begin(log, 1_002_000)  # the same boot: the clock went on
        repeat(log, 1, 1_002_100, prefill_ns=200)
        begin(log, 40, boot="next")  # a new one: nobody knows for how long it was off
        repeat(log, 2, 50)
    found = attempts(log.entries)
    assert [a.since_start(a.begin.at_ns) for a in found] == [0, 2000, 2320]
    assert [a.since_start(a.entries[0].start_ns) for a in found] == [500, 2100, 2330]


def test_a_run_folder_is_of_a_device_and_a_plan(tmp_path, monkeypatch):
    monkeypatch.setenv("EDGE_CACHE", str(tmp_path))
    folder = journal.run_folder("ssh:me@host:22/..", DIGEST)
    assert folder.parent == tmp_path / "runs" and folder.name == "ssh_me_host_22_..-dddddddddddddddd"


def test_every_field_of_a_plan_is_in_its_digest():
    base = digest(Plan(), "b", "cpu", "python")
    assert base == digest(Plan(), "b", "cpu", "python") and len(base) == 64
    other = {"mode": "sustained", "cores": [1], "meter_csv": "m", "start_below_c": 40.0, "engine": "runner"}
    for field in msgspec.structs.fields(Plan):
        if field.name in ("turns", "prompts", "calls"):
            continue
        value = other.get(field.name, (getattr(Plan(), field.name) or 1) * 2)
        assert digest(Plan(**{field.name: value}), "b", "cpu", "python") != base, field.name
    assert len({base, *(digest(Plan(), *who) for who in (("c", "cpu", "python"), ("b", "cpu", "runner")))}) == 3
    turns = [digest(Plan(mode="conversation", turns=[t]), "b", "cpu", "python") for t in ((1, 2), (1, 3))]
    assert turns[0] != turns[1]


@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        ({"turns": [(4, 4)]}, "turns"),
        ({"mode": "conversation"}, "turns"),
        ({"mode": "conversation", "turns": [(4, 1)]}, "turns"),
        ({"mode": "sustained", "calls": True}, "mode"),
        ({"cores": [1, 1]}, "cores"),
        ({"cores": [-1]}, "cores"),
        ({"prompts": [[1, 2]]}, "prompts"),
        ({"wait_s": float("nan")}, "wait_s"),
        ({"max_seconds": 0.0}, "max_seconds"),
    ],
)
def test_plans_that_make_no_sense(wrong, named):
    with pytest.raises(UsageError, match=named):
        Plan(**wrong)


def test_prompts_are_drawn_by_seed_or_given():
    plan = Plan(mode="conversation", turns=[(6, 4), (3, 2)])
    drawn = turn_prompts(20, plan)
    assert [len(prompt) for prompt in drawn] == [6, 3] and drawn == turn_prompts(20, plan)
    assert turn_prompts(20, Plan(prompt_tokens=6)) == drawn[:1]
    given = msgspec.structs.replace(plan, prompts=[[1] * 6, [2] * 3])
    assert turn_prompts(20, given) == given.prompts


def test_a_measurement_from_two_attempts(path, tmp_path):
    bundle = make_bundle(tmp_path / "bundle")
    plan = Plan(6, 3, threads=2, cores=[0, 1])
    with taken_up(path, DIGEST) as log:
        begin(log, 1000)
        log.append(Span, name="load", start_ns=1100, end_ns=1400)
        log.append(ParityChecked, kl_divergence=0.001, kl_divergence_limit=0.01, top1_equal=True)
        log.append(Span, name="warm-up", start_ns=1400, end_ns=1500)
        log.append(Span, name="prefill", start_ns=1600, end_ns=1700, tokens=6)
        log.append(Span, name="decode", start_ns=1700, end_ns=1720, tokens=2)
        repeat(log, 0, 1600, temperature_mc=40500, frequency_khz=[7, 8], caps_khz=[9, 9])
        begin(log, 5000)
        log.append(Span, name="load", start_ns=5000, end_ns=5900)
        log.append(Span, name="prefill", start_ns=6000, end_ns=6100, tokens=6)
        repeat(log, 1, 6000, throttled=True, temperature_mc=70000, caps_khz=[9, 5])
        repeat(log, 2, 6200, temperature_mc=60000, frequency_khz=[7, 8], caps_khz=[9, 5])
        log.append(Peak, peak_bytes=123)
        log.append(End, at_ns=7000, code="ok")
    found = measurement_of(bundle, plan, log.entries, device={"cpu": "x"})
    assert found.problem == "" and found.engine == "python" and found.peak_bytes == 123 and found.load_ns == 300
    assert found.repetitions[0] == Repetition(6, 100, [10, 10], 1, [7, 8], 0, 600, 0, False, 40.5)
    assert [(r.start_ns, r.throttled) for r in found.repetitions] == [(600, False), (5000, True), (5200, False)]
    assert (found.protocol.repetitions, found.protocol.threads, found.protocol.cores) == (2, 2, [0, 1])
    assert found.phases == [
        Phase("load", 100, 400),
        Phase("warm-up", 400, 500),
        Phase("measured", 600, 720),
        Phase("load", 4000, 4900),
        Phase("measured", 5000, 5100),
    ]
    assert (found.parity.kl_divergence, found.parity.top1_equal) == (0.001, True)
    tracks = {track.name: track for track in found.tracks}
    assert tracks["temperature/hottest"].values == [40.5, 70.0, 60.0]
    assert tracks["cap/cpu1"].values == [9, 5, 5] and tracks["cap/cpu1"].time_ns == [720, 5120, 5320]


def test_a_run_that_was_cut_off_says_so(path, tmp_path):
    bundle = make_bundle(tmp_path / "bundle")
    with taken_up(path, DIGEST) as log:
        begin(log)
        repeat(log, 0)
    found = measurement_of(bundle, Plan(6, 3), log.entries, device={})
    assert found.problem == "the run was cut off" and len(found.repetitions) == 1
    assert measurement_of(bundle, Plan(6, 3), [], device={}).repetitions == []
