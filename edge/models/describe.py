"""From a Hugging Face configuration to a description of the model, and what tensors that asks for."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cache
from typing import TYPE_CHECKING

from edge.core.errors import EdgeError, nearest
from edge.core.plugins import ARCHITECTURES
from edge.models.any_model import describe_model, is_any_model
from edge.models.spec import DecoderSpec, Linear, Norm, Spec

if TYPE_CHECKING:
    from transformers import PretrainedConfig


@cache
def known_model_types() -> dict[str, str]:
    """Every `model_type` that an adapter serves, with the adapter's name."""
    return {kind: name for name in ARCHITECTURES.names() for kind in ARCHITECTURES.load(name).MODEL_TYPES}


def check_model_type(model_type: str, origin: str, classes: Sequence[str] = ()) -> None:
    """Raise `EdgeError` with the nearest known name unless a model of this type, or of these classes, is served."""
    if model_type not in known_model_types() and not is_any_model(model_type, classes):
        message = f"{origin}: the architecture '{model_type}' is not supported"
        raise EdgeError("checkpoint.architecture", message, nearest(model_type, known_model_types()))


def describe(config: PretrainedConfig) -> Spec:
    """Let the adapter for `config.model_type` describe a decoder; of any other model its modules tell.

    Raises `EdgeError` for an unknown architecture or for a setting that the description has no room for.
    """
    check_model_type(config.model_type, "config", config.architectures or ())
    if config.model_type not in known_model_types():
        return describe_model(config)
    spec: DecoderSpec = ARCHITECTURES.load(known_model_types()[config.model_type]).describe(config)
    return spec


def tensor_shapes(spec: Spec) -> dict[str, tuple[int, ...]]:
    """Name and shape of every tensor that a checkpoint of this model must hold, in the order of the data."""
    if not isinstance(spec, DecoderSpec):
        return dict(spec.shapes)
    shapes: dict[str, tuple[int, ...]] = {f"{spec.embedding}.weight": (spec.vocab_size, spec.hidden_size)}
    if spec.position_embedding:
        shapes[f"{spec.position_embedding}.weight"] = (spec.context_length, spec.hidden_size)
    for layer in spec.layers:
        for linear in (linear for group in layer.linears() for linear in group):
            shapes.update(_linear_shapes(linear))
        norms = (layer.input_norm, layer.post_attention_norm, layer.mlp_norm, layer.post_mlp_norm)
        shapes.update(_norm_shapes(norms, spec.hidden_size))
        shapes.update(_norm_shapes((layer.attention.q_norm, layer.attention.k_norm), layer.attention.head_dim))
    shapes.update(_norm_shapes((spec.final_norm,), spec.hidden_size))
    if not spec.tied:
        shapes[f"{spec.head}.weight"] = (spec.vocab_size, spec.hidden_size)
    return shapes


def _linear_shapes(linear: Linear) -> Iterator[tuple[str, tuple[int, ...]]]:
    shape = (linear.out_features, linear.in_features)
    yield linear.weight, shape[::-1] if linear.transposed else shape
    if linear.bias:
        yield f"{linear.name}.bias", (linear.out_features,)


def _norm_shapes(norms: tuple[Norm | None, ...], width: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    for norm in norms:
        if norm is not None:
            yield f"{norm.name}.weight", (width,)
            if norm.kind == "layer":
                yield f"{norm.name}.bias", (width,)
