"""The arithmetic of energy on known series, and its uncertainty on random synthetic devices. Nothing is measured."""

import importlib.util
import math
import os
import sys
import tempfile
from pathlib import Path

import numpy as np
import pytest

from edge.profiles.energy import Estimate, Window, gross_energy, idle_baseline, total, window_energy
from edge.runtimes.probes.power.series import Accuracy, PowerUnavailableError, Series, combine, refreshed

SECOND = 1_000_000_000
CASES = 100
LEAST_COVERED = 95


def _synthetic():
    spec = importlib.util.spec_from_file_location("synthetic_power", Path(__file__).with_name("synthetic_power.py"))
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


synthetic = _synthetic()


def power(watts, interval_s=0.1, **accuracy):
    """A series of samples, the first at 0 s."""
    times = np.arange(len(watts)) * round(SECOND * interval_s)
    return Series("p", "power", "hardware_counter", times, 1e6 * np.asarray(watts, float), Accuracy(**accuracy))


def counter(watts, interval_s=0.1, **accuracy):
    """A counter that the same power drives."""
    times = np.arange(len(watts) + 1) * round(SECOND * interval_s)
    levels = np.concatenate([[0.0], np.cumsum(np.asarray(watts, float) * 1e6 * interval_s)])
    return Series("e", "energy", "hardware_counter", times, levels, Accuracy(**accuracy))


LOAD = [2.0] * 40 + [7.0] * 20 + [4.0] * 40 + [2.0] * 41  # idle, prefill, decode, idle
BEFORE, AFTER = Window("before", 0, 4 * SECOND), Window("after", 10 * SECOND, 14 * SECOND)


@pytest.mark.parametrize("make", [power, counter])
def test_prefill_and_decode_apart_gross_and_net(make):
    series = make(LOAD)
    idle = idle_baseline(series, BEFORE, AFTER)
    prefill = window_energy(series, Window("prefill", 4 * SECOND, 6 * SECOND, 10), idle)
    decode = window_energy(series, Window("decode", 6 * SECOND, 10 * SECOND, 20), idle)
    assert idle.at(7 * SECOND) == pytest.approx(2e6, rel=0.02)
    assert prefill.gross.energy_uj == pytest.approx(14e6, rel=0.03) and prefill.net.energy_uj == pytest.approx(
        1e7, rel=0.03
    )
    assert decode.joules_per_token == pytest.approx(8 / 20, rel=0.05)
    assert decode.milliwatt_hours_per_token == pytest.approx(8 / 20 / 3.6, rel=0.05)
    both = total([prefill, decode], "all")
    assert both.net.energy_uj == pytest.approx(18e6, rel=0.03) and both.tokens == 30


def test_an_end_where_the_load_changes_is_not_smeared():
    """A counter that is read between idle and load: a straight line across the step would miss by 0.25 J."""
    series = counter([2.0] * 10 + [4.5] + [7.0] * 30, 0.1)  # the step is in the middle of an interval
    assert gross_energy(series, 1.05 * SECOND, 3 * SECOND).energy_uj == pytest.approx(7e6 * 1.95, abs=1)


def test_idle_that_drifts_is_drawn_straight_and_doubted():
    rest = np.linspace(2.0, 3.0, 141)
    series = power(rest)
    idle = idle_baseline(series, BEFORE, AFTER)
    found = window_energy(series, Window("decode", 5 * SECOND, 9 * SECOND, 1), idle)
    assert abs(found.net.energy_uj) < 0.05e6 and found.net.status == "below_resolution"
    assert found.net.budget_uj["drift"] == pytest.approx(4 * 0.714e6 / math.sqrt(12), rel=0.05)


def test_budget_follows_what_the_sensor_states():
    series = power([5.0] * 101, gain=0.02, offset_uw=30_000, resolution=40_000)
    found = gross_energy(series, SECOND, 9 * SECOND)
    assert found.budget_uj["gain"] == pytest.approx(0.02 / 0.98 * 40e6 / math.sqrt(3))
    assert found.budget_uj["offset"] == pytest.approx(8 * 30_000 / math.sqrt(3))
    assert found.budget_uj["resolution"] == pytest.approx(8 * 40_000 / math.sqrt(12))
    assert found.expanded_uj == pytest.approx(2 * math.hypot(*found.budget_uj.values()))


def test_a_constant_offset_leaves_the_net_energy_alone():
    series, moved = power(LOAD, offset_uw=500_000), power(np.asarray(LOAD) + 0.5, offset_uw=500_000)
    window = Window("decode", 6 * SECOND, 10 * SECOND, 1)
    nets = [window_energy(s, window, idle_baseline(s, BEFORE, AFTER)).net for s in (series, moved)]
    assert nets[0].energy_uj == pytest.approx(nets[1].energy_uj) and "offset" not in nets[0].budget_uj


