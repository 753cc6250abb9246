"""ONNX Runtime's library for a device: which one, from where, and what isn't taken."""

from __future__ import annotations

import platform
import subprocess
import sys
import zipfile
from importlib import metadata
from pathlib import Path

import pytest

from edge.core.errors import EdgeError, UsageError
from edge.runtimes import _onnxruntime_library as library

HERE = f"linux-{platform.machine()}".replace("aarch64", "arm64")
OTHER = "linux-arm64" if HERE == "linux-x86_64" else "linux-x86_64"
MEMBER = "onnxruntime/capi/libonnxruntime.so.9.9.9"


def fake_elf(machine: int, needed: str) -> bytes:
    """A shared object that needs one library, as far as its header says."""
    import struct

    name = b"\0" + needed.encode() + b"\0"
    dynamic = struct.pack("<12Q", 5, 400, 6, 400, 1, 1, 0, 0, 0, 0, 0, 0)
    header = (
        b"\x7fELF\x02\x01\x01"
        + bytes(9)
        + struct.pack("<HHIQQQIHHHHHH", 3, machine, 1, 0, 64, 0, 0, 64, 56, 2, 0, 0, 0)
    )
    loads = struct.pack("<IIQQQQQQ", 1, 5, 0, 0, 0, 500, 500, 16384)
    loads += struct.pack("<IIQQQQQQ", 2, 4, 200, 200, 200, 96, 96, 8)
    data = bytearray(500)
    data[: len(header)], data[64:176], data[200:296], data[400 : 400 + len(name)] = header, loads, dynamic, name
    return bytes(data)


ARM, X86 = 183, 62
FOR = {
    "linux-x86_64": fake_elf(X86, "libc.so.6"),
    "linux-arm64": fake_elf(ARM, "libc.so.6"),
    "android-arm64": fake_elf(ARM, "libc.so"),
    "android-x86_64": fake_elf(X86, "libc.so"),
}


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("EDGE_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv(library.ANDROID, raising=False)
    return tmp_path / "cache"


@pytest.mark.skipif(sys.platform != "linux" or HERE not in library.MACHINES, reason="needs Linux on x86-64 or arm64")
def test_this_machine_s_is_the_installed_one() -> None:
    found = library.library_for(HERE)
    assert found.name.startswith("libonnxruntime.so")
    assert "onnxruntime/capi" in found.as_posix()
    assert library.version_for(HERE) == metadata.version("onnxruntime")


def test_another_machine_s_comes_out_of_its_wheel(monkeypatch: pytest.MonkeyPatch, cache: Path) -> None:
    """One member alone, wherever its name says that it belongs."""
    commands = []

    def pip(command: list[str], **_: object) -> subprocess.CompletedProcess[str]:
        commands.append(command)
        with zipfile.ZipFile(Path(command[command.index("-d") + 1]) / "onnxruntime-9-x.whl", "w") as wheel:
            wheel.writestr("../../../outside", "no")
            wheel.writestr(MEMBER, FOR[OTHER])
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(subprocess, "run", pip)
    found = library.library_for(OTHER)
    assert found.read_bytes() == FOR[OTHER]
    assert f"--platform=manylinux_2_28_{library.MACHINES[OTHER]}" in commands[0]
    assert f"onnxruntime=={metadata.version('onnxruntime')}" in commands[0]
    assert [path for path in cache.rglob("*") if path.is_file()] == [found]
    assert library.library_for(OTHER) == found
    assert len(commands) == 1


@pytest.mark.parametrize("other", [OTHER, "android-arm64"])
def test_without_a_network_it_says_what_to_do(other: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(command: list[str], **_: object) -> subprocess.CompletedProcess[str]:
        return subprocess.CompletedProcess(command, 1, "", "warning\nERROR: no such host\n")

    monkeypatch.setattr(subprocess, "run", fails)
    monkeypatch.setattr("shutil.which", lambda name: name)
    with pytest.raises(EdgeError, match="no such host") as error:
        library.library_for(other)
    assert error.value.code == "engine.library"
    assert error.value.hint


def test_android_without_npm_says_what_to_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.which", lambda name: None)
    with pytest.raises(EdgeError, match=f"set {library.ANDROID}"):
        library.library_for("android-arm64")


@pytest.mark.parametrize("target", ["android-arm64", "android-x86_64"])
def test_an_archive_that_is_named_is_used(target: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    archive = tmp_path / "onnxruntime.aar"
    with zipfile.ZipFile(archive, "w") as files:
        files.writestr("jni/arm64-v8a/libonnxruntime.so", FOR["android-arm64"])
        files.writestr("jni/x86_64/libonnxruntime.so", FOR["android-x86_64"])
    monkeypatch.setenv(library.ANDROID, str(archive))
    assert library.library_for(target).read_bytes() == FOR[target]
    monkeypatch.setenv(library.ANDROID, str(library.library_for(target)))
    assert library.library_for(target).read_bytes() == FOR[target]


def test_a_library_of_the_user_s_own(tmp_path: Path) -> None:
    own = tmp_path / "libonnxruntime.so.1.30.0"
    own.write_bytes(FOR["linux-arm64"])
    assert library.library_for("linux-arm64", own) == own


@pytest.mark.parametrize("target", FOR)
def test_the_library_of_another_platform_is_refused(target: str, tmp_path: Path) -> None:
    for other, content in FOR.items():
        own = tmp_path / other
        own.write_bytes(content)
        if other != target:
            with pytest.raises(EdgeError, match=f"is not for {target}") as error:
                library.library_for(target, own)
            assert error.value.code == "engine.library"


@pytest.mark.parametrize("content", [b"", b"not a library", b"PK\x03\x04damaged"])
def test_what_is_no_library_is_refused(content: bytes, tmp_path: Path) -> None:
    own = tmp_path / "libonnxruntime.so"
    own.write_bytes(content)
    with pytest.raises(EdgeError, match="not a shared library"):
        library.library_for("linux-arm64", own)
    with pytest.raises(EdgeError, match="is missing"):
        library.library_for("linux-arm64", tmp_path / "absent")


def test_a_cut_archive_is_refused(tmp_path: Path) -> None:
    archive = tmp_path / "onnxruntime.aar"
    with zipfile.ZipFile(archive, "w") as files:
        files.writestr("jni/arm64-v8a/libonnxruntime.so", FOR["android-arm64"])
    data = bytearray(archive.read_bytes())
    data[100] ^= 255
    archive.write_bytes(data)
    with pytest.raises(EdgeError, match="is damaged"):
        library.library_for("android-arm64", archive)


def test_an_unknown_platform_is_a_usage_error() -> None:
    with pytest.raises(UsageError, match="android-arm64"):
        library.library_for("android-arm32")
