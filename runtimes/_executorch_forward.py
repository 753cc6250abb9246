"""Models that run in one call, in ExecuTorch."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge.core.bundle import Manifest
from edge.core.errors import EdgeError
from edge.core.session import Inputs, OperatorTime, SessionOptions
from edge.runtimes import _etdump
from edge.runtimes._inputs import checked


class ExecutorchForwardSession:
    """An encoder or a vision model: a program and its method, loaded.

    reason: what ExecuTorch says about an error. sessions: those that are open, by identity.
    """

    def __init__(
        self,
        loaded: tuple[Any, Any],
        manifest: Manifest,
        options: SessionOptions,
        reason: Callable[[Exception], str],
        sessions: set[int],
    ) -> None:
        self._program, self._method = loaded
        self._manifest = manifest
        self._profile_path = options.profile_path
        self._reason = reason
        self._sessions = sessions
        sessions.add(id(self))

    def run(self, inputs: Inputs) -> NDArray[np.float32]:
        """The model's first output for a batch of one."""
        import torch

        arrays = checked(self._manifest, inputs)
        try:
            (output,) = self._method.call([torch.from_numpy(array) for array in arrays.values()], clone_outputs=False)
        except RuntimeError as error:
            hint = "export the model again; if it stays, this is a defect of edge"
            raise EdgeError("runtime.run", f"ExecuTorch failed: {self._reason(error)}", hint) from error
        found: NDArray[np.float32] = output.numpy().copy()  # the next call overwrites it
        return found

    def end_profile(self) -> list[OperatorTime]:
        """Time per instruction since the session was opened, longest first. The engine's trace is at `profile_path`."""
        if self._profile_path is None:
            return []
        self._program.write_etdump_result_to_file(self._profile_path)
        trace, self._profile_path = Path(self._profile_path), None
        return _etdump.operator_times(trace, self._manifest.layer_of_node)

    def close(self) -> None:
        """Give the memory back. The session can't be used afterwards."""
        self._sessions.discard(id(self))
        self._method = self._program = None

    def __del__(self) -> None:
        self._sessions.discard(id(self))
