"""The NEON kernels and the dispatch on 64-bit ARM, emulated: the same bits as NumPy."""

from __future__ import annotations

import shutil
import struct
import subprocess
from pathlib import Path

import numpy as np
import pytest

from edge.core.weight import Affine
from edge.kernels import pack, reference
from edge.kernels.lib import ACTIVATIONS, ISAS
from edge.kernels.testing import random_tensor

HERE = Path(__file__).resolve().parent
KERNELS = HERE.parent / "kernels"
COMPILER = shutil.which("aarch64-linux-gnu-g++")
QEMU = shutil.which("qemu-aarch64-static") or shutil.which("qemu-aarch64")

pytestmark = pytest.mark.skipif(
    not (COMPILER and QEMU),
    reason="needs aarch64-linux-gnu-g++ and qemu-aarch64 (Debian: apt install g++-aarch64-linux-gnu qemu-user-static)",
)


@pytest.fixture(scope="module")
def program(tmp_path_factory):
    """The sources and the runner, linked statically for aarch64."""
    folder = tmp_path_factory.mktemp("arm64")
    sources = [s for s in KERNELS.glob("src/*.cpp") if "_avx" not in s.name]
    flags = ["-std=c++17", "-O2", "-ffp-contract=off", "-fno-exceptions", "-fno-rtti", f"-I{KERNELS / 'include'}"]
    running = []
    for source in (*sources, HERE / "arm64_main.cpp"):
        isa = ["-march=armv8.2-a+dotprod"] if source.stem.endswith("dotprod") else []
        running.append(subprocess.Popen([COMPILER, *flags, *isa, "-c", source, "-o", folder / f"{source.stem}.o"]))
    assert not any(process.wait() for process in running)
    subprocess.run([COMPILER, "-static", *folder.glob("*.o"), "-o", folder / "runner"], check=True)
    return folder / "runner"


def run(program: Path, cpu: str, isa: str, cases: list) -> tuple[list[str], list[np.ndarray]]:
    """The instruction sets that `cpu` has, and the result of each case (packed, x, activations, rows)."""
    data = b""
    for packed, x, activations, rows in cases:
        sizes = (ISAS[isa], ACTIVATIONS[activations], packed.size, x.size, x.shape[0] * rows)
        data += struct.pack("<5I", *sizes) + packed.tobytes() + x.tobytes()
    done = subprocess.run([QEMU, "-cpu", cpu, program], input=data, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr.decode()
    line, _, rest = done.stdout.partition(b"\n")
    values = np.frombuffer(rest, np.float32)
    counts = np.cumsum([x.shape[0] * rows for _, x, _, rows in cases])
    parts = np.split(values, counts[:-1])
    return line.decode().split(), [p.reshape(x.shape[0], -1) for p, (_, x, _, _) in zip(parts, cases, strict=True)]


@pytest.fixture(scope="module")
def cases():
    """All bits, groups and grids at odd shapes, with several numbers of tokens."""
    random = np.random.default_rng(0)
    made = []
    for bits in (2, 3, 4, 8):
        for group_size in (0, 32, 64, 128):
            for grid in ("symmetric", "zero_point"):
                packed = pack(random_tensor(33, 228, Affine(bits, group_size, grid)))
                for tokens in (1, 7):
                    made.append((packed, random.standard_normal((tokens, 228)).astype(np.float32), "a8", 33))
                made.append((packed, random.standard_normal((2, 228)).astype(np.float32), "f32", 33))
    return made


@pytest.mark.parametrize(
    ("cpu", "isa", "expected_isas"),
    [
        ("max", "neon_dotprod", ["portable", "neon_dotprod"]),
        ("max", "portable", ["portable", "neon_dotprod"]),
        ("cortex-a72", "auto", ["portable"]),
    ],
)
def test_arm64_equals_numpy(program, cases, cpu, isa, expected_isas):
    isas, results = run(program, cpu, isa, cases)
    assert isas == expected_isas
    for (packed, x, activations, _), result in zip(cases, results, strict=True):
        assert np.array_equal(result, reference.linear(packed, x, activations))


def test_an_arm64_cpu_without_dotprod_refuses_it(program, cases):
    with pytest.raises(AssertionError, match="instruction set asked for"):
        run(program, "cortex-a72", "neon_dotprod", cases[:1])
