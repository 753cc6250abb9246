"""The last steps of a recipe: methods that change the compressed model as a whole."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from edge.compress.partial import PartialModel, UnitTensors
from edge.core.cache import CacheFormat
from edge.core.weight import Compressed, CompressedTensor
from edge.models.checkpoint import Checkpoint, CompressionSettings
from edge.models.safetensors_store import SafetensorsStore
from edge.models.stored import from_stored, stored_names

TaskLoss = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
"""Logits [windows, length, vocabulary] and token ids [windows, length] to a scalar."""

if TYPE_CHECKING:
    from edge.compress.run import Job


@dataclass(frozen=True)
class Finished:
    """A compressed model whose units are all there.

    checkpoint: what was compressed. original: the same before the recipe's first steps rewrote it. windows: calibration
    tokens [samples, sequence_length]. folder: for a method's own state, in files whose names begin with a dot, which it
    removes at the end. own: options of the matrices that the step compressed itself, by name.
    """

    checkpoint: Checkpoint
    original: Checkpoint
    windows: torch.Tensor
    folder: Path
    seed: int
    own: Mapping[str, Any]
    _job: Job
    _partial: PartialModel

    @property
    def task_loss(self) -> TaskLoss | None:
        """The caller's own loss, None for that of the next token."""
        return self._job.task_loss

    def compressed(self) -> dict[str, CompressedTensor]:
        """All compressed matrices by name, rows by columns however the checkpoint stores them."""
        found = {}
        for unit in range(self._partial.units):
            read = SafetensorsStore([self._partial.path(unit)]).read
            for name, encoding in self._partial.encodings(unit).items():
                shape = self.checkpoint.matrix_shape(name)
                found[name] = from_stored(name, shape, encoding, read, stored_names(name, shape, encoding))
        return found

    def plain(self) -> dict[str, torch.Tensor]:
        """All other tensors by name, float32."""
        found = {}
        for unit, names in enumerate(self._job.units):
            read = SafetensorsStore([self._partial.path(unit)]).read
            encodings = self._partial.encodings(unit)
            found.update({name: read(name).float().clone() for name in names if name not in encodings})
        return found

    def compressed_checkpoint(self) -> Checkpoint:
        """The model as it is now."""
        encodings: dict[str, Compressed] = {}
        for unit in range(self._partial.units):
            encodings |= self._partial.encodings(unit)
        store = SafetensorsStore([self._partial.path(unit) for unit in range(self._partial.units)])
        settings = CompressionSettings(encodings, self._job.recipe.activations)
        return self.checkpoint.with_store(self.checkpoint.config, store, settings)

    def add_cache(self, formats: Sequence[CacheFormat], tensors: Mapping[str, torch.Tensor]) -> None:
        """Say how the layers' KV caches are coded; `tensors` are their constants by names in the file."""
        self._partial.write_cache(formats, tensors)

    @property
    def has_cache(self) -> bool:
        """Whether an interrupted run has got that far."""
        return self._partial.cache_formats() is not None

    def replace(self, compressed: dict[str, CompressedTensor], plain: dict[str, torch.Tensor]) -> None:
        """Write the units again with these in the place of what they hold. Encodings stay."""
        for unit, names in enumerate(self._job.units):
            tensors = UnitTensors()
            read = SafetensorsStore([self._partial.path(unit)]).read
            for name in names:
                if name in compressed:
                    tensors.add(compressed[name])
                else:
                    stored = read(name)
                    tensors.stored[name] = plain[name].to(stored.dtype) if name in plain else stored.clone()
            self._partial.write(unit, tensors)
