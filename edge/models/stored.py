"""How a compressed matrix lies in a safetensors file: NAME.codes, NAME.scales, NAME.zero_points, codes bit-packed."""

from __future__ import annotations

from collections.abc import Callable

import torch

from edge.core.errors import EdgeError
from edge.core.weight import Affine, CompressedTensor, pack_bits, unpack_bits


def stored_names(name: str, encoding: Affine) -> list[str]:
    """Names in the file of the parts of the matrix `name` (which ends in `.weight`)."""
    stem = name.removesuffix(".weight")
    parts = ("codes", "scales", "zero_points") if encoding.grid == "zero_point" else ("codes", "scales")
    return [f"{stem}.{part}" for part in parts]


def to_stored(tensor: CompressedTensor) -> dict[str, torch.Tensor]:
    """The parts of a matrix as they are written."""
    encoding = tensor.encoding
    if not isinstance(encoding, Affine):
        raise EdgeError("compress.encoding", f"{tensor.name}: {encoding} has no parts to store")
    codes = pack_bits(tensor.parts["codes"], encoding.bits)
    arrays = [codes, tensor.parts["scales"]]
    if encoding.grid == "zero_point":
        arrays.append(pack_bits(tensor.parts["zero_points"], encoding.bits))
    return dict(zip(stored_names(tensor.name, encoding), map(torch.from_numpy, arrays), strict=True))


def from_stored(
    name: str, shape: tuple[int, int], encoding: Affine, read: Callable[[str], torch.Tensor], names: list[str]
) -> CompressedTensor:
    """The inverse of `to_stored` for a matrix [rows, columns]; `read` gives the tensors called `names`."""
    codes, scales, *zeros = (read(stored).numpy() for stored in names)
    parts = {"codes": unpack_bits(codes, encoding.bits, shape[1]), "scales": scales}
    if zeros:
        parts["zero_points"] = unpack_bits(zeros[0], encoding.bits, encoding.groups(shape[1]))
    return CompressedTensor(name, shape, encoding, parts)
