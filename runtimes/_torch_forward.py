"""PyTorch as the reference of models that run in one call."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from edge.core.errors import EdgeError
from edge.core.session import Inputs, OperatorTime
from edge.models.compressed_modules import CompressedLinear, TiedHead


class TorchForwardSession:
    """A transformers model; its first output."""

    def __init__(self, model: nn.Module) -> None:
        self._model = model

    @torch.inference_mode()
    def run(self, inputs: Inputs) -> NDArray[np.float32]:
        """The model's first output for a batch of one."""
        try:
            out = self._model(**{name: torch.from_numpy(array) for name, array in inputs.items()})
        except (RuntimeError, ValueError, TypeError, IndexError) as error:
            line = " ".join(str(error).split())[:200]
            raise EdgeError("runtime.run", f"PyTorch can't run this model: {line}", "report the model") from error
        first: torch.Tensor = out[0]
        return first.float().numpy()

    def run_disturbed(self, inputs: Inputs, relative: float) -> NDArray[np.float32]:
        """As `run`, with what every compressed product reads moved by up to `relative` of its largest value."""
        with self._disturbed(relative):
            return self.run(inputs)

    def end_profile(self) -> list[OperatorTime]:
        """No rows: PyTorch is a reference for values, not for time."""
        return []

    def close(self) -> None:
        self._model = nn.Identity()

    @contextmanager
    def _disturbed(self, relative: float) -> Iterator[None]:
        generator = torch.Generator().manual_seed(0)

        def move(_: nn.Module, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
            x, *rest = arguments
            noise = 2 * torch.rand(x.shape, generator=generator) - 1
            return (x + noise * (relative * x.abs().max()), *rest)

        products = [m for m in self._model.modules() if isinstance(m, CompressedLinear | TiedHead)]
        hooks = [module.register_forward_pre_hook(move) for module in products]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()
