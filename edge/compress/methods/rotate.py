"""Hadamard rotations that cancel: outliers spread over all channels, so that a grid fits every weight better.

Ashkboos, Mohtashami, Croci, Li, Cameron, Jaggi, Alistarh, Hoefler, Hensman: "QuaRot: Outlier-Free 4-Bit Inference in
Rotated LLMs", NeurIPS 2024, arXiv:2404.00456; named as in Liu, Zhao, Fedorov, Soran, Choudhary, Krishnamoorthi,
Chandra, Tian, Blankevoort: "SpinQuant: LLM Quantization with Learned Rotations", ICLR 2025, arXiv:2405.16406.

- R1 (`residual`) turns what flows from layer to layer: the embedding, whatever reads it (q, k, v, gate, up, the head)
  and whatever adds to it (o, down). An RMSNorm doesn't see a rotation once its weight is folded into what it feeds.
- R2 (`values`) turns every head's values: the rows of v and the columns of o.

A few hidden channels (`keep`) stay as they are: those that o and down write most strongly. Nearly all of the first
token's state lies on them, where attention rests when it looks for nothing, and the matrices are almost blind to it.
Turned, that one direction gets the rounding errors of all channels. (SmolLM2-135M, round to nearest at 4 bits, a layer
in the middle: the first token's error after `up` grows sevenfold if all is turned; with four channels kept it does not,
and that of the other tokens falls.)

Both are multiplied into the weights: the graph stays as it is, and so does the function. R3 and R4 (queries and keys,
the inputs of down) need a Hadamard transform at run time and are left out.

A head that is the embedding too sees the final norm's weight where the embedding does not: unless that weight is the
same for every channel, R1 needs a head of its own, another matrix to store (`untie`). R1 can't pass a LayerNorm, which
takes the mean of the channels, nor norms after attention and MLP (Gemma), whose weights have no matrix after them.

The step comes first in a recipe, has no rules, and takes no tensors: another step compresses them.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from functools import partial

import msgspec
import torch

from edge.compress.fold import folds, matrix
from edge.compress.hadamard import rotation
from edge.core.console import info
from edge.core.errors import EdgeError
from edge.models.checkpoint import Checkpoint
from edge.models.derived import Change, derive
from edge.models.spec import DecoderSpec, Layer, Linear, Norm

CALIBRATED = False
Changes = defaultdict[str, list[Change]]


class Options(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """residual: R1 where the model allows it (no value), always or an error (true), never. values: R2.

    keep: hidden channels that R1 leaves alone.
    untie: give a tied head its own matrix where R1 needs that. The model gets larger by an embedding.
    """

    residual: bool | None = None
    values: bool = True
    untie: bool = False
    keep: int = 4

    def __post_init__(self) -> None:
        if self.keep < 0:
            raise ValueError("`keep` is at least 0")


def rewrite(checkpoint: Checkpoint, options: Options, seed: int) -> Checkpoint:
    """The same function with rotated weights, computed as they are read. Raises `EdgeError` where R1 is a must."""
    spec = checkpoint.spec
    if not isinstance(spec, DecoderSpec):
        message = f"rotate is for decoder language models: this is {spec.model_type}"
        raise EdgeError("rotate.model", message, "leave the step out")
    changes: Changes = defaultdict(list)
    if options.values:
        for layer in spec.layers:
            _turn_values(changes, layer, seed)
    untied = False
    if options.residual is not False:
        obstacle = _obstacle(checkpoint, spec, options.untie)
        if obstacle is None:
            untied = spec.tied and not _is_uniform(checkpoint, spec.final_norm)
            turn = _residual_rotation(checkpoint, spec, options.keep, seed)
            _turn_residual(changes, checkpoint, spec, turn, untied)
        elif options.residual:
            hint = "leave `residual` out: then values alone are rotated"
            raise EdgeError("rotate.residual", f"the hidden states can't be rotated: {obstacle}", hint)
        else:
            info(f"The hidden states are not rotated: {obstacle}")
    return derive(checkpoint, changes, untied=untied)


def _obstacle(checkpoint: Checkpoint, spec: DecoderSpec, untie: bool) -> str | None:
    """Why R1 can't be."""
    norms = [spec.final_norm, *(norm for layer in spec.layers for norm in (layer.input_norm, layer.mlp_norm))]
    if any(norm.kind == "layer" for norm in norms):
        return "LayerNorm takes the mean of the channels"
    after = [norm for layer in spec.layers for norm in (layer.post_attention_norm, layer.post_mlp_norm) if norm]
    if not all(_is_uniform(checkpoint, norm) for norm in after):
        return "the norms after attention and MLP have weights that no matrix can take"
    if spec.tied and not untie and not _is_uniform(checkpoint, spec.final_norm):
        return "the head is the embedding, with the final norm's weight between; `untie = true` makes it a matrix apart"
    return None


