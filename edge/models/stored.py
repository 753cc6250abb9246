"""How a compressed matrix lies in a safetensors file: NAME.codes, NAME.scales and so on, codes bit-packed."""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

import numpy as np
import torch

from edge.core.errors import EdgeError
from edge.core.parts import ANY, Part
from edge.core.weight import Compressed, CompressedTensor, pack_bits, unpack_bits


def stored_names(name: str, shape: tuple[int, int], encoding: Compressed) -> list[str]:
    """Names in the file of the parts of the matrix `name` (which ends in `.weight`)."""
    stem = name.removesuffix(".weight")
    return [f"{stem}.{part}" for part in encoding.compact_layout(*shape)]


def to_stored(tensor: CompressedTensor) -> dict[str, torch.Tensor]:
    """The parts of a matrix as they are written. Raises `EdgeError` for values that the encoding doesn't have."""
    names = stored_names(tensor.name, tensor.shape, cast(Compressed, tensor.encoding))
    return dict(zip(names, to_packed(tensor).values(), strict=True))


def from_stored(
    name: str, shape: tuple[int, int], encoding: Compressed, read: Callable[[str], torch.Tensor], names: list[str]
) -> CompressedTensor:
    """The inverse of `to_stored` for a matrix [rows, columns]; `read` gives the tensors called `names`."""
    by_part = dict(zip(encoding.compact_layout(*shape), names, strict=True))
    return from_packed(name, shape, encoding, lambda part: read(by_part[part]))


def to_packed(tensor: CompressedTensor) -> dict[str, torch.Tensor]:
    """The compact parts of a matrix by name, bit-packed, in memory of their own."""
    tensor.check()
    compact = tensor.encoding.compact(tensor.parts)
    layout = tensor.encoding.compact_layout(*tensor.shape)
    return {
        name: torch.from_numpy(pack_bits(compact[name], part.bits) if part.bits else compact[name].copy())
        for name, part in layout.items()
    }


def from_packed(
    name: str, shape: tuple[int, int], encoding: Compressed, read: Callable[[str], torch.Tensor]
) -> CompressedTensor:
    """The inverse of `to_packed`; `read` gives a part. Raises `EdgeError` for parts that don't add up."""
    compact = {}
    for key, part in encoding.compact_layout(*shape).items():
        array = read(key).numpy()
        _check_part(f"{name}: the stored '{key}'", array, part.packed())
        compact[key] = unpack_bits(array, part.bits, part.shape[-1]) if part.bits else array
    tensor = CompressedTensor(name, shape, encoding, encoding.expand(name, shape, compact))
    tensor.check()
    return tensor


def _check_part(what: str, array: np.ndarray, part: Part) -> None:
    fits = len(array.shape) == len(part.shape) and all(
        wanted in (ANY, size) for size, wanted in zip(array.shape, part.shape, strict=True)
    )
    if not fits or array.dtype != part.dtype:
        wanted = ", ".join("any" if size == ANY else str(size) for size in part.shape)
        message = f"{what} is {array.dtype}{list(array.shape)}, not {part.dtype}[{wanted}]"
        raise EdgeError("tensor.part", message, "the file is damaged or was written by another program")
