"""Comparisons whose truth is known: made-up runs with noise that is correlated within runs and over time."""

import math

import msgspec
import numpy as np
import pytest

from edge.core.errors import EdgeError, UsageError
from edge.core.files import write_json
from edge.core.measurement import Energy, EnergyWindow, Repetition
from edge.profiles import resampling, turns
from edge.profiles.compare import METRICS, check, compare, load
from edge.profiles.resampling import LEAST_FLOOR, ONE_RUN_FLOOR, blocks, paired, student, unpaired
from edge.report.tests.synthetic import measurement

FASTER = 1 / 0.9  # B's time where it has 0.9 of A's speed


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(resampling, "RESAMPLES", 500)


def machine(random, count, *, drift=0.01, between=0.01, bursts=0.0):
    """Logarithms of what the machine does to each run: load that comes and goes, and what differs from run to run."""
    load = 0.0
    for _ in range(count):
        load = 0.7 * load + random.normal(0, drift)
        burst = abs(random.normal(0, 0.15)) if random.random() < bursts else 0.0
        yield load + random.normal(0, between) + burst


def run_of(random, center, repetitions=5, within=0.02):
    """Times whose noise is correlated from repetition to repetition."""
    noise, times = random.normal(0, within), []
    for _ in range(repetitions):
        noise = 0.6 * noise + random.normal(0, within)
        times.append(math.exp(center + noise))
    return times


def foursomes(random, rounds, ratio=1.0, **how):
    """Runs of both sides in the order A B B A; B's times are `ratio` of A's."""
    sides = {"A": [], "B": []}
    for side, center in zip("ABBA" * rounds, machine(random, 4 * rounds, **how), strict=True):
        sides[side].append(run_of(random, center + (math.log(ratio) if side == "B" else 0)))
    return sides["A"], sides["B"]


@pytest.mark.parametrize("rounds", [2, 4])
@pytest.mark.parametrize("ratio", [1.0, 1.1])
@pytest.mark.parametrize("bursts", [0.0, 0.1])
def test_the_interval_holds_the_truth(rounds, ratio, bursts):
    random = np.random.default_rng(rounds)
    found = [paired(*foursomes(random, rounds, ratio, bursts=bursts)) for _ in range(100)]
    assert sum(one.low <= ratio <= one.high for one in found) >= 90


@pytest.mark.parametrize("rounds", [2, 4])
def test_the_interval_holds_the_truth_of_what_a_run_has_once(rounds):
    random = np.random.default_rng(rounds)
    inside = 0
    for _ in range(200):
        times = [[math.exp(one)] for one in machine(random, 4 * rounds)]
        sides = [[times[i] for i in range(4 * rounds) if "ABBA"[i % 4] == side] for side in "AB"]
        found = paired(*sides)
        inside += found.low <= 1 <= found.high
    assert inside >= 180


@pytest.mark.parametrize("rounds", [2, 4])
@pytest.mark.parametrize("bursts", [0.0, 0.1])
def test_two_of_a_kind_differ_by_less_than_the_floor_in_19_of_20_pairs(rounds, bursts):
    random = np.random.default_rng(10 + rounds)
    found = [paired(*foursomes(random, rounds, bursts=bursts)) for _ in range(100)]
    assert sum(abs(math.log(one.value)) <= math.log1p(one.floor) for one in found) >= 95


def test_a_floor_is_no_larger_than_it_has_to_be():
    random = np.random.default_rng(3)
    floors = [paired(*foursomes(random, 4)).floor for _ in range(50)]
    assert np.median(floors) < 0.06  # runs differ by 2 % here


@pytest.mark.parametrize(("runs_a", "runs_b"), [(2, 2), (3, 3), (2, 5)])
def test_runs_that_took_no_turns(runs_a, runs_b):
    random = np.random.default_rng(runs_b)
    inside = floors = 0
    for _ in range(100):
        centers = list(machine(random, runs_a + runs_b, drift=0.0))
        runs = [run_of(random, center) for center in centers]
        found = unpaired(runs[:runs_a], runs[runs_a:])
        inside += found.low <= 1 <= found.high
        floors += abs(math.log(found.value)) <= math.log1p(found.floor)
    assert inside >= 90 and floors >= 95


