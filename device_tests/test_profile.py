"""`edge profile` and what follows on it, over real adb and real ssh, on emulated arm64."""

from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
from pathlib import Path

import msgspec
import pytest

from edge.core.measurement import Measurement
from edge.runtimes._onnxruntime_library import ANDROID

from .faults import Faults, make_bundle
from .standin import Bench, Jetson, Phone, fetched_for
from .standin.phone import COMPILER
from .test_standin import until

FAULTS = 2
pytestmark = pytest.mark.timeout(600)  # the first one waits for the stand-ins and what runs there to be made


@pytest.fixture(scope="package")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_bundle(tmp_path_factory.mktemp("bundle"))


@pytest.fixture(scope="package")
def results(started: tuple[Bench, Phone, Jetson], bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """The bundle on the phone, on the Jetson at the same time, and on this machine."""
    bench, phone, jetson = started
    folder = tmp_path_factory.mktemp("results")
    runs = []
    for device in (phone.name, jetson.name, "cpu"):
        command = [
            "edge",
            "profile",
            bundle,
            "--device",
            device,
            "-p",
            "8",
            "-n",
            "4",
            "-o",
            folder / f"{len(runs)}.json",
        ]
        with (folder / f"{len(runs)}.log").open("wb") as log:
            runs.append(subprocess.Popen([*command, "--fresh"], env=bench.environment, stdout=log, stderr=log))
    try:
        until(lambda: all(run.poll() is not None for run in runs), 250)
    finally:
        for run in runs:
            run.kill()
        said = [file.read_text()[-2000:] for file in sorted(folder.glob("*.log"))]
        assert [run.wait() for run in runs] == [0, 0, 0], said
    return sorted(folder.glob("*.json"))


def read(file: Path) -> Measurement:
    return msgspec.json.decode(file.read_bytes(), type=Measurement)


def test_two_devices_at_once_run_it_natively_and_say_that_they_are_emulated(results):
    *there, here = map(read, results)
    for measurement in there:
        assert measurement.engine == "runner" and measurement.emulated
        assert measurement.parity.top1_equal
        assert measurement.parity.kl_divergence <= measurement.parity.kl_divergence_limit
        assert len(measurement.repetitions) >= 5
        assert all(repetition.prompt_tokens == 8 for repetition in measurement.repetitions)
        assert measurement.operators and measurement.peak_bytes > 1 << 20
        assert measurement.sampler is not None and not measurement.problem
    assert not here.emulated


def test_clocks_temperatures_memory_and_power_are_recorded_there(results):
    phone, jetson = (set(track.name for track in read(file).tracks) for file in results[:2])
    assert {"frequency/cpu0", "cap/cpu0", "memory/resident", "temperature/soc-thermal", "battery/level"} <= phone
    assert {"frequency/cpu0", "cap/cpu0", "memory/resident", "temperature/cpu-thermal", "power/VDD_IN"} <= jetson


def test_a_boards_rail_is_read_as_it_is_and_a_run_too_short_for_it_has_no_energy(results):
    """5 V and 1.1 A with a swing of a tenth, ten times a second; the repetitions take less than that."""
    measurement = read(results[1])
    (power,) = (track.values for track in measurement.tracks if track.name == "power/VDD_IN")
    assert 5.5e6 * 0.89 < min(power) < max(power) < 5.5e6 * 1.11
    assert measurement.energy.energy_uj is None and "readings" in measurement.energy.reason


def test_the_report_does_not_rank_them_with_real_ones(results, bench, tmp_path):
    out = tmp_path / "report.html"
    done = subprocess.run(["edge", "report", *results, "-o", out], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    card = out.with_suffix(".md").read_text()
    print(card)
    assert "emulated" in card.lower()


def test_a_comparison_of_emulated_with_real_is_refused(results, bench):
    done = subprocess.run(["edge", "compare", results[0], results[2]], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "emulated" in done.stderr


def test_a_full_disk_ends_the_run_and_room_lets_it_go_on(bench, bundle, tmp_path):
    jetson = bench.jetson(disk_bytes=64 << 20)
    command = [
        "edge",
        "profile",
        bundle,
        "--device",
        jetson.name,
        "-p",
        "4",
        "-n",
        "4",
        "-r",
        "10",
        "--cool-down",
        "0.2",
    ]
    command += ["-o", tmp_path / "out.json"]

    def there(script: str) -> str:
        return subprocess.run(["ssh", jetson.alias, script], capture_output=True, text=True, check=False).stdout

    def journal() -> list[str]:
        return there("cat .cache/edge/device/runs/*/journal").splitlines()

    first = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    until(lambda: any('"repetition"' in line for line in journal()), 90)
    there("cat /dev/zero >fill")
    said, _ = first.communicate(timeout=100)
    assert first.returncode == 1 and "room" in said, said
    before = [line for line in journal() if '"repetition"' in line]
    there("rm fill")
    second = subprocess.run(command, capture_output=True, text=True, check=False)
    assert second.returncode == 0, second.stderr
    assert before
    kept = [json.loads(line)["decode_ns"] for line in before]
    assert [repetition.decode_ns for repetition in read(tmp_path / "out.json").repetitions][: len(kept)] == kept


@pytest.mark.skipif(not shutil.which(COMPILER), reason=f"needs {COMPILER} (Debian: g++-aarch64-linux-gnu)")
def test_androids_own_library_runs_there(bench, bundle, tmp_path):
    """ONNX Runtime as it is shipped for Android, the runner and the kernels built for Android."""
    if not (fetched_for("android-arm64") or os.environ.get(ANDROID)):
        pytest.skip(f"ONNX Runtime for Android isn't here: run `make device-test` online, with npm, or set {ANDROID}")
    phone = bench.phone(android=True)
    command = ["edge", "profile", bundle, "--device", phone.name, "-p", "4", "-n", "4", "-o", tmp_path / "out.json"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    measurement = read(tmp_path / "out.json")
    assert measurement.device["platform"] == "android-arm64" and measurement.emulated
    assert measurement.parity.top1_equal and len(measurement.repetitions) >= 5


@pytest.mark.parametrize("name", ["phone", "jetson"])
def test_nothing_is_lost_or_counted_twice(request, bench, bundle, name):
    faults = Faults(bench, request.getfixturevalue(name), bundle, random.Random(name))
    faults.make(FAULTS)
    assert faults.runs and faults.repetitions
