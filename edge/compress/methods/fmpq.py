"""FMPQ: channels in another order, so that the outliers of activations gather in few blocks; for 4-bit activations.

Liu, Wang, Zhang, Wu, Cheng, Zhao, Yang, Zhang, Chen, Xu: "COMET: Towards Practical W4A4KV4 LLMs Serving", ASPLOS 2025,
arXiv:2410.12168.

With `activations = "a4"` in a recipe the first eighth of a matrix's blocks of input channels (its weights' groups, at
least one) has 8 bits per token and block, all others have 4 (section 3.2). This step brings the channels with the
largest activations there. Every permutation is folded into the weights around it, so that none is left at run time:

- the hidden states between layers, one order for the whole model, by the largest value relative to the channels' median
  over all layers, seen with tokens drawn at random (outlier channels are the model's more than the text's);
- the inputs of down, by their largest value in calibration: rows of gate and up, columns of down;
- the inputs of o, whole heads only, since all query heads of a value head share its channels.

The step comes first in a recipe, has no rules, and takes no tensors. PyTorch evaluates what comes of it; the kernels
have no 4-bit activations.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from functools import partial
from typing import Any

import msgspec
import torch

from edge.compress.block import Block
from edge.compress.fold import matrix
from edge.compress.methods._trial import OneLayerModel
from edge.core.errors import EdgeError
from edge.models.checkpoint import Checkpoint
from edge.models.derived import Change, derive
from edge.models.spec import DecoderSpec, Layer, Linear

CALIBRATED = True
WINDOWS, TOKENS = 4, 64  # of random tokens


class Options(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """residual, products, heads: whether hidden states, the inputs of down and the heads are brought in order."""

    residual: bool = True
    products: bool = True
    heads: bool = True


def rewrite(checkpoint: Checkpoint, options: Options, seed: int) -> Checkpoint:
    """The same function with the hidden states' channels in order."""
    spec = checkpoint.spec
    if not isinstance(spec, DecoderSpec):
        message = f"fmpq is for decoder language models: this is {spec.model_type}"
        raise EdgeError("fmpq.model", message, "leave the step out")
    if not options.residual:
        return checkpoint
    order = _outlier_order(checkpoint, spec, seed)
    changes: dict[str, list[Change]] = defaultdict(list)
    columns, rows = partial(_permute, order=order, dim=1), partial(_permute, order=order, dim=0)
    tables = [spec.embedding, spec.position_embedding, None if spec.tied else spec.head]
    for name in filter(None, tables):
        changes[f"{name}.weight"].append(columns)
    norms = [spec.final_norm]
    for layer in spec.layers:
        norms += filter(None, (layer.input_norm, layer.mlp_norm, layer.post_attention_norm, layer.post_mlp_norm))
        for reader in (*layer.attention.qkv, *layer.mlp.up):
            changes[reader.weight].append(columns)
        for writer in (layer.attention.o, layer.mlp.down):
            changes[writer.weight].append(rows)
            if writer.bias:
                changes[f"{writer.name}.bias"].append(rows)
    for norm in norms:
        changes[f"{norm.name}.weight"].append(rows)
        if norm.kind == "layer":
            changes[f"{norm.name}.bias"].append(rows)
    return derive(checkpoint, changes)


def _permute(tensor: torch.Tensor, order: torch.Tensor, dim: int) -> None:
    tensor.copy_(tensor.index_select(dim, order))


def _outlier_order(checkpoint: Checkpoint, spec: DecoderSpec, seed: int) -> torch.Tensor:
    """Channels of the hidden states, the largest first."""
    generator = torch.Generator().manual_seed(seed)
    length = min(TOKENS, spec.context_length)
    loader = OneLayerModel(checkpoint)
    walk = loader.start(torch.randint(spec.vocab_size, (WINDOWS, length), generator=generator))
    score = torch.zeros(spec.hidden_size)
    for index in range(len(spec.layers)):
        # The first token of a text has values of its own kind, in a few channels.
        peak = torch.cat(walk.states)[:, 1:].abs().amax((0, 1))
        score = torch.maximum(score, peak / peak.median().clamp_min(1e-20))
        with loader.layer(index) as module:
            walk.advance(index, module)
    return score.argsort(descending=True, stable=True)


def prepare(block: Block, options: Mapping[str, Any]) -> None:
    """Bring the heads and the inputs of down in order, within the layer."""
    asked = next(iter(options.values()))
    if asked.heads:
        _order_heads(block)
    if asked.products:
        _order_products(block)


def _order_products(block: Block) -> None:
    mlp = block.layer.mlp
    order = block.inputs(mlp.down).peak.argsort(descending=True, stable=True)
    _permute(block.matrix(mlp.down), order, 1)
    for up in mlp.up:
        parts = up.out_features // len(order)  # gate and up in one matrix
        _permute_rows(block, up, torch.cat([order + part * len(order) for part in range(parts)]))


def _order_heads(block: Block) -> None:
    layer: Layer = block.layer
    attention = layer.attention
    width, shared = attention.head_dim, attention.num_heads // attention.num_kv_heads
    peak = block.inputs(attention.o).peak.view(attention.num_kv_heads, -1).amax(1)
    order = peak.argsort(descending=True, stable=True)

    def channels(size: int) -> torch.Tensor:
        """Those of the heads in their new order, `size` for each key and value head."""
        return (order[:, None] * size + torch.arange(size)).flatten()

    queries, keys = channels(shared * width), channels(width)
    parts = [queries, keys, keys]
    if len(attention.qkv) == 1:
        starts = (0, len(queries), len(queries) + len(keys))
        parts = [torch.cat([part + start for part, start in zip(parts, starts, strict=True)])]
    for linear, rows in zip(attention.qkv, parts, strict=True):
        _permute_rows(block, linear, rows)
    _permute(block.matrix(attention.o), queries, 1)


def _permute_rows(block: Block, linear: Linear, order: torch.Tensor) -> None:
    _permute(matrix(block.tensor, linear), order, 0)
    if linear.bias:
        _permute(block.tensor(f"{linear.name}.bias"), order, 0)
