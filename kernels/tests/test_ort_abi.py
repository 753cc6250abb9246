"""Slot numbers of `ort_abi.h` and the runner's `ort_session.h` against the official header, where there is one."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

KERNELS = Path(__file__).resolve().parent.parent
CHECK = KERNELS / "tests" / "ort_abi_check.cpp"
HEADER = "onnxruntime_c_api.h"
HOW = (
    f"no {HEADER}: set EDGE_ORT_HEADER to it or its folder (on Debian, kernels/tests/fetch_ort_header.sh gets it; "
    "elsewhere the npm package com.github.asus4.onnxruntime has it)"
)


def official_header() -> Path | None:
    """EDGE_ORT_HEADER (a file or a folder), else the usual include folders."""
    given = os.environ.get("EDGE_ORT_HEADER")
    roots = [Path(given)] if given else [Path("/usr/include/onnxruntime"), Path("/usr/local/include/onnxruntime")]
    for root in roots:
        if root.is_file():
            return root
        if found := sorted(root.rglob(HEADER)):
            return found[0]
    return None


def compile_check(header: Path, *abi: Path) -> subprocess.CompletedProcess[str]:
    compiler = shutil.which(os.environ.get("CXX", "c++")) or "c++"
    folders = [header.parent, *abi, KERNELS / "bind" / "ort", KERNELS / "runner", KERNELS / "include"]
    include = [f"-I{folder}" for folder in folders]
    command = [compiler, "-std=c++17", "-fsyntax-only", "-Wno-invalid-offsetof", *include, str(CHECK)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.fixture
def header() -> Path:
    found = official_header()
    if found is None:
        pytest.skip(HOW)
    return found


def test_slots_are_those_of_the_official_header(header):
    done = compile_check(header)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("file", "slot", "other"),
    [("bind/ort/ort_abi.h", "62, GetDimensions", "63"), ("runner/ort_session.h", "137, BindOutput", "138")],
)
def test_a_wrong_slot_would_be_noticed(file, slot, other, header, tmp_path):
    text = (KERNELS / file).read_text()
    number, name = slot.split(", ")
    assert f"EDGE_ORT_SLOT({slot}" in text
    (tmp_path / Path(file).name).write_text(
        text.replace(f"EDGE_ORT_SLOT({slot}", f"EDGE_ORT_SLOT({slot.replace(number, other)}")
    )
    done = compile_check(header, tmp_path)
    assert done.returncode != 0
    assert f"slot of {name}" in done.stderr
