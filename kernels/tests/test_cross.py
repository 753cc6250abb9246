"""The library for a phone: built by whatever compiler is here, checked as Android's linker would."""

from __future__ import annotations

import shutil

import pytest

from edge.core.errors import EdgeError, UsageError
from edge.kernels import cross, elf, library_path, toolchain

PHONE = toolchain.PLATFORMS["android-arm64"]
COMPILERS = {
    "clang": bool(shutil.which("clang++") and shutil.which("ld.lld")),
    "gcc": bool(shutil.which("aarch64-linux-gnu-g++")),
}


@pytest.mark.parametrize("kind", COMPILERS)
def test_the_library_would_load_on_a_phone(kind, monkeypatch, tmp_path):
    if not COMPILERS[kind]:
        pytest.skip("needs clang and lld, or g++-aarch64-linux-gnu (Debian packages)")
    for variable in ("ANDROID_NDK_HOME", "ANDROID_NDK_ROOT"):
        monkeypatch.delenv(variable, raising=False)
    if kind == "gcc":
        which = shutil.which
        monkeypatch.setattr(shutil, "which", lambda name: None if name == "clang++" else which(name))
    built = cross.cross_build("android-arm64", tmp_path / "lib" / "libedge_kernels.so")
    found = elf.read(built)
    assert found.machine == elf.AARCH64
    assert found.needed == ("libc.so",)
    assert found.undefined == {name for names in cross.SYMBOLS.values() for name in names}
    assert not found.versioned
    assert all(s.alignment >= 16384 for s in found.segments if s.kind == elf.PT_LOAD)


@pytest.mark.parametrize("target", toolchain.PLATFORMS)
def test_a_load_is_no_call(target, tmp_path):
    """Without a host a compiler calls memcpy for every few bytes, unless it is told otherwise: five times slower."""
    source, built = tmp_path / "load.cpp", tmp_path / "load.o"
    source.write_text('#include "support.h"\nfloat first(const char* at) { return edge::load<float>(at); }\n')
    try:
        compiler = toolchain.find_compiler(target)
    except EdgeError as error:
        pytest.skip(error.hint)
    flags = [*toolchain.COMPILE, *toolchain.PLATFORMS[target].flags, f"-I{cross.sources() / 'src'}"]
    compiler.run([*flags, "-c", str(source), "-o", str(built)])
    assert b"memcpy" not in built.read_bytes()


def test_a_library_for_this_machine_fails_the_check(tmp_path):
    with pytest.raises(EdgeError, match="would not load on a phone") as error:
        toolchain.check(library_path(), PHONE, cross.SYMBOLS)
    assert error.value.code == "kernels.cross_check"


@pytest.mark.parametrize(
    "content", [b"", b"not a library", b"\x7fELF\x02\x01" + bytes(58), b"\x7fELF\x02\x01\xff" * 40]
)
def test_damaged_libraries_are_refused(content, tmp_path):
    path = tmp_path / "lib.so"
    path.write_bytes(content)
    with pytest.raises(EdgeError) as error:
        toolchain.check(path, PHONE, cross.SYMBOLS)
    assert error.value.code == "kernels.elf"


def test_a_cut_library_is_refused(tmp_path):
    path = tmp_path / "lib.so"
    path.write_bytes(library_path().read_bytes()[:2000])
    with pytest.raises(EdgeError) as error:
        toolchain.check(path, PHONE, cross.SYMBOLS)
    assert error.value.code == "kernels.elf"


def test_no_compiler_names_what_to_install(monkeypatch, tmp_path):
    monkeypatch.setattr(shutil, "which", lambda name: None)
    for variable in ("ANDROID_NDK_HOME", "ANDROID_NDK_ROOT"):
        monkeypatch.delenv(variable, raising=False)
    with pytest.raises(EdgeError, match="apt install clang lld") as error:
        cross.cross_build("android-arm64", tmp_path / "lib.so")
    assert error.value.code == "kernels.no_cross_compiler"


def test_an_unknown_target_is_a_usage_error(tmp_path):
    with pytest.raises(UsageError, match="android-arm64"):
        cross.cross_build("android-arm32", tmp_path / "lib.so")


def test_a_failing_compiler_is_quoted(tmp_path):
    compiler = toolchain.Compiler("GCC", (shutil.which("c++") or "c++",))
    with pytest.raises(EdgeError) as error:
        compiler.run(["-c", str(tmp_path / "absent.cpp"), "-o", str(tmp_path / "x.o")])
    assert error.value.code == "kernels.cross_build"
    assert "absent.cpp" in error.value.message
