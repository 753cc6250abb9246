"""Safetensors files, memory-mapped. Every length and offset of the header is checked before anything is read."""

from __future__ import annotations

import math
import mmap
from pathlib import Path

import msgspec
import torch

from edge.core.errors import EdgeError
from edge.models.store import damaged

DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "U8": torch.uint8,
    "I8": torch.int8,
    "BOOL": torch.bool,
}
MAX_HEADER = 100 << 20


class Entry(msgspec.Struct, frozen=True):
    """One tensor of the header; offsets count from the header's end."""

    dtype: str
    shape: list[int]
    data_offsets: tuple[int, int]


class SafetensorsStore:
    """Tensors of one or several safetensors files."""

    def __init__(self, files: list[Path]) -> None:
        self.files = files
        self._maps: dict[Path, mmap.mmap] = {}
        self._entries: dict[str, tuple[Path, int, Entry]] = {}
        for path in files:
            start, header = read_header(path)
            self._entries.update({name: (path, start, entry) for name, entry in header.items()})

    def shapes(self) -> dict[str, tuple[int, ...]]:
        return {name: tuple(entry.shape) for name, (_, _, entry) in self._entries.items()}

    def stored_bytes(self, name: str) -> int:
        begin, end = self._entries[name][2].data_offsets
        return end - begin

    def read(self, name: str) -> torch.Tensor:
        path, start, entry = self._entries[name]
        if entry.dtype not in DTYPES:
            message = f"{path}: '{name}' has the type {entry.dtype}, which edge doesn't read"
            raise EdgeError("checkpoint.dtype", message, "convert the checkpoint to float32, float16 or bfloat16")
        dtype, count = DTYPES[entry.dtype], math.prod(entry.shape)
        if count == 0:
            return torch.empty(entry.shape, dtype=dtype)
        offset = start + entry.data_offsets[0]
        return torch.frombuffer(self._map(path), dtype=dtype, count=count, offset=offset).reshape(entry.shape)

    def release(self) -> None:
        for mapped in self._maps.values():
            mapped.madvise(mmap.MADV_DONTNEED)

    def _map(self, path: Path) -> mmap.mmap:
        if path not in self._maps:
            with path.open("rb") as file:  # copy-on-write: torch wants writable memory, the file stays as it is
                self._maps[path] = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
        return self._maps[path]


def read_header(path: Path) -> tuple[int, dict[str, Entry]]:
    """Where the data starts, and the checked entries. Raises `EdgeError` for a truncated or corrupt file."""
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if size < 8 or length > min(size - 8, MAX_HEADER):
            raise damaged(path, f"its header should have {length} bytes, the file has {size}")
        raw = file.read(length)
    try:
        table = msgspec.json.decode(raw, type=dict[str, msgspec.Raw])
        table.pop("__metadata__", None)
        header = {name: msgspec.json.decode(entry, type=Entry) for name, entry in table.items()}
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise damaged(path, f"its header is no safetensors header ({error})") from error
    for name, entry in header.items():
        _check_entry(path, name, entry, size - 8 - length)
    return 8 + length, header


def _check_entry(path: Path, name: str, entry: Entry, data_bytes: int) -> None:
    begin, end = entry.data_offsets
    if not 0 <= begin <= end <= data_bytes:
        raise damaged(path, f"'{name}' ends at byte {end} of {data_bytes}: the file is cut short")
    if min(entry.shape, default=1) < 0:
        raise damaged(path, f"'{name}' has the shape {entry.shape}")
    if entry.dtype in DTYPES and math.prod(entry.shape) * DTYPES[entry.dtype].itemsize != end - begin:
        raise damaged(path, f"'{name}' has {end - begin} bytes, which isn't {entry.dtype}{entry.shape}")
