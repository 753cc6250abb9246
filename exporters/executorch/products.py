"""Which matrices a program multiplies with, and under which names: what is written, and what is read back."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from edge.core.concatenate import concatenate_rows
from edge.core.target import Kernels
from edge.core.weight import CompressedTensor, Dense
from edge.exporters._fusion import fused_name
from edge.models.checkpoint import Checkpoint
from edge.models.spec import Layer, Linear, Mlp, Norm


@dataclass(frozen=True)
class Group:
    """Matrices with the same input, what that is normalized by, and the rows of each that stand apart to XNNPACK.

    XNNPACK can't cut an activation whose length it doesn't know: gate and up are products of their own there.
    """

    name: str
    linears: tuple[Linear, ...]
    norm: Norm | None = None
    mlp: Mlp | None = None
    apart: tuple[int, ...] = ()


def groups(layer: Layer, kernels: Kernels) -> list[Group]:
    """The products of a layer, in the order of the data."""
    attention, mlp = layer.attention, layer.mlp
    heads = (attention.num_heads, attention.num_kv_heads, attention.num_kv_heads)
    qkv = tuple(count * attention.head_dim for count in heads) if kernels == "builtin" else ()
    width = sum(linear.out_features for linear in mlp.up)
    return [
        Group(fused_name(attention.qkv, "qkv_proj"), attention.qkv, layer.input_norm, apart=qkv),
        Group(attention.o.name, (attention.o,)),
        Group(fused_name(mlp.up, "gate_up_proj"), mlp.up, layer.mlp_norm, mlp, (width // 2,) * 2 if mlp.gated else ()),
        Group(mlp.down.name, (mlp.down,)),
    ]


def parts(group: Group, tensors: Sequence[CompressedTensor], kernels: Kernels) -> list[tuple[str, CompressedTensor]]:
    """The layers that hold a group's matrices: one where their encodings agree and the kernels can cut its output."""
    fused = concatenate_rows(f"{group.name}.weight", tensors)
    own = kernels == "edge" and fused is not None and not isinstance(fused.encoding, Dense)
    if fused is not None and (own or not group.apart):
        return [(group.name, fused)]
    if len(tensors) > 1:
        return [(linear.name, tensor) for linear, tensor in zip(group.linears, tensors, strict=True)]
    return list(_cut(group.name, tensors[0], group.apart))


def matrices(checkpoint: Checkpoint, kernels: Kernels) -> Iterator[tuple[str, CompressedTensor]]:
    """Every matrix of the program under the name of its layer."""
    spec = checkpoint.spec
    embedding = checkpoint.matrix(f"{spec.embedding}.weight")
    yield spec.embedding, embedding
    for layer in spec.layers:
        for group in groups(layer, kernels):
            yield from parts(group, [checkpoint.matrix(linear) for linear in group.linears], kernels)
        checkpoint.release()
    yield spec.head, embedding if spec.tied else checkpoint.matrix(f"{spec.head}.weight")


def _cut(name: str, tensor: CompressedTensor, rows: Sequence[int]) -> Iterator[tuple[str, CompressedTensor]]:
    """A matrix by blocks of its rows. Only for encodings whose parts have a row for each: affine and dense ones."""
    start = 0
    for index, count in enumerate(rows):
        block = {part: array[start : start + count] for part, array in tensor.parts.items()}
        shape = (count, tensor.shape[1])
        yield f"{name}.{index}", CompressedTensor(f"{tensor.name}.{index}", shape, tensor.encoding, block)
        start += count
