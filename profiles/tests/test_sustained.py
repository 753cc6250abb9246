"""Sustained runs of devices whose truth is known: speeds, when they were slowed, and by which cap."""

import numpy as np
import pytest

from edge.core.measurement import Energy, Measurement, Protocol, Repetition, Track
from edge.profiles.sustained import STEADY_CV, is_steady, sustained

SECOND = 1_000_000_000
TOKENS = 100


def a_run(speeds, tracks=(), cores=(), throttled=()):
    """Rounds of 100 decoded tokens and half a second of prefill, one after the other, from the third second on."""
    repetitions, at = [], 3 * SECOND
    for i, speed in enumerate(speeds):
        decode_ns = [round(SECOND / speed)] * TOKENS
        repetitions.append(
            Repetition(64, SECOND // 2, decode_ns, 0, [], start_ns=at, throttled=i in throttled, temperature_c=40.0)
        )
        at += SECOND // 2 + sum(decode_ns)
    known = {"bundle": "", "bundle_sha256": "", "name": "m", "kernels": "edge", "runtime": "onnx", "recipe": "int4"}
    return Measurement(
        **known,
        stored_bytes=1,
        bits_per_weight=4,
        device={},
        protocol=Protocol(64, TOKENS + 1, 0, len(speeds), 4, mode="sustained", cores=list(cores)),
        load_ns=1,
        repetitions=repetitions,
        operators=[],
        peak_bytes=1,
        memory=[],
        phases=[],
        energy=Energy("not_available"),
        tracks=list(tracks),
    )


def cap(name, *points):
    """(second, GHz) since the run's start."""
    times, values = zip(*points, strict=True)
    return Track(f"cap/{name}", "kHz", [round(t * SECOND) for t in times], [1e6 * v for v in values])


def noise(count, scale=0.01, seed=0):
    return 1 + scale * np.random.default_rng(seed).standard_normal(count)


def test_a_phone_that_throttles():
    speeds = [8, *(10 * noise(15)), *(6 * noise(25, seed=1))]
    rounds = a_run(speeds).repetitions
    at_s = rounds[16].start_ns / SECOND
    tracks = [
        cap("cpu0", (0, 1.8), (at_s + 5, 1.5), (400, 1.5)),
        cap("cpu7", (0, 2.8), (at_s - 4, 2.8), (at_s - 1, 1.7), (400, 2.8)),
        Track("temperature/skin", "C", [0, round((at_s - 2) * SECOND), 400 * SECOND], [30, 43, 50]),
        Track("temperature/cpu", "C", [0, round((at_s - 2) * SECOND), 400 * SECOND], [35, 71, 60]),
    ]
    found = sustained(a_run(speeds, tracks))
    assert found.cold == pytest.approx(8) and found.warm == pytest.approx(10, rel=0.01)
    assert found.sustained == pytest.approx(6, rel=0.01) and found.retention == pytest.approx(0.6, rel=0.02)
    assert found.steady and found.throttled_after_s == pytest.approx(at_s - 1 - 3)
    assert found.cause == "cpu7 fell from 2.80 to 1.70 GHz" and found.temperature_c == 71


def test_of_two_caps_the_one_that_took_more_is_the_cause():
    speeds = [*(10 * noise(12)), *(7 * noise(12))]
    at_s = a_run(speeds).repetitions[12].start_ns / SECOND
    tracks = [cap("cpu0", (0, 1.8), (at_s - 3, 1.7)), cap("cpu4", (0, 2.4), (at_s - 2, 1.2))]
    assert sustained(a_run(speeds, tracks)).cause.startswith("cpu4")
    kept = sustained(a_run(speeds, tracks, cores=[0, 1, 2, 3]))  # on the little cores: cpu4's cap is not theirs
    assert kept.cause == "cpu0 fell from 1.80 to 1.70 GHz" and kept.throttled_after_s == pytest.approx(at_s - 3 - 3)


def test_a_machine_that_holds_its_speed():
    found = sustained(a_run(20 * noise(30), [cap("cpu0", (0, 3.0), (100, 3.0))]))
    assert found.throttled_after_s is None and found.cause == "" and found.temperature_c is None
    assert found.retention == pytest.approx(1, abs=0.01) and found.steady


@pytest.mark.parametrize("seed", range(100))
def test_noise_is_no_throttling(seed):
    assert sustained(a_run(20 * noise(40, 0.02, seed))).throttled_after_s is None


@pytest.mark.parametrize("seed", range(20))
def test_a_step_among_noise_is_found_within_two_rounds(seed):
    speeds = np.concatenate([20 * noise(20, 0.02, seed), 16 * noise(20, 0.02, seed + 100)])
    wanted = (a_run(speeds).repetitions[20].start_ns - 3 * SECOND) / SECOND
    assert sustained(a_run(speeds)).throttled_after_s == pytest.approx(wanted, abs=15)


def test_a_speed_that_sinks_without_a_cap_is_told_as_that():
    speeds = [*(10 * noise(12)), *(8 * noise(12))]
    found = sustained(a_run(speeds))
    assert found.throttled_after_s == pytest.approx((a_run(speeds).repetitions[12].start_ns - 3 * SECOND) / SECOND)
    assert "no cap" in found.cause


def test_marked_rounds_tell_where_there_are_no_tracks():
    run = a_run([10.0] * 12, throttled=range(5, 12))
    assert sustained(run).throttled_after_s == pytest.approx(5 * 10.5)


def test_a_slow_decline_is_not_steady():
    found = sustained(a_run(np.linspace(10, 6, 20)))
    assert not found.steady and found.throttled_after_s is not None


def test_caps_before_and_after_the_rounds_say_nothing():
    tracks = [cap("cpu0", (0, 3.0), (1, 2.0), (999, 1.0))]  # lowered while loading, and again when it was over
    assert sustained(a_run([10.0] * 12, tracks)).throttled_after_s is None


@pytest.mark.parametrize("count", [1, 2, 3])
def test_few_rounds(count):
    found = sustained(a_run([10.0] * count))
    assert (found.cold, found.warm, found.sustained, found.steady) == (10, 10, 10, False)


def test_when_a_run_is_steady():
    assert is_steady([1.0] * 10, 10) and not is_steady([1.0] * 9, 10)
    assert is_steady([5.0, *(1.0 * noise(10, STEADY_CV / 2))], 10)
    assert not is_steady([1.0] * 5 + [1.2] * 5, 10)
