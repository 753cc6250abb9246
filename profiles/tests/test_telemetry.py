"""A device's files as a tree, the native sampler beside a program, and what is made of it. Nothing is measured."""

import math
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

import edge.kernels
from edge.core.errors import EdgeError
from edge.profiles import gauge, sampled, telemetry
from edge.profiles.journal import Attempt, Begin, Repeated, Span
from edge.profiles.mirror import mirror
from edge.profiles.plan import Plan
from edge.profiles.telemetry import Column
from edge.runtimes.probes.power.series import PowerUnavailableError
from edge.runtimes.transports.local import LocalConnection

MS, SECOND = 10**6, 10**9
CHIP = "sys/bus/i2c/devices/1-0040/hwmon/hwmon3"
JETSON = {
    "proc/cpuinfo": "processor\t: 0\nFeatures\t: fp asimd asimddp",
    "proc/meminfo": "MemTotal: 7620000 kB",
    "proc/device-tree/model": "NVIDIA Jetson Orin Nano Developer Kit\0",
    "proc/sys/kernel/random/boot_id": "b",
    "sys/class/thermal/thermal_zone0/type": "cpu-thermal",
    "sys/class/thermal/thermal_zone0/temp": "41500",
    "sys/class/thermal/thermal_zone10/type": "cpu-thermal",
    "sys/class/thermal/thermal_zone10/temp": "39000",
    "sys/class/thermal/thermal_zone2/type": "gpu-thermal",
    "sys/class/thermal/thermal_zone2/temp": "-256000",
    **{f"sys/devices/system/cpu/cpu{n}/cpufreq/scaling_cur_freq": "729600" for n in (0, 1, 10)},
    **{f"sys/devices/system/cpu/cpu{n}/cpufreq/scaling_max_freq": "1510400" for n in (0, 1, 10)},
    f"{CHIP}/in1_label": "VDD_IN",
    f"{CHIP}/in1_input": "5000",
    f"{CHIP}/curr1_input": "400",
    f"{CHIP}/in2_label": "VDD_SOC",
    f"{CHIP}/in2_input": "5000",
    f"{CHIP}/curr2_input": "100",
}


def write(root, files):
    for name, value in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{value}\n")
    return root


def test_columns_follow_from_the_tree(tmp_path):
    found = {c.name: c for c in telemetry.columns(write(tmp_path, JETSON))}
    assert list(found)[:4] == ["rail/VDD_IN/0", "rail/VDD_IN/1", "rail/VDD_SOC/0", "rail/VDD_SOC/1"]
    assert [name for name in found if name.startswith("frequency")] == [f"frequency/cpu{n}" for n in (0, 1, 10)]
    assert found["temperature/cpu-thermal"].path == "/sys/class/thermal/thermal_zone0/temp"
    assert found["temperature/cpu-thermal.10"].every == 10 and "temperature/gpu-thermal" not in found
    assert found["memory/proportional"].every == 50
    assert found["memory/peak"] == Column("memory/peak", "kB", "/proc/{pid}/status", "VmHWM:")
    assert telemetry.text([found["memory/peak"]]) == "memory/peak\tkB\t/proc/{pid}/status\tVmHWM:\t1\n"
    watched = telemetry.watched(tmp_path)
    assert watched["cap"][2] == "/sys/devices/system/cpu/cpu10/cpufreq/scaling_max_freq"
    assert len(watched["temperature"]) == 2


# ---- the native sampler ----


@pytest.fixture(scope="module")
def sampler(tmp_path_factory):
    compiler = shutil.which("g++") or shutil.which("clang++")
    if not compiler or sys.platform != "linux":
        pytest.skip("needs Linux and a C++ compiler")
    source = Path(edge.kernels.__file__).resolve().parents[1] / "runner" / "sampler.cpp"
    program = tmp_path_factory.mktemp("sampler") / "edge-sampler"
    flags = ["-std=c++17", "-O2", "-Wall", "-Wextra", "-Werror", "-ffreestanding", "-fno-exceptions", "-fno-rtti"]
    subprocess.run([compiler, *flags, "-o", program, source], check=True)
    return program


MEMORY = [
    Column("memory/resident", "kB", "/proc/{pid}/status", "VmRSS:"),
    Column("memory/peak", "kB", "/proc/{pid}/status", "VmHWM:"),
    Column("memory/proportional", "kB", "/proc/{pid}/smaps_rollup", "Pss:", 5),
]


def command(sampler, folder, columns, *program, interval_ms=20):
    (folder / "columns").write_text(telemetry.text(columns))
    options = ["--interval-ms", str(interval_ms), "--columns", folder / "columns", "--out", folder / "samples"]
    return [str(part) for part in (sampler, *options, "--", *program)]


