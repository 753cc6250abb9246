"""The kernels' operators for hosts that know tensors: `edge_operator_at` through ctypes."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from edge.core.errors import EdgeError, UsageError, nearest
from edge.kernels import lib

MAX_RANK, MAX_SLOTS = 8, 16
TYPES = {1: "float32", 2: "uint8", 6: "int32", 7: "int64"}
NUMBERS = {name: number for number, name in TYPES.items()}


class Slot(NamedTuple):
    """An input or an output. An output that aliases an input is that input, updated in place."""

    name: str
    type: str
    optional: bool
    alias: int | None
    packed: bool


class Attribute(NamedTuple):
    """A number that the operator is built with; `default` is for those that aren't `required`."""

    name: str
    is_float: bool
    required: bool
    default: float


class Tensor(NamedTuple):
    """Where an array is and what it is. In shapes, dims below 0 are unknown and reappear in the outputs."""

    data: int
    type: str
    dims: tuple[int, ...]

    def __str__(self) -> str:
        return f"{self.type} {list(self.dims)}"


class _Tensor(ctypes.Structure):
    _fields_ = (
        ("data", ctypes.c_void_p),
        ("type", ctypes.c_int32),
        ("rank", ctypes.c_int32),
        ("dims", ctypes.c_int64 * MAX_RANK),
    )


class _Slot(ctypes.Structure):
    _fields_ = (
        ("name", ctypes.c_char_p),
        ("type", ctypes.c_int32),
        ("optional", ctypes.c_int32),
        ("alias", ctypes.c_int32),
        ("packed", ctypes.c_int32),
    )


class _Attribute(ctypes.Structure):
    _fields_ = (
        ("name", ctypes.c_char_p),
        ("is_float", ctypes.c_int32),
        ("required", ctypes.c_int32),
        ("value", ctypes.c_double),
    )


_Attributes, _Tensors = ctypes.POINTER(ctypes.c_double), ctypes.POINTER(_Tensor)


class _Operator(ctypes.Structure):
    _fields_ = (
        ("name", ctypes.c_char_p),
        ("inputs", ctypes.POINTER(_Slot)),
        ("outputs", ctypes.POINTER(_Slot)),
        ("attributes", ctypes.POINTER(_Attribute)),
        ("input_count", ctypes.c_int32),
        ("output_count", ctypes.c_int32),
        ("attribute_count", ctypes.c_int32),
        ("check", ctypes.CFUNCTYPE(ctypes.c_int, _Attributes, _Tensors)),
        ("shapes", ctypes.CFUNCTYPE(ctypes.c_int, _Attributes, _Tensors, _Tensors)),
        ("run", ctypes.CFUNCTYPE(ctypes.c_int, _Attributes, _Tensors, _Tensors, ctypes.c_void_p)),
    )