def test_blocks_are_stretches_of_a_run():
    assert blocks([1, 2, 3]) == []
    assert blocks([1, 2, 3, 4, 5]) == [[1, 2, 3], [4, 5]]
    assert [len(block) for block in blocks(range(1, 21))] == [4] * 5


@pytest.mark.parametrize(
    ("confidence", "freedom", "expected"),
    [(0.95, 1, 12.706), (0.95, 5, 2.571), (0.99, 1, 63.657), (0.99, 8, 3.355), (0.95, 120, 1.980)],
)
def test_students_t_is_that_of_the_tables(confidence, freedom, expected):
    assert student(confidence, freedom) == pytest.approx(expected, rel=1e-3)


def result(step_ms=5.0, seed=0, repetitions=5, **changes):
    """One run whose time per token is `step_ms` but for noise."""
    random = np.random.default_rng(seed)
    times = run_of(random, math.log(step_ms), repetitions)
    rows = [Repetition(128, int(30 * ms * 1e6), [int(ms * 1e6)] * 63, 1, []) for ms in times]
    changes = {"load_ns": int(80e6 * random.normal(1, 0.01)), "peak_bytes": 250_000_000} | changes
    return measurement(repetitions=rows, **changes)


def series(count, step_ms=5.0, seed=0, **changes):
    random = np.random.default_rng(seed)
    centers = machine(random, count)
    return [result(step_ms * math.exp(c), seed=100 * seed + i, **changes) for i, c in enumerate(centers)]


def changes_of(comparison):
    return {change.metric: change for change in comparison.changes}


def test_a_loss_of_ten_percent_is_found_in_turns():
    found = compare(series(8, seed=1), series(8, 5.0 * FASTER, seed=2), interleaved=True)
    decode = changes_of(found)["decode"]
    assert (decode.verdict, decode.words) == ("worse", "slower")
    assert decode.low <= 0.9 <= decode.high < 1
    assert decode.a == pytest.approx(200, rel=0.05) and decode.b == pytest.approx(180, rel=0.05)
    assert set(found.regressions) == {"decode", "prefill", "time to first token"}
    assert changes_of(found)["time to first token"].ratio > 1
    assert changes_of(found)["peak memory"].verdict == "no difference"
    assert changes_of(found)["peak memory"].floor == LEAST_FLOOR
    assert len(found.runs) == 16


def test_the_same_the_other_way_round_is_faster_and_no_regression():
    found = compare(series(8, 5.0 * FASTER, seed=2), series(8, seed=1), interleaved=True)
    assert changes_of(found)["decode"].words == "faster" and found.regressions == []


def test_a_loss_that_is_allowed_is_no_regression():
    sides = series(8, seed=1), series(8, 5.0 * FASTER, seed=2)
    assert compare(*sides, interleaved=True, max_regression_percent=20).regressions == []
    assert compare(*sides, interleaved=True, max_regression_percent=3).regressions


def test_one_run_a_side_says_that_its_floor_is_a_lower_bound():
    found = compare([result(seed=1, repetitions=20)], [result(seed=2, repetitions=20)])
    decode = changes_of(found)["decode"]
    assert (decode.verdict, found.floor) == ("no difference", "within one run")
    assert decode.floor >= ONE_RUN_FLOOR
    assert any("lower bound" in note for note in found.notes)
    load_time = changes_of(found)["load"]
    assert load_time.verdict == "can't tell" and "one run" in load_time.why
    slower = compare([result(seed=1, repetitions=20)], [result(6.0, seed=2, repetitions=20)])
    assert changes_of(slower)["decode"].words == "slower"


def test_noise_that_hides_everything_is_said():
    random = np.random.default_rng(0)
    noisy = [result(5 * math.exp(random.normal(0, 0.3)), seed=i) for i in range(4)]
    decode = changes_of(compare(noisy[:2], noisy[2:], interleaved=True))["decode"]
    assert decode.verdict == "can't tell" and "more runs" in decode.why


def test_throttled_repetitions_are_left_out():
    one = result(seed=1)
    slow = msgspec.structs.replace(one.repetitions[0], decode_ns=[10**9] * 63, throttled=True)
    throttled = msgspec.structs.replace(one, repetitions=[slow, *one.repetitions])
    decode = next(metric for metric in METRICS if metric.name == "decode")
    assert decode.values(throttled) == decode.values(one)


