"""The reference: transformers' own model class with a checkpoint's weights, in float32, compressed ones emulated."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

import torch
from torch import nn

from edge.core.errors import EdgeError, UsageError
from edge.core.weight import Compressed
from edge.models.any_model import model_class
from edge.models.cache_modules import quantize_cache
from edge.models.compressed_modules import (
    Activations,
    CompressedEmbedding,
    CompressedLinear,
    CompressedWeight,
    TiedEmbedding,
    TiedHead,
)
from edge.models.describe import describe
from edge.models.spec import DecoderSpec, Spec

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel

    from edge.models.checkpoint import Checkpoint

RopeTables = dict[str, tuple[torch.Tensor, torch.Tensor]]


def build_model(checkpoint: Checkpoint) -> PreTrainedModel:
    """The model in float32, in evaluation mode. Compressed matrices stay compressed and emulate the run time.

    Attention is `sdpa`, or `eager` where scores are capped. A tied head shares the embedding's tensor.
    """
    model = empty_model(checkpoint.config, checkpoint.spec)
    fill(model, checkpoint, checkpoint.names())
    tie(model, checkpoint.spec, checkpoint.activations)
    if checkpoint.cache_formats is not None:
        caches = quantize_cache(model, cast(DecoderSpec, checkpoint.spec), checkpoint.cache_formats)
        for cache, tables in zip(caches, checkpoint.cache_tables(), strict=True):
            cache.load(tables)
    checkpoint.release()
    left = [name for name, tensor in _state(model) if tensor.is_meta]
    if left:
        raise EdgeError("checkpoint.missing_tensor", f"no weights for '{left[0]}'", "this is a defect of the adapter")
    return model


def empty_model(config: PretrainedConfig, spec: Spec) -> PreTrainedModel:
    """The model without weights (on the meta device); what it computes by itself, such as rotary tables, is there."""
    plain = type(config).from_dict({k: v for k, v in config.to_dict().items() if k != "quantization_config"})
    with torch.device("meta"):
        model = _from_config(plain, spec)
    for module in model.modules():
        own = [name for name, _ in module.named_buffers(recurse=False)]
        for name in own:
            module._buffers[name] = torch.empty_like(module._buffers[name], device="cpu")
        if own:
            with torch.no_grad():
                model._init_weights(module)
    return model.eval().requires_grad_(False)


def _from_config(config: PretrainedConfig, spec: Spec) -> PreTrainedModel:
    if not isinstance(spec, DecoderSpec):
        return model_class(config)._from_config(config, dtype=torch.float32)
    from transformers import AutoModelForCausalLM

    capped = any(layer.attention.softcap for layer in spec.layers)
    attention = "eager" if capped else "sdpa"
    return AutoModelForCausalLM.from_config(config, dtype=torch.float32, attn_implementation=attention)


def fill(model: nn.Module, checkpoint: Checkpoint, names: list[str]) -> None:
    """Give modules of `model` the tensors `names` of the checkpoint: float32 of their own, or compressed."""
    for name in names:
        path = name.rpartition(".")[0]
        module = model.get_submodule(path)
        if name in checkpoint.encodings:
            matrix = checkpoint.matrix(name)
            compressed = hollow(module, matrix.shape, checkpoint.encodings[name], checkpoint.activations).load(matrix)
            model.set_submodule(path, compressed)
        else:
            # A copy even where it is float32 already: the checkpoint's memory belongs to its file.
            put(model, name, checkpoint.tensor(name).to(torch.float32, copy=True))


def put(model: nn.Module, name: str, values: torch.Tensor) -> None:
    """Make `values` the parameter, or the buffer, `name` of the model."""
    path, _, leaf = name.rpartition(".")
    module = model.get_submodule(path)
    if leaf in module._buffers:
        module._buffers[leaf] = values
    else:
        module._parameters[leaf] = nn.Parameter(values, requires_grad=False)


def hollow(
    module: nn.Module, shape: tuple[int, int], encoding: Compressed, activations: Activations
) -> CompressedWeight:
    """The compressed module that takes the place of `module`, its buffers still without values."""
    if isinstance(module, nn.Embedding):
        embedding = CompressedEmbedding(*shape, encoding, float(getattr(module, "scalar_embed_scale", 1.0)))
        embedding.like = embedding.like.to(module.weight.dtype)
        return embedding
    linear = CompressedLinear(*shape, encoding, getattr(module, "bias", None) is not None, activations)
    if linear.bias is not None:
        linear.bias.data = linear.bias.data.to(module.weight.dtype)
    return linear


def tie(model: nn.Module, spec: Spec, activations: Activations) -> None:
    """Let tensors that are another one under a second name share it."""
    for copy, name in spec.tied_copies.items():
        path, _, leaf = copy.rpartition(".")
        source_path, _, source_leaf = name.rpartition(".")
        source, module = model.get_submodule(source_path), model.get_submodule(path)
        if not isinstance(source, CompressedEmbedding):
            module._parameters[leaf] = getattr(source, source_leaf)
        elif isinstance(module, nn.Embedding):
            model.set_submodule(path, TiedEmbedding(source))
        else:
            model.set_submodule(path, TiedHead(source, activations, getattr(module, "bias", None)))


def rope_tables(config: PretrainedConfig, context_length: int) -> RopeTables:
    """cos and sin, float32 [context_length, rotary_dim / 2], keyed by `Attention.rope`, from transformers' own module.

    Raises `UsageError` for a context that one set of tables can't serve.
    """
    spec = describe(config)
    if context_length > spec.context_length:
        message = f"a context of {context_length} tokens is too long: this model serves {spec.context_length}"
        raise UsageError("context.too_long", message, "export with a shorter --context")
    keys = sorted({layer.attention.rope for layer in spec.layers if layer.attention.rope})
    if not keys:
        return {}
    rotary = empty_model(config, spec).get_submodule(spec.base_path).rotary_emb
    positions, like = torch.arange(context_length)[None], torch.empty(0)
    tables: RopeTables = {}
    for key in keys:
        by_type = () if key == "default" else (key,)
        cos, sin = (table[0].float().contiguous() for table in rotary(like, positions, *by_type))
        half = cos.shape[1] // 2  # transformers repeats the table for both halves of a head
        tables[key] = (cos[:, :half].contiguous(), sin[:, :half].contiguous())
    return tables


def _state(model: nn.Module) -> list[tuple[str, torch.Tensor]]:
    return [*model.named_parameters(), *model.named_buffers()]