def segments(folder):
    return sampled.parse((folder / "samples").read_bytes())


def attempt(segment):
    start = int(segment.time_ns[0])
    return Attempt(Begin(0, start, "p", "runner", 1, segment.boot), -start)


def test_it_watches_a_program_and_gives_its_exit_code_back(sampler, tmp_path):
    write(tmp_path, {"value": "x -17 4"})
    grows = "import time; time.sleep(.1); a = bytearray(60 << 20); time.sleep(.3); raise SystemExit(7)"
    columns = [*MEMORY, Column("first", "flag", tmp_path / "value"), Column("gone", "flag", tmp_path / "nothing")]
    done = subprocess.run(command(sampler, tmp_path, columns, sys.executable, "-c", grows), check=False)
    assert done.returncode == 7
    (found,) = segments(tmp_path)
    tracks = {t.name: t for t in sampled.tracks([found], columns, [attempt(found)])}
    resident = tracks["memory/resident"].values
    assert max(resident) > min(resident) + (50 << 20) and max(tracks["memory/peak"].values) >= max(resident)
    assert 0 < len(tracks["memory/proportional"].values) < len(resident) / 3
    assert set(tracks["first"].values) == {-17.0} and "gone" not in tracks
    assert tracks["memory/resident"].unit == "B" and tracks["memory/resident"].time_ns[0] == 0
    assert sampled.cost([found]).rate_hz == pytest.approx(50, rel=0.2)


def test_a_signal_that_ended_the_program_is_told_as_a_shell_does(sampler, tmp_path):
    ends = "import os; os.kill(os.getpid(), 9)"
    assert subprocess.run(command(sampler, tmp_path, MEMORY, sys.executable, "-c", ends), check=False).returncode == 137


def test_a_program_that_isnt_there(sampler, tmp_path):
    done = subprocess.run(command(sampler, tmp_path, MEMORY, "/no/such"), capture_output=True, check=False)
    assert done.returncode == 127 and b"can't run /no/such" in done.stderr


def test_the_samplers_end_is_not_the_programs(sampler, tmp_path):
    """SIGTERM goes to the program; after SIGKILL of the sampler the program does its work all the same."""
    works = f"import time; time.sleep(.5); open({str(tmp_path / 'done')!r}, 'w')"
    with subprocess.Popen(command(sampler, tmp_path, MEMORY, sys.executable, "-c", works)) as process:
        time.sleep(0.15)
        process.kill()
    for _ in range(100):
        if (tmp_path / "done").exists():
            break
        time.sleep(0.05)
    assert (tmp_path / "done").exists()
    with subprocess.Popen(command(sampler, tmp_path, MEMORY, "sleep", "20")) as process:
        time.sleep(0.15)
        process.send_signal(signal.SIGTERM)
        assert process.wait(5) == 128 + signal.SIGTERM
    killed, ended = segments(tmp_path)
    assert not killed.end and ended.end["code"] == 128 + signal.SIGTERM
    assert killed.boot == ended.boot and killed.time_ns[-1] < ended.time_ns[0]


def test_files_that_vanish_and_come_back(sampler, tmp_path):
    file = tmp_path / "value"
    file.write_text("1\n")
    columns = [Column("value", "flag", file)]
    with subprocess.Popen(command(sampler, tmp_path, columns, "sleep", "0.6")):
        time.sleep(0.2)
        file.write_text("")  # as a core that went offline: open, and no number in it
        time.sleep(0.2)
        file.write_text("2\n")
    values = segments(tmp_path)[0].column("value")
    assert set(values[~np.isnan(values)]) == {1.0, 2.0} and 5 < np.isnan(values).sum() < 15


def test_a_sampler_that_was_stopped_leaves_a_gap_and_keeps_its_beat(sampler, tmp_path):
    with subprocess.Popen(command(sampler, tmp_path, MEMORY, "sleep", "0.8")) as process:
        time.sleep(0.2)
        process.send_signal(signal.SIGSTOP)
        time.sleep(0.3)
        process.send_signal(signal.SIGCONT)
    (found,) = segments(tmp_path)
    steps = np.diff(found.time_ns)
    assert steps.max() > 250 * MS and np.median(steps) == pytest.approx(20 * MS, rel=0.1)
    beat = (found.time_ns[1:-1] - found.time_ns[0]) % (20 * MS) / MS
    assert np.median(np.minimum(beat, 20 - beat)) < 2 and found.end["late"] >= 1


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
def test_a_full_disk_ends_nothing(sampler, tmp_path):
    os.symlink("/dev/full", tmp_path / "samples")
    done = subprocess.run(command(sampler, tmp_path, MEMORY, "sh", "-c", "sleep .2; exit 3"), check=False)
    assert done.returncode == 3


