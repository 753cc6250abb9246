"""What builds for another machine: any compiler for its processor will do, because little of a C library is needed.

The compiler gets no sysroot: `-ffreestanding -nostdlib` and stubs of the platform's libraries, made on the spot. So
what is built names no symbol version, loads on every Android since 7.0 (API 24) and on every glibc since 2.17, and is
aligned to 16 KB pages as Google Play asks.
"""

from __future__ import annotations

import os
import platform as this_machine
import shutil
import subprocess
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from edge.core.errors import EdgeError, UsageError, nearest
from edge.kernels import elf

PAGE = 16384
COMPILE = (
    *("-std=c++17", "-O3", "-fPIC", "-ffreestanding", "-nostdinc++", "-ffp-contract=off", "-fno-exceptions"),
    *("-fno-rtti", "-fno-threadsafe-statics", "-fno-stack-protector", "-fno-asynchronous-unwind-tables"),
    *("-fvisibility=hidden", "-fvisibility-inlines-hidden"),
)
LINK = (
    *("-nostdlib", "-Wl,--no-undefined", "-Wl,--hash-style=both", "-Wl,--build-id=none", "-Wl,--as-needed", "-Wl,-s"),
    f"-Wl,-z,max-page-size={PAGE}",
)
PROCESSORS = {"aarch64": elf.AARCH64, "x86_64": elf.X86_64}
PROCESSOR_FLAGS = {"aarch64": ("-mno-outline-atomics",), "x86_64": ()}
BIONIC = {"libc": "libc.so", "libpthread": "libc.so", "libdl": "libdl.so", "libm": "libm.so"}
GLIBC = {"libc": "libc.so.6", "libpthread": "libpthread.so.0", "libdl": "libdl.so.2", "libm": "libm.so.6"}


@dataclass(frozen=True)
class Platform:
    """What is built for. libraries: the real names of the C library's parts; loader: what starts programs."""

    name: str
    processor: str
    triple: str
    libraries: Mapping[str, str]
    loader: str

    @property
    def is_android(self) -> bool:
        return self.libraries is BIONIC

    @property
    def flags(self) -> tuple[str, ...]:
        """What its sources are compiled with, whichever compiler it is."""
        return (*PROCESSOR_FLAGS[self.processor], *(("-DEDGE_BIONIC=1",) if self.is_android else ()))


PLATFORMS = {
    platform.name: platform
    for platform in (
        Platform("android-arm64", "aarch64", "aarch64-linux-android24", BIONIC, "/system/bin/linker64"),
        Platform("android-x86_64", "x86_64", "x86_64-linux-android24", BIONIC, "/system/bin/linker64"),
        Platform("linux-arm64", "aarch64", "aarch64-linux-gnu", GLIBC, "/lib/ld-linux-aarch64.so.1"),
        Platform("linux-x86_64", "x86_64", "x86_64-linux-gnu", GLIBC, "/lib64/ld-linux-x86-64.so.2"),
    )
}


@dataclass(frozen=True)
class Compiler:
    """A C++ compiler: its name for people, and the command with which it starts."""

    name: str
    command: tuple[str, ...]

    def describe(self) -> str:
        return f"{self.name} ({self.command[0]})"

    def run(self, arguments: Iterable[str]) -> None:
        """Raises `EdgeError` (kernels.cross_build) with the compiler's message."""
        done = subprocess.run([*self.command, *arguments], capture_output=True, text=True, check=False)
        if done.returncode:
            lines = [line for line in done.stderr.splitlines() if "error" in line] or done.stderr.splitlines()[-1:]
            message = lines[0].strip() if lines else f"exit code {done.returncode}"
            hint = "a newer compiler may do: clang 12 or GCC 10 and later are known to"
            raise EdgeError("kernels.cross_build", f"{self.name}: {message}", hint)


