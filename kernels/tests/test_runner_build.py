"""The programs for devices: built by whatever compiler is here, checked as the device's linker would, started."""

from __future__ import annotations

import platform
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from edge.core.errors import EdgeError
from edge.kernels import elf, library_path, runner, toolchain
from edge.kernels.cross import sources

ARM_ROOT = Path("/usr/aarch64-linux-gnu")  # where Debian's libc6-arm64-cross keeps arm64's C library
QEMU = shutil.which("qemu-aarch64-static") or shutil.which("qemu-aarch64")
CLANG = bool(shutil.which("clang++") and shutil.which("ld.lld"))


def build(target: str) -> runner.Tools:
    try:
        return runner.build(target, library_path())  # the kernels' own build is test_cross.py's
    except EdgeError as error:
        if error.code != "kernels.no_cross_compiler":
            raise
        pytest.skip(error.hint)


def usage_of(command: list[str | Path]) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 2, done
    return done.stderr


@pytest.mark.parametrize("target", runner.PLATFORMS)
def test_the_programs_would_start_on_their_platform(target: str) -> None:
    tools = build(target)
    wanted = toolchain.PLATFORMS[target]
    for program in (tools.runner, tools.sampler):
        found = elf.read(program)
        assert found.interpreter == wanted.loader
        assert set(found.needed) <= set(wanted.libraries.values())
        assert not found.versioned  # so that any version of the C library will do
        assert all(s.alignment >= 16384 for s in found.segments if s.kind == elf.PT_LOAD)
        assert program.stat().st_mode & 0o111
    assert runner.build(target, library_path()).runner == tools.runner


def test_the_programs_of_this_machine_start() -> None:
    if sys.platform != "linux":
        pytest.skip("needs Linux")
    tools = build(f"linux-{platform.machine()}".replace("aarch64", "arm64"))
    assert "PLAN JOURNAL" in usage_of([tools.runner])
    assert "--columns" in usage_of([tools.sampler])


def test_any_compiler_of_this_machine_builds_its_programs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    own = shutil.which("g++") or shutil.which("c++")
    if own is None or platform.machine() not in toolchain.PROCESSORS or sys.platform != "linux":
        pytest.skip("needs a compiler for this machine")
    monkeypatch.setenv("EDGE_CACHE", str(tmp_path))
    monkeypatch.setattr(shutil, "which", lambda name: own if name == "c++" else None)
    tools = build(f"linux-{platform.machine()}".replace("aarch64", "arm64"))
    assert "PLAN JOURNAL" in usage_of([tools.runner])
    assert "--columns" in usage_of([tools.sampler])


@pytest.mark.skipif(QEMU is None or not (ARM_ROOT / "lib").is_dir(), reason="needs qemu-user and libc6-arm64-cross")
def test_the_programs_start_on_arm64() -> None:
    tools = build("linux-arm64")
    assert "PLAN JOURNAL" in usage_of([QEMU, "-L", ARM_ROOT, tools.runner])
    assert "--columns" in usage_of([QEMU, "-L", ARM_ROOT, tools.sampler])


def test_a_program_for_another_platform_fails_the_check() -> None:
    tools = build("linux-x86_64")
    symbols = runner.libc_symbols(sources() / "runner" / "libc.h")
    with pytest.raises(EdgeError, match=r"not for aarch64.*started by '/lib64") as error:
        toolchain.check(tools.runner, toolchain.PLATFORMS["android-arm64"], symbols, program=True)
    assert error.value.code == "kernels.cross_check"


def test_the_declarations_say_which_library_they_are_of() -> None:
    symbols = runner.libc_symbols(sources() / "runner" / "libc.h")
    assert {"dlopen", "dlsym"} <= set(symbols["libdl"])
    assert {"exp", "log"} == set(symbols["libm"])
    assert {"signal", "__libc_init", "__libc_start_main", "write"} <= set(symbols["libc"])
    assert "main" not in symbols["libc"]
