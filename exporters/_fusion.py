"""How a decoder is laid out with edge's own operators, whatever file it is written to: five operators a layer.

Norm, residual and activation function are part of the product that needs them; attention rotates, normalizes heads and
keeps its cache by itself, in tiles of 16 positions as the kernels read them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from edge.core.target import Kernels
from edge.core.weight import Dense
from edge.exporters._manifest import Caches
from edge.kernels import reference_ops as kernel
from edge.kernels.lib import ACTIVATIONS, CACHES, EPILOGUES, NORMS, Epilogue
from edge.kernels.reference_cache import constants_of
from edge.models.checkpoint import Checkpoint
from edge.models.spec import Activation, Attention, DecoderSpec, Linear, Mlp, Norm

TILE_POSITIONS = 16
CACHE: dict[str, kernel.Cache] = {"float32": "f32", "float16": "f16", "int8": "int8"}
# What the end of a product can be, by the activation function and whether it is a gate's.
EPILOGUE: dict[tuple[Activation, bool], Epilogue] = {
    **{("silu", True): "silu_gated", ("gelu", True): "gelu_gated", ("gelu_tanh", True): "gelu_tanh_gated"},
    **{("gelu", False): "gelu", ("gelu_tanh", False): "gelu_tanh"},
}


def is_fused(checkpoint: Checkpoint, kernels: Kernels) -> bool:
    """Whether a checkpoint is exported with edge's operators: when it has matrices, or caches, for them."""
    encoded = any(not isinstance(encoding, Dense) for encoding in checkpoint.encodings.values())
    return kernels == "edge" and (encoded or checkpoint.cache_formats is not None)


def fused_linears(spec: DecoderSpec) -> list[tuple[str, tuple[Linear, ...]]]:
    """Every group of matrices that share an input, with the layer name that it has in the graph."""
    groups = []
    for layer in spec.layers:
        groups.append((fused_name(layer.attention.qkv, "qkv_proj"), layer.attention.qkv))
        groups.append((layer.attention.o.name, (layer.attention.o,)))
        groups.append((fused_name(layer.mlp.up, "gate_up_proj"), layer.mlp.up))
        groups.append((layer.mlp.down.name, (layer.mlp.down,)))
    return groups


def fused_name(linears: Sequence[Linear], name: str) -> str:
    """`model.layers.0.self_attn.qkv_proj` for q_proj, k_proj and v_proj; a matrix alone keeps its own name."""
    return linears[0].name if len(linears) == 1 else f"{linears[0].name.rpartition('.')[0]}.{name}"


def epilogue_of(mlp: Mlp | None) -> Epilogue:
    """The activation function as the end of the product before it; `none` where the kernels don't have it."""
    return "none" if mlp is None else EPILOGUE.get((mlp.activation, mlp.gated), "none")


def linear_attributes(
    checkpoint: Checkpoint, rows: int, norm: Norm | None = None, epilogue: Epilogue = "none"
) -> dict[str, Any]:
    """Attributes of the operator `Linear`."""
    attributes = {"rows": rows, "activations": ACTIVATIONS[checkpoint.activations], "epilogue": EPILOGUES[epilogue]}
    return attributes if norm is None else attributes | {"norm": NORMS[norm.kind], "epsilon": norm.eps}


def attention_attributes(spec: Attention, caches: Caches, index: int) -> dict[str, Any]:
    """Attributes of the operator `Attention` of layer `index`."""
    fields = _attention_fields(spec) | _cache_fields(caches, index)
    return fields | {"cache": CACHES[fields["cache"]]}


def cache_shapes(spec: Attention, caches: Caches, index: int, context_length: int) -> list[list[int]]:
    """Shapes of the bytes that hold the keys and the values of `context_length` positions in layer `index`."""
    settings = kernel.Attention(**_attention_fields(spec), **_cache_fields(caches, index))
    capacity = -(-context_length // TILE_POSITIONS) * TILE_POSITIONS
    return [[1, *settings.cache_shape(capacity, part)] for part in ("keys", "values")]


def cache_constants(checkpoint: Checkpoint) -> list[dict[str, NDArray[np.float32]]]:
    """What the operators `Attention` take beside their caches, layer by layer, by the name of the input."""
    if checkpoint.cache_formats is None:
        return [{} for _ in checkpoint.spec.layers]
    found = (dict(zip(("key_table", "value_table"), constants_of(t), strict=True)) for t in checkpoint.cache_tables())
    return [{name: table for name, table in layer.items() if table is not None} for layer in found]


def _cache_fields(caches: Caches, index: int) -> dict[str, Any]:
    if isinstance(caches, str):
        return {"cache": CACHE[caches]}
    return {"cache": "table", **msgspec.structs.asdict(caches[index])}


def _attention_fields(spec: Attention) -> dict[str, Any]:
    fields: dict[str, Any] = {"heads": spec.num_heads, "kv_heads": spec.num_kv_heads, "head_dim": spec.head_dim}
    fields |= {"window": spec.window, "scale": float(spec.scale), "softcap": float(spec.softcap)}
    return fields if spec.q_norm is None else fields | {"epsilon": spec.q_norm.eps}
