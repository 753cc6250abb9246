"""Models that run in one call, in ONNX Runtime."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge.core.bundle import Bundle
from edge.core.session import Inputs, OperatorTime, SessionOptions
from edge.runtimes import onnx
from edge.runtimes._inputs import checked


class OnnxForwardSession:
    """An encoder or a vision model."""

    def __init__(self, bundle: Bundle, options: SessionOptions) -> None:
        self._engine: Any = onnx.engine(bundle, bundle.artefact, options)
        self._manifest = bundle.manifest
        self._profile_path = options.profile_path

    def run(self, inputs: Inputs) -> NDArray[np.float32]:
        """The model's first output for a batch of one."""
        arrays = checked(self._manifest, inputs)
        with onnx.raising():
            (output,) = self._engine.run(None, arrays)
        return output

    def end_profile(self) -> list[OperatorTime]:
        """Time per node since the session was opened, longest first. The engine's trace stays at `profile_path`."""
        if self._profile_path is None:
            return []
        trace = Path(self._engine.end_profiling()).replace(self._profile_path)
        self._profile_path = None
        return onnx.operator_times(trace, self._manifest.layer_of_node)

    def close(self) -> None:
        """Give the memory back. The session can't be used afterwards."""
        self._engine = None
