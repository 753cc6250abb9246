"""Build the kernels library for a phone: any aarch64 compiler will do, because it needs little of libc.

The compiler gets no sysroot: `-ffreestanding -nostdlib` and a stub `libc.so` with bionic's soname. So the result names
no symbol version, loads on every Android since 7.0 (API 24), and is aligned to 16 KB pages as Google Play asks.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from edge.core.errors import EdgeError, UsageError, nearest
from edge.core.files import cache_folder, full_disk_is_an_error
from edge.kernels import elf

PAGE = 16384
LIBC = (
    *("clock_gettime", "free", "getauxval", "getenv", "malloc", "memcpy", "memset"),
    *("pthread_cond_broadcast", "pthread_cond_init", "pthread_cond_signal", "pthread_cond_wait", "pthread_create"),
    *("pthread_join", "pthread_mutex_init", "pthread_mutex_lock", "pthread_mutex_unlock", "pthread_self"),
)
TARGETS = ("android-arm64",)
COMPILE = [
    *("-std=c++17", "-O3", "-fPIC", "-ffreestanding", "-nostdinc++", "-ffp-contract=off", "-fno-exceptions"),
    *("-fno-rtti", "-fno-threadsafe-statics", "-fno-stack-protector", "-fno-asynchronous-unwind-tables"),
    *("-mno-outline-atomics", "-fvisibility=hidden", "-fvisibility-inlines-hidden"),
]
LINK = [
    *("-shared", "-nostdlib", "-Wl,--no-undefined", "-Wl,--hash-style=both", "-Wl,--build-id=none", "-Wl,-s"),
    f"-Wl,-z,max-page-size={PAGE}",
]
ISA_FLAGS = {"neon_dotprod": ["-march=armv8.2-a+dotprod"], "neon_i8mm": ["-march=armv8.2-a+dotprod+i8mm"]}


@dataclass(frozen=True)
class Compiler:
    """A C++ compiler for aarch64: its name for people, and the command with which it starts."""

    name: str
    command: tuple[str, ...]

    def describe(self) -> str:
        return f"{self.name} ({self.command[0]})"


def find_compiler(target: str) -> Compiler:
    """The NDK's clang, else a clang with lld, else GCC's cross compiler.

    Raises `EdgeError` (kernels.no_cross_compiler) with what to install when there is none.
    """
    if target not in TARGETS:
        raise UsageError("kernels.target", f"no kernels are built for '{target}'", nearest(target, TARGETS))
    clang_target = ("--target=aarch64-linux-android24", "-fuse-ld=lld")
    for variable in ("ANDROID_NDK_HOME", "ANDROID_NDK_ROOT"):
        root = os.environ.get(variable)
        for clang in sorted(Path(root).glob("toolchains/llvm/prebuilt/*/bin/clang++")) if root else []:
            return Compiler("Android NDK", (str(clang), *clang_target))
    clang_path, gcc = shutil.which("clang++"), shutil.which("aarch64-linux-gnu-g++")
    if clang_path and shutil.which("ld.lld"):
        return Compiler("clang", (clang_path, *clang_target))
    if gcc:
        return Compiler("GCC", (gcc,))
    hint = "install clang and lld (Debian: apt install clang lld), or set ANDROID_NDK_HOME to an Android NDK"
    raise EdgeError("kernels.no_cross_compiler", f"no C++ compiler for {target} was found", hint)


def cross_build(target: str, out: Path) -> Path:
    """Build libedge_kernels.so for `target` as the file `out`, check it, and return its path; the cache keeps it.

    Raises `EdgeError`: kernels.no_cross_compiler (what to install), kernels.no_sources, kernels.cross_build (the
    compiler's message), kernels.cross_check (the result would not load on a phone).
    """
    compiler = find_compiler(target)
    root = sources()
    kept = cache_folder() / f"kernels-{target}-{_digest(compiler, root)}.so"
    if not kept.is_file():
        kept.parent.mkdir(parents=True, exist_ok=True)
        with full_disk_is_an_error(kept), tempfile.TemporaryDirectory(dir=kept.parent) as folder:
            os.replace(_build(compiler, root, Path(folder)), kept)
    out.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(kept, out)
    return out


def _digest(compiler: Compiler, root: Path) -> str:
    """What a build follows from: another source, flag or compiler, another library."""
    digest = hashlib.sha256(repr((compiler, COMPILE, LINK, ISA_FLAGS)).encode())
    for part in ("include", "src", "bind/ort"):
        for file in sorted((root / part).iterdir()):
            digest.update(file.name.encode() + b"\0" + file.read_bytes())
    return digest.hexdigest()[:16]


def _build(compiler: Compiler, root: Path, folder: Path) -> Path:
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        objects = list(pool.map(lambda source: _compile(compiler, root, source, folder), _sources_for_arm(root)))
    library = folder / "libedge_kernels.so"
    soname = "-Wl,-soname,libedge_kernels.so"
    _run(compiler, [*LINK, soname, *map(str, objects), str(_stub_libc(compiler, folder)), "-o", str(library)])
    check(library)
    return library


def check(library: Path) -> None:
    """Raise unless `library` is one that Android's linker takes on 4 KB and 16 KB pages."""
    found = elf.read(library)
    loads = [s for s in found.segments if s.kind == elf.PT_LOAD]
    problems = []
    if found.machine != elf.AARCH64:
        problems.append("it is not for aarch64")
    if any(s.alignment < PAGE or (s.offset - s.address) % PAGE for s in loads):
        problems.append("its segments are not aligned to 16 KB")
    if extra := found.undefined - set(LIBC):
        problems.append(f"it needs the symbols {', '.join(sorted(extra))}")
    if found.versioned or set(found.needed) - {"libc.so"}:
        problems.append(f"it is tied to the libraries {', '.join(found.needed)}")
    if problems:
        raise EdgeError("kernels.cross_check", f"{library.name} would not load on a phone: {'; '.join(problems)}")


def sources() -> Path:
    """The folder with src/, include/ and bind/: that of a checkout, else the copy inside the installed package."""
    import edge.kernels

    checkout = Path(__file__).resolve().parent.parent
    for folder in (checkout, *(Path(place) / "csrc" for place in edge.kernels.__path__)):
        if (folder / "src" / "kernels.inc").is_file():
            return folder
    hint = "install edge from its repository, or run this in a checkout"
    raise EdgeError("kernels.no_sources", "the kernels' C++ sources are not installed", hint)


def _sources_for_arm(root: Path) -> list[Path]:
    sources = sorted((*root.glob("src/*.cpp"), *root.glob("bind/ort/*.cpp")))
    return [source for source in sources if "_avx" not in source.name]


def _compile(compiler: Compiler, root: Path, source: Path, folder: Path) -> Path:
    built = folder / f"{source.parent.name}_{source.stem}.o"  # src/operators.cpp, bind/ort/operators.cpp
    isa = next((flags for name, flags in ISA_FLAGS.items() if source.stem.endswith(name)), [])
    include = [f"-I{root / part}" for part in ("include", "src")]
    _run(compiler, [*COMPILE, *isa, *include, "-c", str(source), "-o", str(built)])
    return built


def _stub_libc(compiler: Compiler, folder: Path) -> Path:
    """A libc.so with the right name and the symbols above, to link against; the phone's own takes its place."""
    source, stub = folder / "libc.cpp", folder / "libc.so"
    source.write_text("".join(f'extern "C" void {name}() {{}}\n' for name in LIBC))
    _run(
        compiler,
        ["-fPIC", "-ffreestanding", "-fno-builtin", *LINK, "-Wl,-soname,libc.so", str(source), "-o", str(stub)],
    )
    return stub


def _run(compiler: Compiler, arguments: list[str]) -> None:
    done = subprocess.run([*compiler.command, *arguments], capture_output=True, text=True, check=False)
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if "error" in line] or done.stderr.splitlines()[-1:]
        message = lines[0].strip() if lines else f"exit code {done.returncode}"
        hint = "a newer compiler may do: clang 12 or GCC 10 and later are known to"
        raise EdgeError("kernels.cross_build", f"{compiler.name}: {message}", hint)
