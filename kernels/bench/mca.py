"""How fast the ARM kernels could run: llvm-mca's count of cycles for the instructions that one tile really takes.

`python kernels/bench/mca.py` compiles the kernels with clang, multiplies a tile of 16 rows in an emulated CPU (QEMU),
has it write down every instruction between a kernel's first and last, and gives those to llvm-mca. It writes mca.json
and MCA.md. Static analysis: caches answer at once, no branch is mispredicted. It compares loops, it times no silicon.
LLVM_BIN is the folder with llvm-mca and llvm-objdump; versions before 16 take newer Cortex cores for a Cortex-A57.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

from edge.core.encoding import Affine, Codebook, Compressed, GroupMixed, Sparse
from edge.kernels.cross import ISA_FLAGS
from edge.kernels.pack import pack
from edge.kernels.testing import random_tensor

HERE = Path(__file__).resolve().parent
LLVM_BIN = os.environ.get("LLVM_BIN", "")
ROWS, COLUMNS, PROMPT = 16, 2048, 16
CORES = {
    "cortex-a55": "Cortex-A55",
    "neoverse-n2": "Neoverse N2, Cortex-A710",
    "neoverse-v2": "Neoverse V2, Cortex-X3",
    "apple-m1": "Apple M1",
}
ENCODINGS: dict[str, Compressed] = {
    "8 bits g64": Affine(8, 64),
    "4 bits g64": Affine(4, 64),
    "4 bits g32, zero points": Affine(4, 32, "zero_point"),
    "3 bits g64": Affine(3, 64),
    "2 bits g64": Affine(2, 64),
    "2 bits g128": Affine(2, 128),
    "table of 16": Codebook(4),
    "table of 8": Codebook(3),
    "table of 4": Codebook(2),
    "table of 16, int16": Codebook(4, entry="int16"),
    "table of 16 per row": Codebook(4, table_rows=1),
    "pairs, table of 16": Codebook(4, dim=2),
    "2 bits, an eighth of the groups 4 bits, g64": GroupMixed(64, COLUMNS // 64 // 8),
    "16x8 blocks of 4 bits g64": Sparse("16x8", 4, 64),
    "16x4 blocks of 4 bits g64": Sparse("16x4", 4, 64),
    "2:4, 4 bits g64": Sparse("2:4", 4, 64),
}


class Row(NamedTuple):
    """One kernel with one encoding: instructions and cycles for one token and for a prompt, by core."""

    encoding: str
    isa: str
    tile_bytes: int
    instructions: list[int]
    cycles: dict[str, list[int]]


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        program = compile_program(Path(folder))
        listing = disassemble(program)
        rows = [measure(program, listing, name, isa) for name in ENCODINGS for isa in isas_of(name)]
    version = re.search(r"LLVM version \S+", _run([f"{LLVM_BIN}llvm-mca", "--version"]))
    tool = version[0] if version else "llvm-mca"
    report = {"tool": tool, "rows": [row._asdict() for row in rows]}
    (HERE / "mca.json").write_text(json.dumps(report, indent=1) + "\n")
    (HERE / "MCA.md").write_text(table(tool, rows))


def compile_program(folder: Path) -> Path:
    sources = [s for s in HERE.parent.glob("src/*.cpp") if "_avx" not in s.name]
    clang = ["clang++", "--target=aarch64-linux-gnu", "-std=c++17", "-O3", "-ffp-contract=off", "-fno-exceptions"]

    def compile_one(source: Path) -> Path:
        isa = next((flags for name, flags in ISA_FLAGS.items() if source.stem.endswith(name)), [])
        built = folder / f"{source.stem}.o"
        _run([*clang, "-fno-rtti", *isa, f"-I{HERE.parent / 'include'}", "-c", source, "-o", built])
        return built

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        objects = list(pool.map(compile_one, [*sources, HERE / "mca_main.cpp"]))
    _run([*clang, "-static", *objects, "-o", folder / "program"])
    return folder / "program"


def disassemble(program: Path) -> dict[int, str]:
    """Every instruction by its address, in a form that llvm-mca reads: targets of jumps are left out."""
    text = _run([f"{LLVM_BIN}llvm-objdump", "-d", "--no-show-raw-insn", "--mattr=+dotprod,+i8mm", program])
    lines = re.findall(r"^\s*([0-9a-f]+):\s+([^<\n/]*)", text, re.MULTILINE)
    return {int(address, 16): re.sub(r"(?<=\s)0x[0-9a-f]+$", "#0", line.strip()) for address, line in lines}


def isas_of(name: str) -> list[str]:
    """Sparse matrices have no kernels of their own for i8mm."""
    return ["neon_dotprod"] if isinstance(ENCODINGS[name], Sparse) else list(ISA_FLAGS)


def measure(program: Path, listing: dict[int, str], name: str, isa: str) -> Row:
    packed = pack(random_tensor(ROWS, COLUMNS, ENCODINGS[name]))
    traces = [executed(program, listing, packed.tobytes(), isa, tokens) for tokens in (1, PROMPT)]
    cycles = {core: [simulate(trace, core) for trace in traces] for core in CORES}
    return Row(name, isa, packed.size - 64, [len(trace) for trace in traces], cycles)


def executed(program: Path, listing: dict[int, str], packed: bytes, isa: str, tokens: int) -> list[str]:
    """The instructions from the kernel's entry to its return."""
    symbols = _run([f"{LLVM_BIN}llvm-nm", "--demangle", program])
    entries = {int(a, 16) for a in re.findall(rf"^(\w+) T edge::\w+_a8_{isa}\(", symbols, re.MULTILINE)}
    if not entries:
        raise SystemExit(f"the program has no kernels for {isa}")
    folder = program.parent
    (folder / "packed").write_bytes(packed)
    emulator = ["qemu-aarch64-static", "-cpu", "max", "-singlestep", "-d", "exec,nochain", "-D", folder / "log"]
    _run([*emulator, program, folder / "packed", tokens], {"EDGE_KERNELS_ISA": isa})
    trace: list[str] = []
    before = back = 0
    with (folder / "log").open() as log:
        for line in log:
            address = int(line.split("/", 2)[1], 16)
            if not back and address in entries:
                back = before + 4
            if address == back:
                break
            if back:
                trace.append(listing[address])
            before = address
    return trace