def test_a_line_that_was_cut_off_is_taken_away_before_the_next(sampler, tmp_path):
    for _ in range(2):
        subprocess.run(command(sampler, tmp_path, MEMORY, "sleep", "0.1"), check=True)
        with (tmp_path / "samples").open("a") as file:
            file.write("123456\t7\t99")  # as a kill in the middle of a write leaves it
    assert len(segments(tmp_path)) == 2
    subprocess.run(command(sampler, tmp_path, MEMORY, "true"), check=True)
    assert len(segments(tmp_path)) == 3 and b"123456" not in (tmp_path / "samples").read_bytes()


@pytest.mark.parametrize(
    "text",
    [
        "5\t1\t2\n",
        "time_ns\tsweep_ns\ta\n5\t1\n",
        "time_ns\tsweep_ns\ta\n5\t1\tx\n",
        "time_ns\tsweep_ns\ta\nend\tcpu\n",
    ],
)
def test_what_no_sampler_writes_is_refused(text):
    with pytest.raises(EdgeError, match="damaged"):
        sampled.parse(text.encode())


# ---- energy from what it read ----

BOARD = """
import sys, time
def amps(value):
    with open(sys.argv[1], "r+") as file:
        file.write(f"{value}\\n")
marks = [time.monotonic_ns()]
for value, seconds in ((400, 1.2), (1400, .4), (1000, .6), (400, 1.2)):
    amps(value)
    time.sleep(seconds)
    marks.append(time.monotonic_ns())
print(*marks)
"""


def entries(marks, boot, throttled=False):
    t = [int(mark) for mark in marks]
    return [
        Begin(0, t[0], "p", "runner", 1, boot),
        Span(1, "idle before", t[0], t[1]),
        Span(2, "prefill", t[1], t[2], 16),
        Span(3, "decode", t[2], t[3], 8),
        Repeated(4, 0, 0, t[1], 16, t[2] - t[1], [t[3] - t[2]], 1, throttled=throttled),
        Span(5, "idle after", t[3], t[4]),
    ]


def test_energy_of_a_board_from_the_samplers_columns(sampler, tmp_path, monkeypatch):
    """A made-up board: 2 W at rest, 7 W in the prefill, 5 W in the decode."""
    monkeypatch.setenv("EDGE_CACHE", str(tmp_path / "cache"))
    board = write(tmp_path / "board", {name: value for name, value in JETSON.items()} | {f"{CHIP}/curr1_input": "0400"})
    tree = mirror(LocalConnection(), tmp_path / "tree", str(board))
    source, _ = telemetry.source_of(tree)
    columns = telemetry.columns(tree, str(board))
    program = [sys.executable, "-c", BOARD.replace("{value}", "{value:04}"), board / CHIP / "curr1_input"]
    done = subprocess.run(command(sampler, tmp_path, columns, *program), capture_output=True, text=True, check=True)
    found = segments(tmp_path)
    journal = entries(done.stdout.split(), found[0].boot)
    energy = telemetry.energy(journal, Plan(), sampled.from_samples(found, source))
    assert energy.source == "hardware_counter" and energy.reason.startswith("INA3221: VDD_IN")
    prefill, decode = energy.windows
    for window, watts in ((prefill, 5), (decode, 3)):
        assert abs(window.net_uj - 1e6 * watts * window.duration_ns / SECOND) < window.net_uncertainty_uj
        assert window.net_uncertainty_uj < 0.5 * window.net_uj and window.status == "ok"
    assert energy.tokens == 9 and energy.idle_uw == pytest.approx(2e6, rel=0.02)
    attempts = [Attempt(journal[0], -journal[0].at_ns, journal[1:])]
    power = {t.name: t for t in sampled.power_tracks(found, source, attempts)}
    assert set(power) == {"power/VDD_IN", "power/VDD_SOC"} and max(power["power/VDD_IN"].values) == 7e6
    tracks = {t.name: t for t in sampled.tracks(found, columns, attempts)}
    assert tracks["temperature/cpu-thermal"].values[0] == 41.5 and tracks["cap/cpu10"].values[0] == 1510400
    assert sampled.memory(found, attempts)[-1].resident_bytes > 1 << 20
    throttled = entries(done.stdout.split(), found[0].boot, throttled=True)
    assert "no repetition was kept" in telemetry.energy(throttled, Plan(), sampled.from_samples(found, source)).reason
    assert telemetry.energy(throttled, Plan(mode="sustained"), sampled.from_samples(found, source)).net_uj > 0
    assert "no idle" in telemetry.energy(journal[:4], Plan(), sampled.from_samples(found, source)).reason
    assert telemetry.energy(journal, Plan(), "no battery").reason == "no battery"


