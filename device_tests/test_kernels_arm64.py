"""The kernels and the dispatch on 64-bit ARM, emulated: the same bits as NumPy."""

from __future__ import annotations

import os
import shutil
import struct
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest

from edge.kernels import pack, reference, reference_ops
from edge.kernels.cross import ISA_FLAGS
from edge.kernels.lib import CACHES
from edge.kernels.testing import EVERY_LAYOUT, random_cache_tables, random_tensor

HERE = Path(__file__).resolve().parent
KERNELS = HERE.parent / "kernels"
COMPILER = shutil.which("aarch64-linux-gnu-g++")
QEMU = shutil.which("qemu-aarch64-static") or shutil.which("qemu-aarch64")
ROWS, COLUMNS = 33, 228
TYPES = {"float32": 1, "uint8": 2, "int32": 6, "int64": 7}

pytestmark = pytest.mark.skipif(
    not (COMPILER and QEMU),
    reason="needs aarch64-linux-gnu-g++ and qemu-aarch64 (Debian: apt install g++-aarch64-linux-gnu qemu-user-static)",
)


class Case(NamedTuple):
    """One call of an operator, as the runner reads it, and the outputs that NumPy has for it."""

    call: bytes
    expected: list[np.ndarray]


class Result(NamedTuple):
    """What the runner printed: the CPU's instruction sets and kernels, the kernel of each Linear, all outputs."""

    isas: list[str]
    kernels: set[str]
    used: set[str]
    outputs: bytes


@pytest.fixture(scope="module")
def program(tmp_path_factory):
    """The sources and the runner, linked statically for aarch64."""
    folder = tmp_path_factory.mktemp("arm64")
    sources = [s for s in KERNELS.glob("src/*.cpp") if "_avx" not in s.name]
    flags = ["-std=c++17", "-ffp-contract=off", "-fno-exceptions", "-fno-rtti", f"-I{KERNELS / 'include'}"]

    def compile_one(source: Path) -> None:
        # the other sources are optimized, and tested so, for the build machine: here that would only take its time
        isa = next((["-O1", *more] for name, more in ISA_FLAGS.items() if source.stem.endswith(name)), ["-O0"])
        subprocess.run([COMPILER, *flags, *isa, "-c", source, "-o", folder / f"{source.stem}.o"], check=True)

    largest_first = sorted((*sources, HERE / "arm64_main.cpp"), key=lambda s: "neon" not in s.name)
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        list(pool.map(compile_one, largest_first))
    subprocess.run([COMPILER, "-static", *folder.glob("*.o"), "-o", folder / "runner"], check=True)
    return folder / "runner"


def case(operator: str, expected: list[np.ndarray], numbers: dict[str, float], **inputs: np.ndarray) -> Case:
    call = _name(operator) + struct.pack("<q", len(numbers))
    for name, number in numbers.items():
        call += _name(name) + struct.pack("<d", number)
    call += struct.pack("<q", len(inputs))
    for name, array in inputs.items():
        dims = (*array.shape, *[0] * (8 - array.ndim))
        call += _name(name) + struct.pack("<2i8q", TYPES[array.dtype.name], array.ndim, *dims) + array.tobytes()
    return Case(call, expected)


def _name(text: str) -> bytes:
    return text.encode().ljust(32, b"\0")


