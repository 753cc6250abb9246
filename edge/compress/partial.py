"""The folder that grows: one safetensors file per finished unit, so that a killed run goes on where it was."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import msgspec
import torch
from safetensors.torch import save

from edge.core.console import info
from edge.core.errors import EdgeError
from edge.core.files import SCHEMA, read_json, write_atomic, write_json
from edge.models.safetensors_store import read_header

STATE = ".resume.json"
Tensors = dict[str, torch.Tensor]


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
        return self.path(unit).is_file()

    def write(self, unit: int, tensors: Tensors) -> None:
        """Write a whole unit in one step."""
        data = {name: tensor.contiguous() for name, tensor in tensors.items()}
        write_atomic(self.path(unit), save(data, metadata={"format": "pt"}))

    def close(self) -> None:
        """All units are there: write the index that names each tensor's file, and drop the state."""
        weight_map: dict[str, str] = {}
        total = 0
        for unit in range(self.units):
            names, size = _listing(self.path(unit))
            weight_map.update(dict.fromkeys(names, self.path(unit).name))
            total += size
        index = {"metadata": {"total_size": total}, "weight_map": weight_map}
        write_json(self.folder / "model.safetensors.index.json", index)
        (self.folder / STATE).unlink()

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