def platform_named(name: str) -> Platform:
    """Raises `UsageError` with the nearest right name."""
    if name not in PLATFORMS:
        raise UsageError("kernels.target", f"nothing is built for '{name}'", nearest(name, PLATFORMS))
    return PLATFORMS[name]


def find_compiler(target: str) -> Compiler:
    """The NDK's clang for Android, else a clang with lld, else a GCC for that processor, else this machine's own.

    Raises `EdgeError` (kernels.no_cross_compiler) with what to install when there is none.
    """
    platform = platform_named(target)
    clang_target = (f"--target={platform.triple}", "-fuse-ld=lld")
    for variable in ("ANDROID_NDK_HOME", "ANDROID_NDK_ROOT") if platform.is_android else ():
        root = os.environ.get(variable)
        for clang in sorted(Path(root).glob("toolchains/llvm/prebuilt/*/bin/clang++")) if root else []:
            return Compiler("Android NDK", (str(clang), *clang_target))
    clang_path, gcc = shutil.which("clang++"), shutil.which(f"{platform.processor}-linux-gnu-g++")
    if clang_path and shutil.which("ld.lld"):
        return Compiler("clang", (clang_path, *clang_target))
    if gcc:
        return Compiler("GCC", (gcc,))
    if this_machine.machine() == platform.processor:
        own = next(filter(None, map(shutil.which, (os.environ.get("CXX", ""), "c++", "g++", "clang++"))), None)
        if own:
            return Compiler("this machine's compiler", (own,))
    ndk = ", or set ANDROID_NDK_HOME to an Android NDK" if platform.is_android else ""
    hint = f"install clang and lld (Debian: apt install clang lld){ndk}"
    raise EdgeError("kernels.no_cross_compiler", f"no C++ compiler for {target} was found", hint)


def stubs(compiler: Compiler, platform: Platform, symbols: Mapping[str, Iterable[str]], folder: Path) -> list[str]:
    """Libraries with the right names and symbols to link against; the device's own take their place.

    symbols: by the part of the C library that they are in: `libc`, `libpthread`, `libdl`, `libm`.
    """
    by_name: dict[str, set[str]] = {}
    for part, names in symbols.items():
        by_name.setdefault(platform.libraries[part], set()).update(names)
    made = []
    for soname, names in by_name.items():
        source, stub = folder / f"{soname}.cpp", folder / soname
        source.write_text("".join(f'extern "C" void {name}() {{}}\n' for name in sorted(names)))
        own = ["-shared", f"-Wl,-soname,{soname}", str(source), "-o", str(stub)]
        compiler.run(["-fPIC", "-ffreestanding", "-fno-builtin", *LINK, *own])
        made.append(str(stub))
    return made


def check(file: Path, platform: Platform, symbols: Mapping[str, Iterable[str]], *, program: bool = False) -> None:
    """Raise unless `file` is one that the platform's linker takes, on 4 KB and 16 KB pages.

    symbols: what it may need of the C library, as for `stubs`.
    """
    found = elf.read(file)
    loads = [s for s in found.segments if s.kind == elf.PT_LOAD]
    problems = []
    if found.machine != PROCESSORS[platform.processor]:
        problems.append(f"it is not for {platform.processor}")
    if any(s.alignment < PAGE or (s.offset - s.address) % PAGE for s in loads):
        problems.append("its segments are not aligned to 16 KB")
    if extra := found.undefined - {name for names in symbols.values() for name in names}:
        problems.append(f"it needs the symbols {', '.join(sorted(extra))}")
    if found.versioned or set(found.needed) - set(platform.libraries.values()):
        problems.append(f"it is tied to the libraries {', '.join(found.needed)}")
    if found.interpreter != (platform.loader if program else ""):
        problems.append(f"it is started by '{found.interpreter}'")
    if problems:
        where = "a phone" if platform.is_android else platform.name
        raise EdgeError("kernels.cross_check", f"{file.name} would not load on {where}: {'; '.join(problems)}")
