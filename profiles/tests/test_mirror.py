"""A device's small files as a local tree, and answers that are none."""

import shutil
import subprocess

import pytest

from edge.core.errors import EdgeError
from edge.core.transport import Completed
from edge.profiles import telemetry
from edge.profiles.energy_meter import find_source
from edge.profiles.mirror import denied, mirror, parse
from edge.runtimes.probes.clock import frequencies_khz
from edge.runtimes.probes.thermal import zones

CHIP = "sys/bus/i2c/devices/1-0040/hwmon/hwmon3"
DEVICE = {
    "proc/cpuinfo": "processor\t: 0\n\nFeatures\t: fp asimd asimddp",
    "proc/device-tree/model": "NVIDIA Jetson Orin Nano Developer Kit\0",
    "sys/class/thermal/thermal_zone0/type": "cpu-thermal",
    "sys/class/thermal/thermal_zone0/temp": "41500",
    **{f"sys/devices/system/cpu/cpu{n}/cpufreq/scaling_cur_freq": "729600" for n in (0, 1, 10)},
    f"{CHIP}/in1_label": "VDD_IN",
    f"{CHIP}/in1_input": "5000",
    f"{CHIP}/curr1_input": "400",
    "etc/shadow": "secret",
    "proc/1/environ": "secret",
}


def write(root, files):
    for name, value in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{value}\n")
    return root


class Shell:
    """A device whose shell is this machine's."""

    class device:
        name = "stand-in"

    def __init__(self, root, shell="sh"):
        self.root, self.shell = root, shell

    def run(self, command, *, timeout_s=60, stdin=b""):
        done = subprocess.run([self.shell, *command[1:]], capture_output=True, timeout=timeout_s, check=False)
        return Completed(done.returncode, done.stdout, done.stderr)


@pytest.mark.parametrize("shell", ["sh", "bash", "mksh", "busybox"])
def test_a_device_as_a_local_tree(tmp_path, shell):
    """Every reader of this machine reads a device: Android has mksh, boards dash, bash or busybox."""
    if not shutil.which(shell):
        pytest.skip(f"{shell} isn't installed")
    device = write(tmp_path / "device", DEVICE)
    connection = Shell(device, shell)
    if shell == "busybox":
        connection.run = lambda command, **_: Shell.run(connection, ["busybox", "sh", *command[1:]])
    tree = mirror(connection, tmp_path / "tree", str(device))
    assert frequencies_khz(tree) == [729600] * 3
    assert [zone.name for zone in zones(tree)] == ["cpu-thermal"]
    assert find_source(tree)[0].total == ("VDD_IN",)
    assert (tree / "proc/cpuinfo").read_text() == DEVICE["proc/cpuinfo"] + "\n"
    assert not (tree / "etc").exists() and not (tree / "proc/1").exists()


def test_a_device_that_hides_its_counters_says_so(tmp_path):
    answer = b"=sys/class/powercap/intel-rapl:0/name\n package-0\n!sys/class/powercap/intel-rapl:0/energy_uj\n"
    connection = Shell(tmp_path)
    connection.run = lambda *_, **__: Completed(0, answer, b"")
    tree = mirror(connection, tmp_path / "tree")
    assert denied(tree) == ["sys/class/powercap/intel-rapl:0/energy_uj"]
    assert "not readable there: sys/class/powercap/intel-rapl:0/energy_uj" in telemetry.source_of(tree)[1]


@pytest.mark.parametrize(
    "answer",
    [
        b"=../../etc/passwd\n x\n",
        b"=/etc/passwd\n x\n",
        b"=proc/../etc/passwd\n",
        b"=proc/a\\b\n",
        b"=etc/passwd\n x\n",
        b"Welcome to this board\n",
        b"=proc/a\n" + b" \n" * 300_000,
        b" x" * 5_000_000,
        b"".join(b"=proc/%d\n" % n for n in range(9000)),
        b"=proc/a\n 1\n=proc/a/b\n 2\n",
    ],
)
def test_an_answer_that_is_none_is_refused(tmp_path, answer):
    connection = Shell(tmp_path)
    connection.run = lambda *_, **__: Completed(0, answer, b"")
    with pytest.raises(EdgeError) as caught:
        mirror(connection, tmp_path / "tree")
    assert caught.value.code == "device.answer" and caught.value.hint


def test_lines_may_end_as_a_terminal_ends_them():
    assert parse(b"=proc/a\r\n 1\r\n 2\r\n") == ({"proc/a": b"1\n2\n"}, [])
