"""The slot numbers of `ort_abi.h` against the official header, where there is one."""

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


def compile_check(header: Path, abi: Path) -> subprocess.CompletedProcess[str]:
    compiler = shutil.which(os.environ.get("CXX", "c++")) or "c++"
    include = [f"-I{header.parent}", f"-I{abi}", f"-I{KERNELS / 'include'}"]
    command = [compiler, "-std=c++17", "-fsyntax-only", "-Wno-invalid-offsetof", *include, str(CHECK)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.fixture
def header() -> Path:
    found = official_header()
    if found is None:
        pytest.skip(HOW)
    return found


def test_slots_are_those_of_the_official_header(header):
    done = compile_check(header, KERNELS / "bind" / "ort")
    assert done.returncode == 0, done.stderr


def test_a_wrong_slot_would_be_noticed(header, tmp_path):
    abi = (KERNELS / "bind" / "ort" / "ort_abi.h").read_text()
    assert "EDGE_ORT_SLOT(62, GetDimensions" in abi
    (tmp_path / "ort_abi.h").write_text(
        abi.replace("EDGE_ORT_SLOT(62, GetDimensions", "EDGE_ORT_SLOT(63, GetDimensions")
    )
    done = compile_check(header, tmp_path)
    assert done.returncode != 0
    assert "slot of GetDimensions" in done.stderr
