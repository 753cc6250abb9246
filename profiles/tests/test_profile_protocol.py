"""The profiling protocol over a real, if small, language model: bigram counts with real probabilities."""

import itertools
import os
import sys
import textwrap

import numpy as np
import pytest

from edge.core.errors import EdgeError, UsageError
from edge.core.files import read_json, write_json
from edge.core.measurement import Measurement
from edge.core.session import OperatorTime
from edge.profiles import journal, protocol
from edge.profiles.energy_meter import EnergyMeter
from edge.profiles.journal import End, taken_up
from edge.profiles.local import assembled
from edge.profiles.plan import CV_GATE, Plan, turn_prompts
from edge.profiles.protocol import measure
from edge.profiles.run import profile
from edge.profiles.statistics import decode_tokens_per_s
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
    result, _ = run(bundle, plan=Plan(6, 4, min_seconds=0.05), naps=(0.002,))
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


@pytest.mark.parametrize("option", [{"prompt_tokens": 0}, {"generated_tokens": 1}, {"repetitions": 0}, {"threads": -1}])
def test_options_out_of_range(bundle, option):
    with pytest.raises(UsageError, match=next(iter(option))):
        profile(bundle, **option)


def test_a_conversation_longer_than_the_context(bundle):
    with pytest.raises(UsageError, match="64") as error:
        profile(bundle, prompt_tokens=60, generated_tokens=5)
    assert error.value.code == "profile.context"


PLUGIN = """
    import sys
    sys.path.insert(0, {tests!r})
    from bigram import Bigram

    def versions():
        return {{}}

    def open(bundle, options):
        {body}
"""


def plug_in(tmp_path, monkeypatch, body):
    """A runtime from another package, which the fresh process finds by its entry point."""
    site = tmp_path / "site"
    (site / "bigram-1.dist-info").mkdir(parents=True)
    (site / "bigram-1.dist-info/METADATA").write_text("Metadata-Version: 2.1\nName: bigram\nVersion: 1\n")
    (site / "bigram-1.dist-info/entry_points.txt").write_text("[edge.runtimes]\nbigram = bigram_runtime\n")
    tests = os.path.dirname(os.path.abspath(__file__))
    (site / "bigram_runtime.py").write_text(textwrap.dedent(PLUGIN).format(tests=tests, body=body))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(site), *sys.path]))


def test_a_fresh_process_measures(bundle, tmp_path, monkeypatch):
    plug_in(tmp_path, monkeypatch, "return Bigram(options)")
    ballast = np.ones(400 << 20, np.uint8)  # memory of this process must not be in the result
    result = profile(bundle, prompt_tokens=6, generated_tokens=4, min_seconds=0)
    assert result.name == "bigram" and len(result.repetitions) >= 5
    assert result.peak_bytes < ballast.nbytes


def test_errors_come_back_from_the_fresh_process(bundle, tmp_path, monkeypatch):
    with pytest.raises(UsageError, match="bigram"):  # no such runtime without the plug-in
        profile(bundle, prompt_tokens=6, generated_tokens=4)
    plug_in(tmp_path, monkeypatch, "import os; os.kill(os.getpid(), 9)")
    with pytest.raises(EdgeError, match="signal 9") as error:
        profile(bundle, prompt_tokens=6, generated_tokens=4)
    assert error.value.code == "profile.died"
