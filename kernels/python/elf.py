"""Just enough of ELF to tell whether a shared library, or a program, will load on a device."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from pathlib import Path

from edge.core.errors import EdgeError

X86_64, AARCH64, SHARED = 62, 183, 3
PT_LOAD, PT_DYNAMIC, PT_INTERP = 1, 2, 3
DT_NEEDED, DT_HASH, DT_STRTAB, DT_SYMTAB, DT_VERNEED = 1, 4, 5, 6, 0x6FFFFFFE


@dataclass(frozen=True)
class Segment:
    """A program header: what maps `size` bytes at `offset` of the file to `address`."""

    kind: int
    offset: int
    address: int
    size: int
    alignment: int


@dataclass(frozen=True)
class SharedLibrary:
    """What a dynamic linker looks at, of a position-independent program too.

    undefined: the symbols that it must find elsewhere. interpreter: what starts a program, empty for a library.
    """

    machine: int
    segments: tuple[Segment, ...]
    needed: tuple[str, ...]
    undefined: frozenset[str]
    versioned: bool
    interpreter: str


def read(path: Path, *, symbols: bool = True) -> SharedLibrary:
    """Parse a little-endian 64-bit shared library or PIE program. Raises `EdgeError` (kernels.elf) for anything else.

    symbols: also those that it must find elsewhere, for which it has to have the older hash table.
    """
    data = path.read_bytes()
    try:
        return _parse(data, symbols)
    except (struct.error, ValueError, KeyError, StopIteration) as error:
        raise EdgeError("kernels.elf", f"{path} is not a shared library for Linux or Android: {error}") from error


def _parse(data: bytes, count_symbols: bool) -> SharedLibrary:
    if data[:6] != b"\x7fELF\x02\x01":
        raise ValueError("no 64-bit little-endian ELF header")
    kind, machine = struct.unpack_from("<HH", data, 16)
    (table,) = struct.unpack_from("<Q", data, 32)
    size, count = struct.unpack_from("<HH", data, 54)
    if kind != SHARED:
        raise ValueError("not a shared object")
    segments = tuple(_segment(data, table + i * size) for i in range(count))
    dynamic = next(s for s in segments if s.kind == PT_DYNAMIC)
    entries = list(struct.iter_unpack("<QQ", data[dynamic.offset : dynamic.offset + dynamic.size // 16 * 16]))
    tags = dict(reversed(entries))
    if count_symbols and DT_HASH not in tags:
        raise ValueError("its symbols can't be counted (link it with --hash-style=both)")
    strings = _offset(segments, tags[DT_STRTAB])
    needed = tuple(_string(data, strings + value) for tag, value in entries if tag == DT_NEEDED)
    symbols = _offset(segments, tags[DT_SYMTAB])
    number = struct.unpack_from("<I", data, _offset(segments, tags[DT_HASH]) + 4)[0] if count_symbols else 0
    undefined = set()
    for index in range(1, number):
        name, _, _, section = struct.unpack_from("<IBBH", data, symbols + 24 * index)
        if section == 0:
            undefined.add(_string(data, strings + name))
    interpreter = next((_string(data, s.offset) for s in segments if s.kind == PT_INTERP), "")
    return SharedLibrary(machine, segments, needed, frozenset(undefined), DT_VERNEED in tags, interpreter)


def _segment(data: bytes, at: int) -> Segment:
    kind, _, offset, address, _, size, _, alignment = struct.unpack_from("<IIQQQQQQ", data, at)
    return Segment(kind, offset, address, size, alignment)


def _offset(segments: tuple[Segment, ...], address: int) -> int:
    segment = next(s for s in segments if s.kind == PT_LOAD and s.address <= address < s.address + s.size)
    return segment.offset + address - segment.address


def _string(data: bytes, at: int) -> str:
    return data[at : data.index(b"\0", at)].decode()