def _is_uniform(checkpoint: Checkpoint, norm: Norm) -> bool:
    weight = checkpoint.tensor(f"{norm.name}.weight")
    return bool((weight == weight[0]).all())


def _turn_values(changes: Changes, layer: Layer, seed: int) -> None:
    """R2: one rotation for all heads, hence for those that share values too."""
    (values,) = (fold for fold in folds(layer) if fold.place == "values")
    turn = rotation(layer.attention.head_dim, seed)
    assert values.writer is not None
    _turn_outputs(changes, values.writer, turn, values.first_row)
    changes[layer.attention.o.weight].append(partial(_turn_columns, turn=turn))


def _residual_rotation(checkpoint: Checkpoint, spec: DecoderSpec, keep: int, seed: int) -> torch.Tensor:
    """A rotation of all but the `keep` channels that o and down write most strongly, next to others in the layer."""
    strength = torch.zeros(spec.hidden_size)
    for layer in spec.layers:
        for writer in (layer.attention.o, layer.mlp.down):
            rows = matrix(checkpoint.tensor, writer).float().norm(dim=1)
            strength += (rows / rows.median().clamp_min(1e-12)).square()
        checkpoint.release()
    turned = strength.argsort(stable=True)[: max(1, spec.hidden_size - keep)].sort().values
    turn = torch.eye(spec.hidden_size)
    turn[turned[:, None], turned] = rotation(len(turned), seed)
    return turn


def _turn_residual(
    changes: Changes, checkpoint: Checkpoint, spec: DecoderSpec, turn: torch.Tensor, untied: bool
) -> None:
    """R1, with the norms' weights in the matrices after them."""
    for table in (spec.embedding, spec.position_embedding):
        if table:
            changes[f"{table}.weight"].append(partial(_turn_columns, turn=turn))
    for norm, readers in _normed(spec, untied):
        for reader in readers:
            changes[reader].append(partial(_take_gain, checkpoint=checkpoint, norm=norm))
            changes[reader].append(partial(_turn_columns, turn=turn))
        changes[f"{norm.name}.weight"].append(partial(torch.Tensor.fill_, value=0.0 if norm.unit_offset else 1.0))
    for layer in spec.layers:
        for writer in (layer.attention.o, layer.mlp.down):
            _turn_outputs(changes, writer, turn)


def _normed(spec: DecoderSpec, untied: bool) -> Iterator[tuple[Norm, list[str]]]:
    """Every norm with the weights that read what it makes."""
    for layer in spec.layers:
        for fold in folds(layer):
            if fold.norm is not None:
                yield fold.norm, [reader.weight for reader in fold.readers]
    if untied or not spec.tied:
        yield spec.final_norm, [f"{spec.head}.weight"]


def _turn_outputs(changes: Changes, writer: Linear, turn: torch.Tensor, first_row: int = 0) -> None:
    rows = partial(_turn_rows, turn=turn, first_row=first_row)
    changes[writer.weight].append(rows)
    if writer.bias:
        changes[f"{writer.name}.bias"].append(rows)


def _turn_columns(weight: torch.Tensor, turn: torch.Tensor) -> None:
    """Multiply every stretch of columns by `turn` from the right, in place; few rows at a time."""
    for rows in weight.split(4096):
        rows.copy_((rows.unflatten(-1, (-1, len(turn))) @ turn).flatten(-2))


def _turn_rows(weight: torch.Tensor, turn: torch.Tensor, first_row: int) -> None:
    """The same for rows, from `first_row` on. A bias is a column."""
    _turn_columns(weight[first_row:].view(len(weight) - first_row, -1).T, turn)


def _take_gain(weight: torch.Tensor, checkpoint: Checkpoint, norm: Norm) -> None:
    weight.mul_(checkpoint.tensor(f"{norm.name}.weight").float() + float(norm.unit_offset))
