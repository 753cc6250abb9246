"""Build the kernels library for a device, with whatever compiler is here (`toolchain.py`)."""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from edge.core.console import info
from edge.core.errors import EdgeError
from edge.core.files import cache_folder, full_disk_is_an_error
from edge.kernels.toolchain import COMPILE, LINK, Compiler, Platform, check, find_compiler, platform_named, stubs

LIBRARY = "libedge_kernels.so"
SYMBOLS = {
    "libc": ("clock_gettime", "free", "getauxval", "getenv", "malloc", "memcpy", "memset"),
    "libpthread": (
        *("pthread_cond_broadcast", "pthread_cond_init", "pthread_cond_signal", "pthread_cond_wait", "pthread_create"),
        *("pthread_join", "pthread_mutex_init", "pthread_mutex_lock", "pthread_mutex_unlock", "pthread_self"),
    ),
}
# By the end of a source's name. Those of x86-64 are CMakeLists.txt's too.
ISA_FLAGS = {"neon_dotprod": ["-march=armv8.2-a+dotprod"], "neon_i8mm": ["-march=armv8.2-a+dotprod+i8mm"]}
AVX512 = ["-mavx512f", "-mavx512bw", "-mavx512vl", "-mavx512vnni", "-mf16c"]
X86_FLAGS = {"avx2": ["-mavx2", "-mf16c", "-mfma"], "avx512": AVX512, "avx512vnni": AVX512}
OTHERS = {"aarch64": "avx", "x86_64": "neon"}


def cross_build(target: str, out: Path) -> Path:
    """Build libedge_kernels.so for `target` as the file `out`, check it, and return its path; the cache keeps it.

    Raises `EdgeError`: kernels.no_cross_compiler (what to install), kernels.no_sources, kernels.cross_build (the
    compiler's message), kernels.cross_check (the result would not load there).
    """
    out.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(kept_build(target), out)
    return out


def kept_build(target: str) -> Path:
    """The library for `target` in the cache, built where it isn't there. Raises as `cross_build`."""
    compiler, platform = find_compiler(target), platform_named(target)
    root = sources()
    kept = cache_folder() / f"kernels-{target}-{_digest(compiler, platform, root)}.so"
    if not kept.is_file():
        info(f"Building the kernels for {target} with {compiler.name}, once: a minute or two")
        kept.parent.mkdir(parents=True, exist_ok=True)
        with full_disk_is_an_error(kept), tempfile.TemporaryDirectory(dir=kept.parent) as folder:
            os.replace(_build(compiler, platform, root, Path(folder)), kept)
    return kept


def sources() -> Path:
    """The folder with src/, include/, bind/ and runner/: that of a checkout, else the copy in the installed package."""
    import edge.kernels

    checkout = Path(__file__).resolve().parent.parent
    for folder in (checkout, *(Path(place) / "csrc" for place in edge.kernels.__path__)):
        if (folder / "src" / "kernels.inc").is_file():
            return folder
    hint = "install edge from its repository, or run this in a checkout"
    raise EdgeError("kernels.no_sources", "the kernels' C++ sources are not installed", hint)


def _digest(compiler: Compiler, platform: Platform, root: Path) -> str:
    """What a build follows from: another source, flag or compiler, another library."""
    digest = hashlib.sha256(repr((compiler, platform, COMPILE, LINK, ISA_FLAGS, X86_FLAGS)).encode())
    for part in ("include", "src", "bind/ort"):
        for file in sorted((root / part).iterdir()):
            digest.update(file.name.encode() + b"\0" + file.read_bytes())
    return digest.hexdigest()[:16]


def _build(compiler: Compiler, platform: Platform, root: Path, folder: Path) -> Path:
    files = sorted((*root.glob("src/*.cpp"), *root.glob("bind/ort/*.cpp")))
    files = [file for file in files if f"_{OTHERS[platform.processor]}" not in file.name]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        objects = list(pool.map(lambda source: _compile(compiler, platform, root, source, folder), files))
    library = folder / LIBRARY
    libraries = stubs(compiler, platform, SYMBOLS, folder)
    named = ["-shared", f"-Wl,-soname,{LIBRARY}", "-o", str(library)]
    compiler.run([*LINK, *named, *map(str, objects), *libraries])
    check(library, platform, SYMBOLS)
    return library


def _compile(compiler: Compiler, platform: Platform, root: Path, source: Path, folder: Path) -> Path:
    built = folder / f"{source.parent.name}_{source.stem}.o"  # src/operators.cpp, bind/ort/operators.cpp
    known = ISA_FLAGS if platform.processor == "aarch64" else X86_FLAGS
    isa = next((flags for name, flags in known.items() if source.stem.endswith(f"_{name}")), [])
    include = [f"-I{root / part}" for part in ("include", "src")]
    compiler.run([*COMPILE, *platform.flags, *isa, *include, "-c", str(source), "-o", str(built)])
    return built
