"""A checkpoint whose tensors are made of another's when they are read: the same function by other weights."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from edge.models.checkpoint import Checkpoint

Change = Callable[[torch.Tensor], object]
"""Changes a float32 tensor in place: a matrix [out_features, in_features], however it is stored, or a vector."""


class DerivedStore:
    """Tensors of `checkpoint` with `changes`, in their order; those that nothing changes are as they are.

    copies: tensors that the checkpoint doesn't have, and those that they are made of.
    """

    def __init__(
        self, checkpoint: Checkpoint, changes: Mapping[str, Sequence[Change]], copies: Mapping[str, str]
    ) -> None:
        self.files = checkpoint.files
        self._checkpoint, self._changes, self._copies = checkpoint, changes, copies

    def shapes(self) -> dict[str, tuple[int, ...]]:
        names = {name: name for name in self._checkpoint.names()} | dict(self._copies)
        return {name: self._checkpoint.shape(source) for name, source in names.items()}

    def read(self, name: str) -> torch.Tensor:
        tensor = self._checkpoint.tensor(self._copies.get(name, name))
        if name not in self._changes:
            return tensor
        tensor = tensor.to(torch.float32, copy=True)
        for change in self._changes[name]:
            change(tensor.T if name in self._checkpoint.spec.transposed else tensor)
        return tensor

    def stored_bytes(self, name: str) -> int:
        return 4 * math.prod(self.shapes()[name])

    def release(self) -> None:
        self._checkpoint.release()


def derive(checkpoint: Checkpoint, changes: Mapping[str, Sequence[Change]], *, untied: bool = False) -> Checkpoint:
    """The checkpoint with `changes` by the names of tensors. untied: tensors that shared one get their own."""
    config, copies = checkpoint.config, {}
    if untied:
        copies = checkpoint.spec.tied_copies
        config = type(config).from_dict({**config.to_dict(), "tie_word_embeddings": False})
    return checkpoint.with_store(config, DerivedStore(checkpoint, changes, copies))
