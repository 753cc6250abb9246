"""The folder that grows: one safetensors file per finished unit, so that a killed run goes on where it was.

Beside each lies a JSON file with the encodings of its matrices, which a method may choose by the matrix. (Not in the
safetensors file: its header writes several notes in any order, and the same inputs are to give the same bytes.)
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import msgspec
import torch
from safetensors.torch import save

from edge.core.cache import CacheFormat
from edge.core.console import info
from edge.core.errors import EdgeError
from edge.core.files import SCHEMA, read_json, write_atomic, write_json
from edge.core.weight import Compressed, CompressedTensor
from edge.models.safetensors_store import read_header
from edge.models.stored import to_stored

STATE = ".resume.json"
CACHE, CACHE_FORMATS = "kv_cache.safetensors", ".kv_cache.json"


@dataclass
class UnitTensors:
    """What a unit becomes: `stored` by names in the file, and the encodings of the matrices that were compressed."""

    stored: dict[str, torch.Tensor] = field(default_factory=dict)
    encodings: dict[str, Compressed] = field(default_factory=dict)

    def add(self, tensor: CompressedTensor) -> None:
        self.stored |= to_stored(tensor)
        self.encodings[tensor.name] = cast(Compressed, tensor.encoding)


class Encodings(msgspec.Struct, frozen=True):
    """Encodings of a unit's compressed matrices by name."""

    encodings: dict[str, Compressed]
    schema: int = SCHEMA


class CacheFormats(msgspec.Struct, frozen=True):
    """How the KV cache of every layer is coded."""

    formats: list[CacheFormat]
    schema: int = SCHEMA


class State(msgspec.Struct, frozen=True):
    """Which job the folder belongs to."""

    key: str
    schema: int = SCHEMA


def job_key(*parts: Any) -> str:
    """Identity of a job: the digest of everything that decides its result."""
    return hashlib.sha256(msgspec.json.encode(parts, order="sorted")).hexdigest()


class PartialModel:
    """Files of a model in the making: unit i of n is `model-0000i-of-0000n.safetensors`."""

    def __init__(self, folder: Path, key: str, units: int) -> None:
        self.folder, self.units = folder, units
        if not self._belongs_to(key):
            _empty(folder)
            write_json(folder / STATE, State(key))
        for left_over in folder.glob(".*.tmp"):
            left_over.unlink()
        done = sum(self.finished(unit) for unit in range(units))
        if done:
            info(f"Going on with an interrupted run: {done} of {units} parts are done")

    def path(self, unit: int) -> Path:
        return self.folder / f"model-{unit + 1:05d}-of-{self.units:05d}.safetensors"

    def finished(self, unit: int) -> bool:
        return self.path(unit).is_file() and self._encodings_path(unit).is_file()

    def write(self, unit: int, tensors: UnitTensors) -> None:
        """Write a whole unit. It is finished when its tensors are there, which come last, in one step."""
        write_json(self._encodings_path(unit), Encodings(tensors.encodings))
        data = {name: tensor.contiguous() for name, tensor in tensors.stored.items()}
        write_atomic(self.path(unit), save(data, metadata={"format": "pt"}))

    def encodings(self, unit: int) -> dict[str, Compressed]:
        """Encodings of the compressed matrices of a finished unit by name."""
        return read_json(self._encodings_path(unit), Encodings).encodings

    def write_cache(self, formats: Sequence[CacheFormat], tensors: Mapping[str, torch.Tensor]) -> None:
        """Write the constants of the layers' caches. They are finished when their formats are there."""
        write_atomic(self.folder / CACHE, save(dict(tensors), metadata={"format": "pt"}))
        write_json(self.folder / CACHE_FORMATS, CacheFormats(list(formats)))

    def cache_formats(self) -> list[CacheFormat] | None:
        """What `write_cache` was given, None if nothing."""
        path = self.folder / CACHE_FORMATS
        return read_json(path, CacheFormats).formats if path.is_file() else None

    def close(self) -> dict[str, Compressed]:
        """All units are there: write the index that names each tensor's file, drop the state, return all encodings."""
        encodings: dict[str, Compressed] = {}
        weight_map: dict[str, str] = {}
        total = 0
        paths = [self.path(unit) for unit in range(self.units)]
        if self.cache_formats() is not None:
            paths.append(self.folder / CACHE)
        for path in paths:
            names, size = _listing(path)
            weight_map.update(dict.fromkeys(names, path.name))
            total += size
        for unit in range(self.units):
            encodings |= self.encodings(unit)
        index = {"metadata": {"total_size": total}, "weight_map": weight_map}
        write_json(self.folder / "model.safetensors.index.json", index)
        (self.folder / STATE).unlink()
        (self.folder / CACHE_FORMATS).unlink(missing_ok=True)
        for unit in range(self.units):
            self._encodings_path(unit).unlink()
        return encodings

    def _encodings_path(self, unit: int) -> Path:
        return self.folder / f".encodings-{unit + 1:05d}.json"

    def _belongs_to(self, key: str) -> bool:
        try:
            return read_json(self.folder / STATE, State).key == key
        except EdgeError:
            return False


def _listing(path: Path) -> tuple[Iterable[str], int]:
    _, header = read_header(path)
    return header, sum(entry.data_offsets[1] - entry.data_offsets[0] for entry in header.values())


def _empty(folder: Path) -> None:
    for path in folder.iterdir():
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()
