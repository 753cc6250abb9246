"""The profiling protocol over a real, if small, language model: bigram counts with real probabilities."""

import itertools

import msgspec
import numpy as np
import pytest

from edge.core.errors import EdgeError, GateFailed, UsageError
from edge.core.files import read_json, write_json
from edge.core.measurement import Measurement
from edge.core.session import OperatorTime
from edge.profiles import cooling, journal, protocol, sustained
from edge.profiles.assemble import measurement_of
from edge.profiles.energy_meter import EnergyMeter
from edge.profiles.journal import End, taken_up
from edge.profiles.local import assembled
from edge.profiles.plan import CV_GATE, EXTENSION, Plan, turn_prompts
from edge.profiles.protocol import measure
from edge.profiles.run import profile
from edge.profiles.statistics import decode_tokens_per_s, rate, summarize
from edge.profiles.tests.bigram import Bigram, make_bundle

PLAN = Plan(prompt_tokens=6, generated_tokens=4, repetitions=5, min_seconds=0)


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("EDGE_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def bundle(tmp_path):
    return make_bundle(tmp_path / "bundle")


def run(bundle, plan=PLAN, naps=(0.001,), **options):
    opened = []

    def open_session(session_options):
        opened.append(Bigram(session_options, naps))
        return opened[-1]

    with taken_up(bundle.path.parent / "run" / journal.NAME, "digest") as log:
        log.begin({})
        watched = measure(bundle, open_session, plan, log, **options)
        return assembled(bundle, plan, [*log.entries, End(99, 0, "ok")], watched), opened


def test_one_conversation_repeated(bundle):
    result, (timed, profiled) = run(bundle)
    prefills = [call for call in timed.calls if call[0] == "prefill"]
    assert len(prefills) == 3 + len(result.repetitions) and len(set(prefills)) == 1
    assert prefills[0][1] == tuple(turn_prompts(20, PLAN)[0])
    greedy = [int(timed.table[prefills[0][1][-1]].argmax())]
    for _ in range(2):
        greedy.append(int(timed.table[greedy[-1]].argmax()))
    assert [call[1] for call in timed.calls[1:4]] == greedy
    for repetition in result.repetitions:
        assert repetition.prompt_tokens == 6 and len(repetition.decode_ns) == 3
        assert min(repetition.decode_ns) >= 1e6 and repetition.prefill_ns > 0 and repetition.cpu_ns >= 0
    assert timed.closed and profiled.closed


def test_the_profiler_runs_apart_and_sees_single_tokens_only(bundle):
    result, (timed, profiled) = run(bundle)
    assert timed.options.profile_path is None and profiled.options.profile_path
    assert [len(arg) for name, arg in profiled.calls if name == "prefill"] == [1]
    assert len(profiled.calls) == PLAN.prompt_tokens + PLAN.generated_tokens - 1
    assert result.operators == [OperatorTime("n", "Gather", "embed", 9, 1000)]


def test_what_is_recorded(bundle, tmp_path):
    result, _ = run(bundle, plan=Plan(6, 4, threads=2, min_seconds=0))
    assert (result.name, result.recipe, result.kernels, result.stored_bytes) == ("bigram", "int4", "edge", 7)
    assert result.bundle_sha256 == bundle.hash and result.bundle == str(bundle.path)
    assert result.protocol.threads == 2 and result.protocol.repetitions == len(result.repetitions)
    assert [p.name for p in result.phases] == ["load", "warm-up", "measured"]
    assert all(a.end_ns <= b.start_ns for a, b in itertools.pairwise(result.phases))
    assert result.peak_bytes >= max(s.resident_bytes for s in result.memory) > 10 << 20
    assert result.device["cpu"] and result.load_ns > 0
    assert (result.energy.energy_uj is None) == (result.energy.source == "not_available")
    write_json(tmp_path / "m.json", result)
    assert read_json(tmp_path / "m.json", Measurement) == result


def test_a_quiet_run_stops_at_the_planned_repetitions(bundle, monkeypatch):
    monkeypatch.setattr(protocol, "CV_GATE", 10.0)
    assert len(run(bundle)[0].repetitions) == 5


def test_a_noisy_run_goes_on_up_to_the_limit_and_says_so(bundle, capsys):
    naps = [0.0005] * 3 + [0.004] * 3  # every other repetition is slow
    result, _ = run(bundle, naps=naps)
    assert len(result.repetitions) == 5 * protocol.EXTENSION
    assert decode_tokens_per_s(result).cv > CV_GATE
    assert "Noisy" in capsys.readouterr().err


def test_a_fast_model_is_measured_for_the_minimum_time(bundle, monkeypatch):
    monkeypatch.setattr(protocol, "CV_GATE", 10.0)
    result, _ = run(bundle, plan=Plan(6, 4, min_seconds=0.6), naps=(0.002,))
    assert len(result.repetitions) > 5


def test_the_session_is_closed_when_it_fails(bundle):
    class Failing(Bigram):
        def decode(self, token):
            raise EdgeError("engine.failed", "no")

    session = Failing()
    with taken_up(bundle.path.parent / journal.NAME, "digest") as log, pytest.raises(EdgeError, match="no"):
        measure(bundle, lambda options: session, PLAN, log)
    assert session.closed


def test_energy_covers_the_repetitions(bundle, tmp_path):
    """A simulated powercap tree whose counter advances by itself at every read would hide mistakes: it stands still."""
    folder = tmp_path / "sys/class/powercap/intel-rapl:0"
    folder.mkdir(parents=True)
    for name, value in (("name", "package-0"), ("energy_uj", "1000"), ("max_energy_range_uj", "9999")):
        (folder / name).write_text(value)
    result, _ = run(bundle, meter=EnergyMeter(tmp_path, idle_s=0.1, interval_s=0.005))
    assert result.energy.source == "hardware_counter" and result.energy.energy_uj == 0
    assert result.energy.tokens == 4 * len(result.repetitions)
    assert result.energy.duration_ns >= sum(r.prefill_ns + sum(r.decode_ns) for r in result.repetitions)
    assert [w.name for w in result.energy.windows] == ["prefill", "decode"]
    assert {w.status for w in result.energy.windows} == {"below_resolution"}


def samples(last=None):
    tokens = np.array([3, 1, 4], np.int64)
    return {"tokens": tokens, "logits": Bigram().table[tokens[-1:] if last is None else [last]]}


def test_parity_is_told_and_a_wrong_model_is_not_timed(tmp_path):
    result, (timed, _) = run(make_bundle(tmp_path / "right", samples=samples()))
    assert result.parity.kl_divergence == 0 and result.parity.top1_equal and timed.calls[0] == ("prefill", (3, 1, 4))
    wrong = make_bundle(tmp_path / "wrong", samples=samples(last=9))
    session = Bigram()
    with taken_up(tmp_path / journal.NAME, "digest") as log:
        log.begin({})
        with pytest.raises(GateFailed, match="KL divergence") as error:
            measure(wrong, lambda options: session, PLAN, log)
        assert error.value.exit_code == 4 and [call for call in session.calls] == [("prefill", (3, 1, 4))]
        told = assembled_failure(wrong, log.entries)
    assert told.repetitions == [] and told.parity.kl_divergence > told.parity.kl_divergence_limit


def assembled_failure(bundle, entries):
    return measurement_of(bundle, PLAN, entries, device={})


def test_a_model_that_says_nothing_finite_is_not_timed(tmp_path):
    class Broken(Bigram):
        def prefill(self, tokens, *, all_logits=False):
            return np.full((1, 20), np.nan, np.float32)

    with taken_up(tmp_path / journal.NAME, "digest") as log, pytest.raises(GateFailed, match="inf"):
        measure(make_bundle(tmp_path / "bundle", samples=samples()), lambda options: Broken(), PLAN, log)
    assert journal.read(tmp_path / journal.NAME)[-1].top1_equal is False


def test_a_conversation_goes_on_with_the_last_token(bundle):
    plan = Plan(mode="conversation", turns=[(5, 3), (2, 2), (4, 2)], min_seconds=0)
    result, (timed, _) = run(bundle, plan)
    starts = [i for i, call in enumerate(timed.calls) if call[0] == "prefill"]
    first = timed.calls[starts[0] : starts[1]]
    assert [(name, np.size(given)) for name, given in first] == [
        *[("prefill", 5), ("decode", 1), ("decode", 1)],
        *[("extend", 3), ("decode", 1)],
        *[("extend", 5), ("decode", 1)],
    ]
    picked = int(timed.table[first[2][1]].argmax())  # made last in the first turn, and read by the second
    assert first[3][1] == (picked, *turn_prompts(20, plan)[1])
    assert [r.turn for r in result.repetitions[:4]] == [0, 1, 2, 0]
    assert [len(r.decode_ns) for r in result.repetitions[:3]] == [2, 1, 1]
    assert result.protocol.turns == plan.turns and result.protocol.repetitions == len(result.repetitions) / 3
    assert all(a.start_ns < b.start_ns for a, b in itertools.pairwise(result.repetitions))


class Phone:
    """A tree of a clock's caps and a temperature, and a session that heats it in the repetitions named."""

    def __init__(self, root, hot=()):
        self.root, self.hot, self.prefills = root, hot, 0
        for name, value in (("scaling_cur_freq", 1000), ("scaling_max_freq", 2000)):
            for core in (0, 1):
                file = root / f"sys/devices/system/cpu/cpu{core}/cpufreq/{name}"
                file.parent.mkdir(parents=True, exist_ok=True)
                file.write_text(f"{value}\n")
        self.zone = root / "sys/class/thermal/thermal_zone0"
        self.zone.mkdir(parents=True)
        (self.zone / "type").write_text("cpu\n")
        self.set(40, 2000)

    def set(self, celsius, cap=None):
        (self.zone / "temp").write_text(f"{1000 * celsius}\n")
        if cap:
            (self.root / "sys/devices/system/cpu/cpu1/cpufreq/scaling_max_freq").write_text(f"{cap}\n")

    def session(self, options):
        phone = self

        class Heating(Bigram):
            def prefill(self, tokens, *, all_logits=False):
                phone.prefills += 1
                if phone.prefills - 4 in phone.hot:  # after the parity check's absence and three warm-ups
                    phone.set(80, 1500)
                return super().prefill(tokens, all_logits=all_logits)

        return Heating(options, (0.001,))


def measured_on(phone, bundle, plan, monkeypatch, cooled_by):
    """cooled_by: called instead of sleeping."""
    monkeypatch.setattr(cooling.time, "sleep", cooled_by)
    with taken_up(bundle.path.parent / journal.NAME, "digest") as log:
        log.begin({})
        watched = measure(bundle, phone.session, plan, log, root=phone.root)
        return assembled(bundle, plan, [*log.entries, End(999, 0, "ok")], watched)


def test_a_throttled_repetition_is_marked_waited_after_and_done_again(bundle, tmp_path, monkeypatch, capsys):
    phone = Phone(tmp_path / "root", hot=(1, 3))
    slept = []

    def cool(seconds):
        if seconds == cooling.POLL_S:
            slept.append(seconds)
            phone.set(*((50, 2000) if len(slept) % 3 == 2 else (44, 2000) if len(slept) % 3 == 0 else (60, 1500)))

    monkeypatch.setattr(protocol, "CV_GATE", 10.0)
    result = measured_on(phone, bundle, PLAN, monkeypatch, cool)
    assert [r.throttled for r in result.repetitions] == [False, True, False, True, False, False, False]
    assert result.protocol.repetitions == 5 and decode_tokens_per_s(result).count == 5
    assert [r.temperature_c for r in result.repetitions[:3]] == [40, 40, 44]
    assert len(slept) == 6 and [p.name for p in result.phases].count("wait") == 2
    caps = next(track for track in result.tracks if track.name == "cap/cpu1")
    assert caps.values == [2000, 1500, 2000, 1500, 2000, 2000, 2000]
    assert "Throttled: 2 of 7" in capsys.readouterr().err


def test_a_device_that_stays_throttled_is_measured_as_it_is(bundle, tmp_path, monkeypatch, capsys):
    phone = Phone(tmp_path / "root", hot=range(99))
    plan = msgspec.structs.replace(PLAN, wait_s=0)
    result = measured_on(phone, bundle, plan, monkeypatch, lambda seconds: None)
    assert len(result.repetitions) == PLAN.repetitions * EXTENSION
    assert all(r.throttled for r in result.repetitions) and decode_tokens_per_s(result).count == 20
    assert "Throttled: 20 of 20" in capsys.readouterr().err


def test_a_start_below_a_temperature_waits_with_a_note(bundle, tmp_path, monkeypatch, capsys):
    phone = Phone(tmp_path / "root")
    phone.set(55)
    temperatures = iter([52, 48, 44])
    monkeypatch.setattr(protocol, "CV_GATE", 10.0)
    plan = msgspec.structs.replace(PLAN, start_below_c=45.0)
    cool = lambda seconds: phone.set(next(temperatures)) if seconds == cooling.POLL_S else None  # noqa: E731
    result = measured_on(phone, bundle, plan, monkeypatch, cool)
    assert [r.temperature_c for r in result.repetitions] == [44] * 5 and result.protocol.start_below_c == 45
    assert [p.name for p in result.phases].count("wait") == 1
    assert "below 45 °C, now 55 °C, 300 s at most" in capsys.readouterr().err


def test_a_wait_for_a_temperature_has_an_end_and_needs_a_zone(bundle, tmp_path, monkeypatch, capsys):
    phone = Phone(tmp_path / "root")
    phone.set(90)
    plan = msgspec.structs.replace(PLAN, start_below_c=45.0, wait_s=0.01)
    assert len(measured_on(phone, bundle, plan, monkeypatch, lambda seconds: None).repetitions) >= 5
    (phone.zone / "temp").unlink()
    (bundle.path.parent / journal.NAME).unlink()
    assert measured_on(phone, bundle, plan, monkeypatch, lambda seconds: None).repetitions[0].temperature_c is None
    assert "No temperature can be read" in capsys.readouterr().err


def test_rest_between_repetitions(bundle, monkeypatch):
    slept = []
    monkeypatch.setattr(protocol, "CV_GATE", 10.0)
    monkeypatch.setattr(protocol.time, "sleep", slept.append)
    result, _ = run(bundle, plan=msgspec.structs.replace(PLAN, cool_down_s=7.0), naps=(0.0,))
    assert slept.count(7.0) == 4 and [p.name for p in result.phases].count("cool-down") == 4


def test_a_sustained_run_goes_on_until_it_is_steady(bundle, monkeypatch):
    monkeypatch.setattr(sustained, "STEADY_CV", 0.2)  # on a machine that others use
    plan = Plan(6, 4, repetitions=2, warm_ups=0, mode="sustained", min_seconds=0, max_seconds=60)
    naps = ([0.001] * 3 + [0.02] * 3) * 3 + [0.02] * 99
    result, (timed, _) = run(bundle, plan, naps)
    assert timed.calls[0][0] == "prefill" and len(result.repetitions) >= 9
    assert summarize([rate(r) for r in result.repetitions[-4:]]).cv <= 0.2


def test_a_sustained_run_has_an_end(bundle):
    plan = Plan(6, 4, warm_ups=0, mode="sustained", min_seconds=0, max_seconds=1)
    result, _ = run(bundle, plan, [0.01, 0.05, 0.03, 0.002])
    measured_s = sum(r.prefill_ns + sum(r.decode_ns) for r in result.repetitions) / 1e9
    assert 0.3 < measured_s < 1.5


def test_what_was_finished_is_not_repeated(bundle, monkeypatch):
    monkeypatch.setattr(protocol, "CV_GATE", 10.0)
    whole, _ = run(bundle)
    path = bundle.path.parent / "run" / journal.NAME
    lines = path.read_bytes().splitlines(keepends=True)
    for keep in range(1, len(lines), 3):
        path.write_bytes(b"".join(lines[:keep]) + lines[keep][:9])
        kept = [r[0].start_ns for r in journal.finished(journal.parse(path.read_bytes())[0])]
        result, (timed, _) = run(bundle)
        assert len(result.repetitions) == 5 and result.problem == ""
        assert [call[0] for call in timed.calls].count("prefill") == 3 + 5 - len(kept)
        entries = journal.finished(journal.read(path))
        assert [r[0].start_ns for r in entries[: len(kept)]] == kept
    assert len(whole.repetitions) == 5


@pytest.mark.parametrize("option", [{"prompt_tokens": 0}, {"generated_tokens": 1}, {"repetitions": 0}, {"threads": -1}])
def test_options_out_of_range(bundle, option):
    with pytest.raises(UsageError, match=next(iter(option))):
        profile(bundle, **option)


def test_a_conversation_longer_than_the_context(bundle):
    with pytest.raises(UsageError, match="64") as error:
        profile(bundle, prompt_tokens=60, generated_tokens=5)
    assert error.value.code == "profile.context"
