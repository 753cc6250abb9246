"""Encoder-decoders as two ExecuTorch programs, `encoder.pte` and `model.pte` (the decoder, which keeps its caches)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import torch
from torch import nn
from torch.export import Dim
from torch.export.graph_signature import InputKind

from edge.core.bundle import Manifest
from edge.core.errors import UsageError
from edge.core.target import Kernels, KvCacheType
from edge.exporters import _encoder_decoder as steps
from edge.exporters._encoder_decoder import write_samples
from edge.exporters._modules import use_edge_operators
from edge.exporters.executorch import builtin, generic
from edge.exporters.executorch.lower import layers_of_instructions, lower, traced
from edge.exporters.executorch.slow_path import slow_nodes as slow_nodes_of
from edge.models.checkpoint import Checkpoint
from edge.models.generation import source_limit
from edge.models.torch_model import build_model

__all__ = ["codes_equal", "slow_nodes", "write", "write_samples"]
ENCODER, MODEL = "encoder.pte", "model.pte"
MOST_TOKENS = 16  # at once: memory for the logits of all is set aside
LONGEST_SOURCE = 1024  # where the model itself has no limit: memory for its longest source is set aside


def write(
    checkpoint: Checkpoint,
    folder: Path,
    *,
    kernels: Kernels,
    context_length: int,
    kv_cache: KvCacheType | None = None,
) -> Manifest:
    """Write both programs into an existing folder and say what was written; see `generic.write`."""
    if kv_cache not in (None, "float32"):
        message = f"an encoder-decoder's caches are float32, not {kv_cache}"
        raise UsageError("export.kv_cache", message, "leave --kv-cache away")
    generic.refuse(checkpoint, kernels)
    model = use_edge_operators(build_model(checkpoint))
    shapes = steps.shapes_of(model, checkpoint.spec.inputs[0], context_length)
    longest = (source_limit(model.config) or LONGEST_SOURCE) if shapes.masked else shapes.source_length
    layers: dict[str, str] = {}
    for name, program in ((ENCODER, _encoder(model, shapes, longest)), (MODEL, _decoder(model, shapes, longest))):
        partitioners = builtin.partitioners() if shapes.masked or name == MODEL else _with_convolutions()
        lowered = lower(program, partitioners, reinplace=True, shared_inputs=True)
        with (folder / name).open("wb") as file:
            lowered.write_to_file(file)
        prefix = f"{ENCODER}:" if name == ENCODER else ""
        found = layers_of_instructions(lowered)
        layers |= {prefix + node: layer.replace("decode.model.", "", 1) for node, layer in found.items()}
    checkpoint.save_tokenizer(folder)
    checkpoint.config.save_pretrained(folder)
    files = [folder / name for name in (MODEL, ENCODER)]
    tools = ("executorch", "torch")
    made = steps.manifest(
        checkpoint, files, shapes, kernels=kernels, runtime="executorch", tools=tools, layer_of_node=layers
    )
    return msgspec.structs.replace(made, source_length=longest if shapes.masked else 0)


def codes_equal(checkpoint: Checkpoint, folder: Path, manifest: Manifest) -> bool:
    """Whether every packed matrix of both programs is, code by code, that of the layer which reads it."""
    return all(generic.codes_equal(checkpoint, folder, part) for part in _parts(manifest))


def slow_nodes(folder: Path, manifest: Manifest) -> list[str]:
    """Layers of both programs whose operator takes longer than its float32 twin; see `slow_path`."""
    return [row for part in _parts(manifest) for row in slow_nodes_of(folder, part)]


def _parts(manifest: Manifest) -> tuple[Manifest, Manifest]:
    """The manifest as if either program were the only one."""
    layers = {name: layer.removeprefix("model.") for name, layer in manifest.layer_of_node.items()}
    prefix = f"{ENCODER}:"
    encoder = {name.removeprefix(prefix): layer for name, layer in layers.items() if name.startswith(prefix)}
    return msgspec.structs.replace(manifest, artefact=ENCODER, layer_of_node=encoder), manifest


def _encoder(model: nn.Module, shapes: steps.Shapes, longest: int) -> torch.export.ExportedProgram:
    dynamic = tuple({1: Dim("source", min=1, max=longest)} if shapes.masked else None for _ in shapes.inputs)
    program = traced(steps.Encode(model, ExecutorchDialect()), shapes.source(), dynamic)
    _drop_dead_code(program)
    return program


def _drop_dead_code(program: torch.export.ExportedProgram) -> None:
    """Leave out the decoder that cross-attention's keys and values came out of.

    Checks of types and dropout, which does nothing here, keep it alive: torch takes them for effects.
    """
    for node in list(program.graph.nodes):
        if node.target is torch.ops.aten._assert_tensor_metadata.default:
            program.graph.erase_node(node)
        elif node.target is torch.ops.aten.dropout.default and node.args[2] is False:
            node.replace_all_uses_with(node.args[0])
            program.graph.erase_node(node)
    program.graph.eliminate_dead_code()
    inputs = {node.name: node for node in program.graph.find_nodes(op="placeholder")}
    specs = program.graph_signature.input_specs
    for spec in list(specs):
        if spec.kind in (InputKind.PARAMETER, InputKind.BUFFER) and not inputs[spec.arg.name].users:
            specs.remove(spec)
            program.graph.erase_node(inputs[spec.arg.name])
            program.state_dict.pop(spec.target, None)
    program.graph_module.recompile()


def _decoder(model: nn.Module, shapes: steps.Shapes, longest: int) -> torch.export.ExportedProgram:
    source = Dim("source", min=1, max=longest)
    tokens = Dim("tokens", min=1, max=min(MOST_TOKENS, shapes.context_length))
    arguments: tuple[Any, ...] = (*shapes.tokens(), shapes.cross())
    dynamic: tuple[Any, ...] = ({1: tokens}, None, [{2: source} if shapes.masked else None] * len(arguments[2]))
    if shapes.masked:
        arguments, dynamic = (*arguments, shapes.bias()), (*dynamic, {3: source})
    return traced(_StaticDecode(model, shapes), arguments, dynamic)


def _with_convolutions() -> list[Any]:
    """XNNPACK with all of its passes: one makes of a convolution over time the kind that it has."""
    from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner

    return [XnnpackPartitioner()]


class _StaticDecode(nn.Module):
    """`steps.Decode` with the caches inside, [heads, context, head_dim]: one dimension more, and `index_put` copies."""

    def __init__(self, model: nn.Module, shapes: steps.Shapes) -> None:
        super().__init__()
        self.decode = steps.Decode(model, ExecutorchDialect())
        self.cached = shapes.names("cache")
        for name, cache in zip(self.cached, shapes.past(), strict=True):
            self.register_buffer(name.replace(".", "_"), cache[0])

    def forward(
        self,
        input_ids: torch.Tensor,
        total: torch.Tensor,
        cross: list[torch.Tensor],
        bias: torch.Tensor | None = None,
    ) -> torch.Tensor:
        past = [self.get_buffer(name.replace(".", "_")) for name in self.cached]
        return self.decode(input_ids, total, past, cross, bias)[0]


class ExecutorchDialect:
    """Attention out of products and sums that XNNPACK takes; the cached one sees the whole cache, masked."""

    def attend(
        self, query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, bias: torch.Tensor | None, scale: float
    ) -> torch.Tensor:
        scores = torch.matmul(query * scale, keys.transpose(2, 3))
        scores = scores if bias is None else scores + bias
        return torch.matmul(torch.softmax(scores, dim=-1), values).transpose(1, 2).flatten(2)

    def attend_cached(
        self,
        query: torch.Tensor,
        new: steps.Pair,
        cached: steps.Pair,
        bias: torch.Tensor | None,
        scale: float,
        total: torch.Tensor,
    ) -> tuple[torch.Tensor, steps.Pair]:
        tokens, context = query.shape[2], cached[0].shape[1]
        positions = torch.arange(tokens) + (total.to(torch.int64) - tokens)
        for cache, states in zip(cached, new, strict=True):
            cache[:, positions] = states[0]
        ahead = torch.arange(context, dtype=torch.float32)[None] - positions.to(torch.float32)[:, None]
        mask = (ahead.clamp(0, 1) * -builtin.FAR)[None, None]
        keys, values = cached
        y = self.attend(query, keys[None], values[None], mask if bias is None else bias + mask, scale)
        return y, cached
