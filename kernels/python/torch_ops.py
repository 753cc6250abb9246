"""torch operators edge::linear, edge::embedding, .. made from the kernels' table. Importing this registers them.

Tensors come in the order of the table, attributes by keyword: `torch.ops.edge.linear(x, weight, rows=70)`. An output
that the table calls absent is an empty tensor; one that aliases an input is that input, changed in place. Each operator
has an overload `out`, which ExecuTorch wants.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch.utils.weak import WeakTensorKeyDictionary

from edge.core.errors import EdgeError
from edge.kernels.operators import Attribute, Operator, Slot, Tensor, operators

DTYPES = {"float32": torch.float32, "uint8": torch.uint8, "int32": torch.int32, "int64": torch.int64}
NAMES = {dtype: name for name, dtype in DTYPES.items()}
_checked: Any = WeakTensorKeyDictionary()  # packed weights, and the version of the tensor that was checked


def schema(operator: Operator, overload: str = "") -> str:
    """Signature of the operator, or of its overload `out`. In the table, what is optional stands last."""
    letters = iter("abcdefgh")
    changed = {slot.alias for slot in operator.outputs}
    marks = [f"({next(letters)}!)" if index in changed else "" for index in range(len(operator.inputs))]
    arguments = [_input(slot, mark) for slot, mark in zip(operator.inputs, marks, strict=True)]
    arguments += ["*", *map(_attribute, operator.attributes)]
    names = [slot.name for slot in _made(operator)]
    results = ["Tensor"] * len(names)
    if overload:
        results = [f"Tensor({next(letters)}!)" for _ in names]
        arguments += [f"{result} {name}" for result, name in zip(results, names, strict=True)]
    returned = results[0] if len(results) == 1 else f"({', '.join(results)})"
    return f"{operator.name.lower()}{overload and '.'}{overload}({', '.join(arguments)}) -> {returned}"


def _made(operator: Operator) -> list[Slot]:
    """Outputs that are tensors of their own."""
    return [slot for slot in operator.outputs if slot.alias is None]


def _input(slot: Slot, mark: str) -> str:
    return f"Tensor?{mark} {slot.name}=None" if slot.optional else f"Tensor{mark} {slot.name}"


def _attribute(row: Attribute) -> str:
    kind, default = ("float", row.default) if row.is_float else ("int", int(row.default))
    return f"{kind} {row.name}" if row.required else f"{kind} {row.name}={default}"


def _split(operator: Operator, given: Sequence[Any], named: dict[str, Any]) -> tuple[list[Any], list[Any]]:
    """Tensors and attributes in the order of the table."""
    tensors = [*given, *(named.get(slot.name) for slot in operator.inputs[len(given) :])]
    return tensors, [named.get(row.name) for row in operator.attributes]


def _shapes(operator: Operator, tensors: Sequence[Any], values: Sequence[Any]) -> list[tuple[Slot, list[Any]]]:
    """What each new tensor looks like. Symbolic sizes go through the table as numbers below 0."""
    symbols: list[Any] = []

    def size(dim: Any) -> int:
        if isinstance(dim, int):
            return dim
        symbols.append(dim)
        return -len(symbols)

    inputs = [None if t is None else Tensor(0, _type(t), tuple(size(dim) for dim in t.shape)) for t in tensors]
    shapes = zip(operator.outputs, operator.shapes(inputs, values), strict=True)
    dims = [(slot, (0,) if shape is None else shape.dims) for slot, shape in shapes if slot.alias is None]
    return [(slot, [symbols[-1 - dim] if dim < 0 else dim for dim in row]) for slot, row in dims]


def _fake(operator: Operator, *given: Any, **named: Any) -> Any:
    tensors, values = _split(operator, given, named)
    made = [tensors[0].new_empty(dims, dtype=DTYPES[slot.type]) for slot, dims in _shapes(operator, tensors, values)]
    return made[0] if len(made) == 1 else tuple(made)


def _new(operator: Operator, *given: Any, **named: Any) -> Any:
    made = _fake(operator, *given, **named)
    _compute(operator, *_split(operator, given, named), [made] if isinstance(made, torch.Tensor) else list(made))
    return made


def _out(operator: Operator, *given: Any, **named: Any) -> Any:
    made = [named.pop(slot.name) for slot in _made(operator)]
    tensors, values = _split(operator, given, named)
    for tensor, (_, dims) in zip(made, _shapes(operator, tensors, values), strict=True):
        tensor.resize_(dims)
    _compute(operator, tensors, values, made)
    return made[0] if len(made) == 1 else tuple(made)


def _compute(operator: Operator, tensors: list[Any], values: list[Any], made: list[torch.Tensor]) -> None:
    kept = [None if t is None else t.contiguous() for t in tensors]
    inputs = [None if t is None else _tensor(t) for t in kept]
    for index, slot in enumerate(operator.inputs):
        version = tensors[index] is not None and not tensors[index].is_inference() and tensors[index]._version
        if slot.packed and _checked.get(tensors[index]) != version:
            operator.check(inputs, values)
            _checked[tensors[index]] = version
    new = iter(made)
    outputs = [_tensor(tensors[slot.alias] if slot.alias is not None else next(new)) for slot in operator.outputs]
    expected = operator.shapes(inputs, values)
    present = [None if shape is None else out for out, shape in zip(outputs, expected, strict=True)]
    operator.run(inputs, values, present, torch.get_num_threads())


def _type(tensor: torch.Tensor) -> str:
    return NAMES.get(tensor.dtype, str(tensor.dtype))


def _tensor(tensor: torch.Tensor) -> Tensor:
    if not tensor.is_contiguous():
        raise EdgeError("kernels.tensor", "a tensor that is updated in place must be contiguous", "call .contiguous()")
    return Tensor(tensor.data_ptr(), _type(tensor), tuple(tensor.shape))


def _register() -> torch.library.Library:
    library = torch.library.Library("edge", "DEF")
    for operator in operators().values():
        name = operator.name.lower()
        library.define(schema(operator), tags=torch.Tag.pt2_compliant_tag)
        library.define(schema(operator, "out"))
        library.impl(name, partial(_new, operator), "CPU")
        library.impl(f"{name}.out", partial(_out, operator), "CPU")
        torch.library.register_fake(f"edge::{name}", partial(_fake, operator), lib=library)
    return library


_LIBRARY = _register()