def test_what_has_one_cause_adds_up_and_noise_does_not():
    one = Estimate(1e6, {"gain": 3.0, "noise": 4.0})
    parts = [window_like(one) for _ in range(4)]
    assert total(parts, "all").net.budget_uj == {"gain": 12.0, "noise": 8.0}


def window_like(estimate):
    from edge.profiles.energy import WindowEnergy

    return WindowEnergy("decode", 1, 1.0, estimate, estimate)


def test_a_gap_is_doubted_by_all_that_the_power_was_seen_to_do():
    series = power(LOAD)
    keep = np.r_[0:65, 80:141]
    holed = Series("p", "power", "hardware_counter", series.time_ns[keep], series.value[keep], series.accuracy)
    whole, gap = (gross_energy(s, 4 * SECOND, 10 * SECOND) for s in (series, holed))
    assert gap.budget_uj["gaps"] > 1e6 > whole.budget_uj["gaps"]


@pytest.mark.parametrize(
    ("start", "end", "reason"),
    [(-9, 1, "don't cover"), (1, 99, "don't cover"), (1, 1, "empty"), (1.01, 1.05, "0 readings")],
)
def test_what_the_readings_dont_tell_is_not_available(start, end, reason):
    with pytest.raises(PowerUnavailableError, match=reason):
        gross_energy(power(LOAD), start * SECOND, end * SECOND)


def test_too_short_an_idle_is_no_baseline():
    with pytest.raises(PowerUnavailableError, match="too few"):
        idle_baseline(power(LOAD), Window("before", 0, SECOND), AFTER)


def test_rails_are_summed_sweep_by_sweep():
    a, b = power([1.0] * 5, gain=0.01, offset_uw=10), power([2.0] * 5, gain=0.02, offset_uw=30)
    both = combine([a, b])
    assert both.value.tolist() == [3e6] * 5 and (both.accuracy.gain, both.accuracy.offset_uw) == (0.02, 40)
    with pytest.raises(ValueError, match="same times"):
        combine([a, power([1.0] * 4)])


def test_a_register_that_is_polled_too_often_is_thinned():
    held = np.repeat(np.arange(20.0), 5)  # renewed every fifth poll
    found = refreshed(power(held, 0.02))
    assert len(found.time_ns) <= 21 and found.accuracy.delay_ns == pytest.approx(0.1 * SECOND)


@pytest.fixture
def device():
    """A folder in memory where there is one: a busy disk makes a hundred thousand rewritten files take minutes."""
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=memory if os.access(memory, os.W_OK) else None) as folder:
        yield Path(folder)


def kinds():
    return [pytest.param(kind, marks=_needs(kind)) for kind in synthetic.KINDS]


def _needs(kind):
    missing = kind == "odpm" and importlib.util.find_spec("perfetto") is None
    return [pytest.mark.skipif(missing, reason="needs perfetto")]


@pytest.mark.parametrize("kind", kinds())
def test_the_stated_interval_holds_the_truth_in_95_of_100(kind, device):
    """Random rails, rates, gaps, wraps, steps, offsets, drift and noise, seeded; gross and net, prefill and decode."""
    runs = [synthetic.run_case(kind, seed, device) for seed in range(CASES)]
    for phase in ("prefill", "decode"):
        cases = [run[phase] for run in runs]
        assert sum(case.gross_covered for case in cases) >= LEAST_COVERED
        assert sum(case.net_covered for case in cases) >= LEAST_COVERED
        assert np.median([case.energy.net.expanded_uj / case.net_uj for case in cases]) < 0.35  # and says something
        assert sum(case.energy.net.status == "ok" for case in cases) >= LEAST_COVERED


@pytest.mark.parametrize("kind", kinds())
@pytest.mark.parametrize("load_w", [0.0, 0.004])
def test_a_load_that_cant_be_told_from_idle_is_below_resolution(kind, load_w, device):
    """A meter's clock is tied to the load's pattern: without one it isn't available, as its reason says."""
    said = {"prefill": 0, "decode": 0}
    for seed in range(CASES):
        try:
            run = synthetic.run_case(kind, seed, device, load_w)
        except PowerUnavailableError as error:
            assert kind == "meter" and "pattern is not to be seen" in str(error)
            run = {}
        for phase in said:
            said[phase] += phase not in run or run[phase].energy.net.status == "below_resolution"
    assert min(said.values()) >= LEAST_COVERED