def simulate(trace: list[str], core: str) -> int:
    command = [f"{LLVM_BIN}llvm-mca", "-mtriple=aarch64", f"-mcpu={core}", "-mattr=+dotprod,+i8mm", "-iterations=1"]
    done = _run([*command, "-instruction-info=0", "-resource-pressure=0"], text="\n".join(trace))
    cycles = re.search(r"Total Cycles:\s+(\d+)", done)
    if not cycles:
        raise SystemExit(f"llvm-mca said nothing about {core}")
    return int(cycles[1])


def table(tool: str, rows: list[Row]) -> str:
    heads = [f"{title}: bytes, MACs" for title in CORES.values()]
    lines = [
        "# The ARM kernels by static analysis",
        "",
        f"Made by `mca.py` with {tool} and QEMU; not measured on silicon. A tile of {ROWS} rows and {COLUMNS} columns:",
        "bytes of the packed stream a cycle with one token, and products (of all weights, stored or not) a cycle with",
        f"{PROMPT} tokens. Caches answer at once, no branch is mispredicted. Its model of the M1 is that of an older",
        "Apple core with three vector units; the M1 has four.",
        "",
        f"| encoding | bits a weight | kernel | {' | '.join(heads)} |",
        "|---|---|---|" + "---|" * len(heads),
    ]
    for row in rows:
        bits = 8 * row.tile_bytes / (ROWS * COLUMNS)
        macs = PROMPT * ROWS * COLUMNS
        cells = [f"{row.tile_bytes / one:.1f}, {macs / many:.0f}" for one, many in row.cycles.values()]
        lines.append(f"| {row.encoding} | {bits:.2f} | {row.isa} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _run(command: list[object], environment: dict[str, str] | None = None, text: str = "") -> str:
    words = [str(word) for word in command]
    env = None if environment is None else {**os.environ, **environment}
    done = subprocess.run(words, input=text, capture_output=True, text=True, check=False, env=env)
    if done.returncode:
        raise SystemExit(f"{words[0]}: {done.stderr.strip()[:2000]}")
    return done.stdout


if __name__ == "__main__":
    main()
