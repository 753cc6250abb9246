"""What a checkpoint's file format has to offer: named tensors, read one at a time."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import torch

from edge.core.errors import EdgeError


class TensorStore(Protocol):
    """Tensors of one checkpoint, in whatever files. Nothing is read before it is asked for."""

    files: list[Path]

    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        """Every tensor's shape, by the name that the store knows it under."""

    def read(self, name: str) -> torch.Tensor:
        """One tensor; it may share memory with the mapped file until `release`."""

    def stored_bytes(self, name: str) -> int:
        """Bytes that the tensor takes in its file."""

    def release(self) -> None:
        """Give the pages of the mapped files back, so that they don't count as memory of this process."""


def damaged(path: Path, why: str) -> EdgeError:
    """The error for a file whose bytes don't add up."""
    return EdgeError("checkpoint.corrupt", f"{path} is damaged: {why}", "download or copy the file again")


Json = dict[str, Any]
