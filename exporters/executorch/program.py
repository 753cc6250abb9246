"""What a `.pte` holds: its instructions, with the constants that they read and the graphs of its delegates."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from edge.exporters.executorch.lower import quiet

Array = NDArray[np.generic]
# ExecuTorch's ScalarType
DTYPES: dict[int, type[np.generic]] = {0: np.uint8, 1: np.int8, 3: np.int32, 4: np.int64, 6: np.float32}


class Call(NamedTuple):
    """An instruction: its place in the program, its operator, and its operands."""

    instruction: int
    operator: str
    operands: list[Any]


class ProgramFile:
    """A `.pte` by its parts. Constants are views of the file, which is mapped."""

    def __init__(self, path: Path) -> None:
        with quiet():
            from executorch.exir._serialize._flatbuffer_program import _flatbuffer_to_program
            from executorch.exir._serialize._program import _ExtendedHeader, _get_extended_header

        self._file = np.memmap(path, np.uint8, "r")
        header = _get_extended_header(bytes(self._file[: _ExtendedHeader.NUM_HEAD_BYTES]))
        self._segments = header.segment_base_offset
        self._program = _flatbuffer_to_program(bytes(self._file[: header.program_size]))
        self._plan = self._program.execution_plan[0]

    def calls(self) -> Iterator[Call]:
        """All calls of operators, in order."""
        for index, instruction in enumerate(self._plan.chains[0].instructions):
            call = instruction.instr_args
            if hasattr(call, "op_index"):
                operator = self._plan.operators[call.op_index]
                yield Call(index, operator.name, [self._plan.values[value].val for value in call.args])

    def constant(self, tensor: Any) -> Array | None:
        """The values of a constant operand; None for one that is computed."""
        index = getattr(tensor, "data_buffer_idx", 0)
        if index == 0 or tensor.allocation_info is not None:
            return None
        dtype = np.dtype(DTYPES[int(tensor.scalar_type)])
        segment = self._program.segments[self._program.constant_segment.segment_index]
        start = self._segments + segment.offset + self._program.constant_segment.offsets[index]
        return self._file[start : start + math.prod(tensor.sizes) * dtype.itemsize].view(dtype).reshape(tensor.sizes)

    def has(self, values: Array, prefix: str = "") -> bool:
        """Whether a delegate has these bytes as a constant. XNNPACK names constants by the digest of their bytes."""
        stored = self._named.get(prefix + hashlib.sha256(values.tobytes()).hexdigest())
        return stored is not None and stored.tobytes() == values.tobytes()

    @cached_property
    def _named(self) -> dict[str, Array]:
        """Constants of delegates by their keys."""
        found = {}
        for entry in self._program.named_data or ():
            segment = self._program.segments[entry.segment_index]
            start = self._segments + segment.offset
            found[entry.key] = self._file[start : start + segment.size]
        return found