PHONE = {
    "sys/class/power_supply/battery/type": "Battery",
    "sys/class/power_supply/battery/status": "Discharging",
    "sys/class/power_supply/battery/capacity": "44",
    "sys/class/power_supply/battery/temp": "280",
    "sys/class/power_supply/battery/current_now": "-300000",
    "sys/class/power_supply/battery/voltage_now": "4000000",
    "sys/class/power_supply/usb/type": "USB",
    "sys/class/power_supply/usb/online": "0",
}


def phone(tmp_path, charger=0):
    """The sampler's text of a phone: 0.3 A at rest, 1 A under load from 70 to 130 s, a gauge renewed every 5 s."""
    tree = write(tmp_path, PHONE)
    source, _ = telemetry.source_of(tree)
    columns = telemetry.columns(tree)
    values = {"rail/battery/1": "4000000", "battery/level": "44", "temperature/battery": "280"}
    lines = ["time_ns\tsweep_ns\t" + "\t".join(c.name for c in columns), "begin\t0\t0\t0\t100000000\tb"]
    for tick in range(2000):
        renewed = tick // 50 * 5
        amount = -(1_000_000 if 70 < renewed <= 130 else 300_000) - 1000 * (renewed % 7)
        cells = values | {"rail/battery/0": str(amount), "charger/usb": str(charger)}
        lines.append(f"{tick * 100 * MS}\t1000\t" + "\t".join(cells.get(c.name, "-") for c in columns))
    return source, columns, sampled.parse(("\n".join(lines) + "\n").encode())


def test_a_phones_gauge_is_calibrated_by_the_run_itself(tmp_path):
    source, columns, found = phone(tmp_path)
    marks = [1 * SECOND, 68 * SECOND, 69 * SECOND, 129 * SECOND, 199 * SECOND]
    energy = telemetry.energy(entries(marks, "b"), Plan(), sampled.from_samples(found, source))
    assert energy.source == "gauge", energy.reason
    assert energy.idle_uw == pytest.approx(1.2e6, rel=0.05)
    decode = energy.windows[1]
    assert decode.net_uj == pytest.approx(2.8e6 * 60, rel=0.15) and decode.net_uncertainty_uj > 0.05 * decode.net_uj
    tracks = {t.name: t for t in sampled.tracks(found, columns, [Attempt(Begin(0, 0, "p", "runner", 1, "b"), 0)])}
    assert tracks["battery/level"].values[0] == 44 and tracks["temperature/battery"].values[0] == 28.0


def test_a_phone_that_slept_says_so(tmp_path):
    source, _, found = phone(tmp_path)
    found[0].suspended.append((50 * SECOND, 7 * SECOND))
    marks = [1 * SECOND, 68 * SECOND, 69 * SECOND, 129 * SECOND, 199 * SECOND]
    energy = telemetry.energy(entries(marks, "b"), Plan(), sampled.from_samples(found, source))
    assert "the device slept for 7 s" in energy.reason


def test_a_phone_on_a_charger_tells_nothing(tmp_path):
    source, _, found = phone(tmp_path, charger=1)
    with pytest.raises(PowerUnavailableError, match="while usb feeds the device"):
        sampled.series(found, source)
    write(tmp_path, {"sys/class/power_supply/battery/status": "Charging"})
    assert "while it is charging" in telemetry.source_of(tmp_path)[1]


def test_time_lines_of_another_boot_are_left_out():
    segment = sampled.Segment(["a"], boot="old")
    segment.add(5, 0, [1.0])
    attempts = [Attempt(Begin(0, 0, "p", "runner", 1, "new"), 0)]
    assert sampled.tracks([segment], [Column("a", "kHz", "/a")], attempts) == []
    assert math.isnan(segment.column("b")[0])


GAUGE = """
import sys, time
for i in range(200):
    with open(sys.argv[1], "r+") as file:
        file.write(f"{-300000 - i:07}\\n")
    time.sleep(.2)
"""


def test_the_rest_of_a_run_follows_the_gauges_own_period(sampler, tmp_path, monkeypatch):
    """A made-up gauge that is renewed five times a second, and one that stays at its value."""
    monkeypatch.setenv("EDGE_CACHE", str(tmp_path / "cache"))
    device = write(tmp_path / "device", PHONE)
    source, _ = telemetry.source_of(device)
    columns = telemetry.columns(device, str(device))
    connection = LocalConnection()
    assert source.idle_s == 180
    assert gauge.observed(connection, str(sampler), source, columns, 1).idle_s == 180
    with subprocess.Popen(
        [sys.executable, "-c", GAUGE, device / "sys/class/power_supply/battery/current_now"]
    ) as moves:
        assert gauge.observed(connection, str(sampler), source, columns, 3).idle_s == pytest.approx(18 * 0.2, rel=0.5)
        moves.kill()