def run(program: Path, cpu: str, isa: str, cases: list[Case]) -> Result:
    done = subprocess.run(
        [QEMU, "-cpu", cpu, program],
        input=b"".join(case.call for case in cases),
        env={"EDGE_KERNELS_ISA": isa},
        capture_output=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr.decode()
    isas, kernels, outputs = done.stdout.split(b"\n", 2)
    return Result(isas.decode().split(), set(kernels.decode().split()), set(done.stderr.decode().split()), outputs)


def normal(random: np.random.Generator, *shape: int) -> np.ndarray:
    return random.standard_normal(shape).astype(np.float32)


def linear_cases(random: np.random.Generator) -> list[Case]:
    """Every layout at odd shapes; 31 tokens are blocks of 16, 8, 4, 2 and 1."""
    made = []
    for encoding in EVERY_LAYOUT:
        weight = pack(random_tensor(ROWS, COLUMNS, encoding))
        for number, activations, tokens in ((0, "a8", 1), (0, "a8", 31), (1, "f32", 3)):
            x = normal(random, tokens, COLUMNS)
            out = reference.linear(weight, x, activations)
            made.append(case("Linear", [out], {"rows": ROWS, "activations": number}, x=x, weight=weight))
        ids = np.array([0, ROWS - 1, 16])
        rows = reference.embedding(weight, ids)
        made.append(case("Embedding", [rows], {"columns": COLUMNS}, ids=ids, weight=weight))
    return made


def fused_cases(random: np.random.Generator) -> list[Case]:
    """What stands around a product: norms, the skip, a gated activation."""
    weight = pack(random_tensor(2 * ROWS, COLUMNS, EVERY_LAYOUT[0]))
    made = []
    for (norm, norm_number), (epilogue, epilogue_number) in (
        (("rms", 1), ("silu_gated", 3)),
        (("layer", 2), ("gelu", 1)),
    ):
        x, skip = normal(random, 3, COLUMNS), normal(random, 3, COLUMNS)
        given = {"norm_weight": normal(random, COLUMNS), "bias": normal(random, 2 * ROWS), "skip": skip}
        out = reference_ops.fused_linear(weight, x, norm=norm, epilogue=epilogue, **given)
        numbers = {"rows": 2 * ROWS, "norm": norm_number, "epilogue": epilogue_number}
        made.append(case("Linear", [out, x + skip], numbers, x=x, weight=weight, **given))
    return made


def attention_cases(random: np.random.Generator) -> list[Case]:
    """A prompt over a cache of each type, which it fills."""
    made = []
    plain, tables = [(cache, {}) for cache in ("f32", "f16", "int8")], ((4, 2), (3, 8), (2, 3), (8, 4))
    for cache, low_bits in (*plain, *(("table", {"key_bits": k, "value_bits": v, "outliers": 1}) for k, v in tables)):
        s = reference_ops.Attention(6, 2, 24, 0.2, cache, rotary_dim=16, window=9, softcap=5.0, **low_bits)
        keys, values = s.empty_cache(32), s.empty_cache(32, "values")
        given = {"cos": normal(random, 32, 8), "sin": normal(random, 32, 8), "q_norm": normal(random, 24)}
        if low_bits:
            given |= {"k_norm": normal(random, 24), **random_cache_tables(s)}
        qkv = normal(random, 19, 10 * 24)
        inputs = {"keys": keys[None].copy(), "values": values[None].copy(), "total": np.array(19, np.int32)}
        out = reference_ops.attention(s, qkv, keys, values, 0, **given)
        numbers = {
            "heads": 6,
            "kv_heads": 2,
            "head_dim": 24,
            "scale": 0.2,
            "window": 9,
            "softcap": 5.0,
            "cache": CACHES[cache],
            **low_bits,
        }
        made.append(case("Attention", [out, keys, values], numbers, qkv=qkv[None], **inputs, **given))
    return made


@pytest.fixture(scope="module")
def cases():
    random = np.random.default_rng(0)
    return [*linear_cases(random), *fused_cases(random), *attention_cases(random)]


@pytest.mark.parametrize(
    ("cpu", "isa", "isas"),
    [
        ("max", "neon_i8mm", ["portable", "neon_dotprod", "neon_i8mm"]),
        ("max", "neon_dotprod", ["portable", "neon_dotprod", "neon_i8mm"]),
        ("max", "portable", ["portable", "neon_dotprod", "neon_i8mm"]),
        ("neoverse-n1", "auto", ["portable", "neon_dotprod"]),
        ("cortex-a72", "auto", ["portable"]),
    ],
)
def test_arm64_equals_numpy(program, cases, cpu, isa, isas):
    result = run(program, cpu, isa, cases)
    assert result.isas == isas
    chosen = isas[-1] if isa == "auto" else isa
    assert result.used >= {name for name in result.kernels if name.endswith(chosen)}
    at = 0
    for number, (_, expected) in enumerate(cases):
        for array in expected:
            got = np.frombuffer(result.outputs, array.dtype, array.size, at)
            assert np.array_equal(got, array.reshape(-1), equal_nan=True), f"case {number}"
            at += array.nbytes
    assert at == len(result.outputs)


def test_an_arm64_cpu_without_an_instruction_set_refuses_it(program, cases):
    for cpu, isa in (("cortex-a72", "neon_dotprod"), ("neoverse-n1", "neon_i8mm")):
        with pytest.raises(AssertionError, match="instruction set asked for"):
            run(program, cpu, isa, cases[:1])
