"""Every board's file: its whole and its parts."""

import pytest

from edge.profiles.boards import boards, this_board
from edge.profiles.energy_meter import find_source

MODELS = {
    "NVIDIA Jetson Nano Developer Kit": "Jetson Nano",
    "NVIDIA Jetson Xavier NX Developer Kit": "Jetson Xavier NX",
    "Jetson-AGX": "Jetson AGX Xavier",
    "NVIDIA Jetson AGX Orin Developer Kit": "Jetson AGX Orin",
    "NVIDIA Jetson Orin NX Engineering Reference Developer Kit": "Jetson Orin NX, Orin Nano",
    "NVIDIA Jetson Orin Nano Developer Kit": "Jetson Orin NX, Orin Nano",
    "NVIDIA Jetson AGX Thor Developer Kit": "Jetson Thor",
}


@pytest.mark.parametrize("stem", boards())
def test_a_part_is_never_in_the_total(stem):
    board = boards()[stem]
    assert board.power.total and not set(board.power.total) & set(board.power.parts)
    assert board.total_of([*board.power.total, *board.power.parts]) == tuple(board.power.total)


@pytest.mark.parametrize(("model", "name"), MODELS.items())
def test_boards_are_known_by_their_device_tree(tmp_path, model, name):
    (tmp_path / "proc/device-tree").mkdir(parents=True)
    (tmp_path / "proc/device-tree/model").write_text(f"{model}\0")
    assert this_board(tmp_path).name == name


def test_no_board_and_an_unknown_one(tmp_path):
    assert this_board(tmp_path) is None
    (tmp_path / "proc/device-tree").mkdir(parents=True)
    (tmp_path / "proc/device-tree/model").write_text("Raspberry Pi 5")
    assert this_board(tmp_path) is None


def test_rails_behind_the_total_are_left_out_on_the_board_that_says_so(tmp_path):
    """A simulated AGX Orin: the memory's rail is fed by one that is summed."""
    (tmp_path / "proc/device-tree").mkdir(parents=True)
    (tmp_path / "proc/device-tree/model").write_text("NVIDIA Jetson AGX Orin Developer Kit\0")
    rails = {0: ("VDD_GPU_SOC", "VDD_CPU_CV", "VIN_SYS_5V0"), 1: ("NC", "VDDQ_VDD2_1V8AO", "NC")}
    for number, names in rails.items():
        chip = tmp_path / f"sys/bus/i2c/devices/1-004{number}/hwmon/hwmon{number}"
        chip.mkdir(parents=True)
        for n, name in enumerate(names, 1):
            for file, value in ((f"in{n}_label", name), (f"in{n}_input", 5000), (f"curr{n}_input", 100)):
                (chip / file).write_text(f"{value}\n")
    source, _ = find_source(tmp_path)
    assert source.total == ("VDD_GPU_SOC", "VDD_CPU_CV", "VIN_SYS_5V0") and len(source.channels) == 4