def test_turns_of_a_conversation_are_one_sample():
    def turn(number):
        return Repetition(10 * (number + 1), 10_000_000, [5_000_000] * 4, 1, [], turn=number)

    run = measurement(repetitions=[turn(0), turn(1), turn(0), turn(1)])
    values = {metric.name: metric.values(run) for metric in METRICS}
    assert values["prefill"] == [30 / 0.02] * 2
    assert values["decode"] == pytest.approx([200.0, 200.0])
    assert values["time to first token"] == [10.0, 10.0]


def energy(net_uj, status="ok", source="hardware_counter"):
    window = EnergyWindow("decode", status, 63, 10**9, net_uj=net_uj)
    return Energy(source, "counter", energy_uj=10**6, windows=[window])


def test_energy_is_compared_within_a_kind_of_source_only():
    random = np.random.default_rng(0)

    def side(scale, **how):
        return [result(seed=i, energy=energy(int(scale * 1e6 * random.normal(1, 0.01)), **how)) for i in range(4)]

    name = "net energy per token"
    change = changes_of(compare(side(1.0), side(1.5)))[name]
    assert (change.words, change.unit) == ("more", "mJ") and change.ratio == pytest.approx(1.5, rel=0.05)
    assert "kinds of source" in changes_of(compare(side(1.0), side(1.5, source="gauge")))[name].why
    assert "below resolution" in changes_of(compare(side(1.0), side(1.5, status="below_resolution")))[name].why
    assert "powercap" in changes_of(compare([result()], [result()]))[name].why


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"emulated": True}, "compare.emulated"),
        ({"device": {"cpu": "Another", "cores": 2}}, "compare.device"),
        ({"device": {}}, "compare.device"),
        ({"protocol": msgspec.structs.replace(result().protocol, prompt_tokens=512)}, "compare.protocol"),
    ],
)
def test_what_cant_be_compared(changes, code):
    with pytest.raises(UsageError) as raised:
        check([result()], [result(**changes)])
    assert raised.value.code == code and raised.value.hint
    if code == "compare.device":
        assert any("device" in note for note in check([result()], [result(**changes)], anyway=True))
    else:
        with pytest.raises(UsageError):
            check([result()], [result(), result(**changes)], anyway=True)


def test_other_software_is_told_and_compared():
    newer = {**result().device, "libraries": {"onnxruntime": "1.32.0"}}
    (note,) = check([result()], [result(device=newer)])
    assert "1.31.1" in note and "1.32.0" in note


def test_a_side_from_files(tmp_path):
    for i in range(3):
        write_json(tmp_path / f"{i}.json", result(seed=i))
    assert len(load(tmp_path)) == 3 and len(load(tmp_path / "0.json")) == 1
    write_json(tmp_path / "3.json", result(bundle_sha256="ef" * 32))
    with pytest.raises(UsageError, match="several bundles"):
        load(tmp_path)
    write_json(tmp_path / "4.json", result(problem="the device was lost"))
    write_json(tmp_path / "5.json", measurement(repetitions=[], problem="the device was lost"))
    with pytest.raises(UsageError, match="the device was lost"):
        load(tmp_path / "5.json")


class FakeBundle:
    def __init__(self, name):
        self.hash = name


def test_runs_take_turns_and_go_on_after_a_kill(tmp_path, monkeypatch):
    monkeypatch.setenv("EDGE_CACHE", str(tmp_path))
    a, b, seen = FakeBundle("a"), FakeBundle("b"), []

    def measure(bundle):
        if len(seen) == 5:
            raise KeyboardInterrupt
        seen.append(bundle.hash)
        return result(seed=len(seen))

    with pytest.raises(KeyboardInterrupt):
        turns.take(a, b, measure, rounds=2, options={})
    seen.append("killed")
    sides = turns.take(a, b, measure, rounds=2, options={})
    assert "".join(seen).replace("killed", "-") == "abbaa-bba"
    assert [len(side) for side in sides] == [4, 4]
    seen.clear()
    turns.take(a, b, measure, rounds=1, options={})
    assert seen == ["a", "b", "b", "a"]  # what is finished is not taken up


def test_a_run_that_failed_ends_it(tmp_path, monkeypatch):
    monkeypatch.setenv("EDGE_CACHE", str(tmp_path))
    failed = measurement(repetitions=[], problem="no parity")
    with pytest.raises(EdgeError, match="no parity"):
        turns.take(FakeBundle("a"), FakeBundle("b"), lambda _: failed, rounds=1, options={})