class Operator:
    """One row of the table. `inputs` and `values` are given in the order of the slots; None: absent, or the default."""

    def __init__(self, entry: _Operator) -> None:
        self._entry = entry
        self.name: str = entry.name.decode()
        self.inputs = [_slot(entry.inputs[i]) for i in range(entry.input_count)]
        self.outputs = [_slot(entry.outputs[i]) for i in range(entry.output_count)]
        rows = [entry.attributes[i] for i in range(entry.attribute_count)]
        self.attributes = [Attribute(r.name.decode(), bool(r.is_float), bool(r.required), r.value) for r in rows]

    def check(self, inputs: Sequence[Tensor | None], values: Sequence[float | None]) -> None:
        """Hold packed weights against the attributes and their checksum: once, when a weight is first seen."""
        self._done(self._entry.check(self._numbers(values), self._tensors(inputs)), inputs)

    def shapes(self, inputs: Sequence[Tensor | None], values: Sequence[float | None]) -> list[Tensor | None]:
        """Types and dims of the outputs; None for one that these inputs don't give."""
        found = (_Tensor * MAX_SLOTS)()
        self._done(self._entry.shapes(self._numbers(values), self._tensors(inputs), found), inputs)
        outputs = found[: len(self.outputs)]
        return [Tensor(0, TYPES[out.type], tuple(out.dims[: out.rank])) if out.type else None for out in outputs]

    def run(
        self,
        inputs: Sequence[Tensor | None],
        values: Sequence[float | None],
        outputs: Sequence[Tensor | None],
        threads: int = 1,
    ) -> None:
        """Compute into the memory of `outputs`."""
        arguments = (self._numbers(values), self._tensors(inputs), self._tensors(outputs), lib.parallel(threads))
        self._done(self._entry.run(*arguments), inputs)

    def __call__(self, threads: int = 1, **arguments: Any) -> list[NDArray[Any] | None]:
        """The outputs for inputs (arrays) and attributes (numbers) by name. Aliased inputs are updated in place."""
        known = [row.name for row in (*self.inputs, *self.attributes)]
        for name in set(arguments) - set(known):
            raise UsageError("kernels.argument", f"edge::{self.name} has no '{name}'", nearest(name, known))
        arrays = [arguments.get(slot.name) for slot in self.inputs]
        inputs = [None if array is None else tensor(array) for array in arrays]
        values = [arguments.get(attribute.name) for attribute in self.attributes]
        self.check(inputs, values)
        results: list[NDArray[Any] | None] = []
        for slot, shape in zip(self.outputs, self.shapes(inputs, values), strict=True):
            made = None if shape is None else np.empty(shape.dims, shape.type)
            results.append(made if slot.alias is None else arrays[slot.alias])
        self.run(inputs, values, [None if array is None else tensor(array) for array in results], threads)
        return results

    def _numbers(self, values: Sequence[float | None]) -> ctypes.Array[ctypes.c_double]:
        for attribute, value in zip(self.attributes, values, strict=True):
            if value is None and attribute.required:
                raise UsageError("kernels.argument", f"edge::{self.name} needs '{attribute.name}'")
        pairs = zip(self.attributes, values, strict=True)
        return (ctypes.c_double * MAX_SLOTS)(*(a.default if value is None else value for a, value in pairs))

    def _tensors(self, tensors: Sequence[Tensor | None]) -> ctypes.Array[_Tensor]:
        made = (_Tensor * MAX_SLOTS)()
        for slot, given in zip(made, tensors, strict=False):
            if given is not None:
                self._fill(slot, given)
        return made

    def _fill(self, slot: _Tensor, given: Tensor) -> None:
        if given.type not in NUMBERS or len(given.dims) > MAX_RANK:
            raise EdgeError("kernels.tensor", f"edge::{self.name} can't take {given}")
        slot.data, slot.type, slot.rank = given.data, NUMBERS[given.type], len(given.dims)
        slot.dims[: slot.rank] = given.dims

    def _done(self, status: int, inputs: Sequence[Tensor | None]) -> None:
        if status:
            text = lib._load().edge_status_text(status).decode()
            given = ", ".join(f"{s.name} {t}" for s, t in zip(self.inputs, inputs, strict=True) if t is not None)
            raise EdgeError("kernels.operator", f"edge::{self.name}: {text}", f"given {given}")


@lru_cache(maxsize=1)
def operators() -> dict[str, Operator]:
    """The table, by name."""
    library = lib._load()
    library.edge_operator_count.restype = ctypes.c_size_t
    library.edge_operator_at.restype = ctypes.POINTER(_Operator)
    library.edge_operator_at.argtypes = [ctypes.c_size_t]
    made = [Operator(library.edge_operator_at(i).contents) for i in range(library.edge_operator_count())]
    return {operator.name: operator for operator in made}


def tensor(array: NDArray[Any]) -> Tensor:
    """Where a contiguous array is."""
    if not array.flags.c_contiguous:
        raise EdgeError("kernels.tensor", "operators take contiguous arrays", "np.ascontiguousarray makes them so")
    return Tensor(array.ctypes.data, array.dtype.name, array.shape)


def _slot(row: _Slot) -> Slot:
    alias = None if row.alias < 0 else row.alias
    return Slot(row.name.decode(), TYPES[row.type], bool(row.optional), alias, bool(row.packed))
