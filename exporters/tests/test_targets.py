"""What targets add to a bundle."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import pytest

from edge.core.errors import EdgeError
from edge.core.plugins import TARGETS
from edge.exporters import android, cpu


@pytest.mark.parametrize("name", TARGETS.names())
def test_every_target_describes_itself(name: str) -> None:
    target = TARGETS.load(name).TARGET
    assert target.name == name
    assert target.description
    assert all(find_spec(f"edge.exporters.{runtime}.export") for runtime in target.runtimes)


def test_cpu_adds_nothing(tmp_path: Path) -> None:
    assert cpu.finish(tmp_path, "edge") == []
    assert not any(tmp_path.iterdir())


def test_android_brings_its_library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def build(target: str, out: Path) -> Path:
        assert target == "android-arm64"
        out.parent.mkdir(parents=True)
        out.write_bytes(b"\x7fELF")
        return out

    monkeypatch.setattr("edge.kernels.cross.cross_build", build)
    assert android.finish(tmp_path, "edge") == []
    assert (tmp_path / "lib/arm64-v8a/libedge_kernels.so").is_file()


def test_android_without_a_compiler_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def build(target: str, out: Path) -> Path:
        raise EdgeError("kernels.no_cross_compiler", "no compiler for arm64", "apt install g++-aarch64-linux-gnu")

    monkeypatch.setattr("edge.kernels.cross.cross_build", build)
    (note,) = android.finish(tmp_path, "edge")
    assert "no compiler for arm64" in note
    assert "g++-aarch64-linux-gnu" in note
    assert not any(tmp_path.iterdir())
    assert android.finish(tmp_path, "builtin") == []
