"""Encoder-decoders as two graphs, `encoder.onnx` and `model.onnx` (the decoder), with one data file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import onnx_ir as ir
import torch
from torch import nn
from torch.export import Dim
from torch.onnx.ops import symbolic, symbolic_multi_out

from edge.core.bundle import Manifest
from edge.core.errors import UsageError
from edge.core.target import Kernels, KvCacheType
from edge.exporters import _encoder_decoder as steps
from edge.exporters._encoder_decoder import write_samples
from edge.exporters._modules import use_edge_operators
from edge.exporters.onnx.builder import DATA, MODEL
from edge.exporters.onnx.linear import operators, refuse_unserved
from edge.exporters.onnx.readback import stored
from edge.exporters.onnx.slow_path import slow_nodes as slow_nodes_of
from edge.exporters.onnx.torch_graph import save, to_onnx
from edge.models.checkpoint import Checkpoint
from edge.models.torch_model import build_model

__all__ = ["codes_equal", "slow_nodes", "write", "write_samples"]
ENCODER = "encoder.onnx"
MICROSOFT = "com.microsoft"


def write(
    checkpoint: Checkpoint,
    folder: Path,
    *,
    kernels: Kernels,
    context_length: int,
    kv_cache: KvCacheType | None = None,
) -> Manifest:
    """Write both graphs into an existing folder and say what was written; see `export.write`."""
    if kv_cache not in (None, "float32"):
        message = f"an encoder-decoder's caches are float32, not {kv_cache}"
        raise UsageError("export.kv_cache", message, "leave --kv-cache away")
    for name, encoding in checkpoint.encodings.items():
        refuse_unserved(name, encoding, "edge")
        if kernels == "builtin":
            message = f"{checkpoint.name} is compressed, which needs edge's own operators here"
            raise UsageError("export.kernels", message, "use --kernels edge, or export the original")
    model = use_onnx_operators(use_edge_operators(build_model(checkpoint)))
    shapes = steps.shapes_of(model, checkpoint.spec.inputs[0], context_length)
    layers = save({ENCODER: _encoder(model, shapes), MODEL: _decoder(model, shapes)}, folder)
    checkpoint.save_tokenizer(folder)
    checkpoint.config.save_pretrained(folder)
    files = [folder / name for name in (MODEL, ENCODER, DATA)]
    tools = ("onnx-ir", "onnxruntime", "torch")
    return steps.manifest(checkpoint, files, shapes, kernels=kernels, runtime="onnx", tools=tools, layer_of_node=layers)


def codes_equal(checkpoint: Checkpoint, folder: Path, manifest: Manifest) -> bool:
    """Whether every matrix of both graphs holds exactly the codes, scales and zero points of the checkpoint."""
    nodes = {node.name: node for file in (ENCODER, MODEL) for node in ir.load(folder / file).graph}
    for name, _ in checkpoint.spec.matrices():
        tensor = checkpoint.matrix(name)
        module = operators(tensor.encoding, manifest.kernels)
        copies = [name, *(copy for copy, source in checkpoint.spec.tied_copies.items() if source == name)]
        places = [(copy.removesuffix(".weight"), kind) for copy in copies for kind in ("LINEAR", "EMBEDDING")]
        present = [(layer, kind) for layer, kind in places if f"{layer}/{getattr(module, kind)}" in nodes]
        if not present or not all(stored(nodes, manifest, layer, tensor, kind) for layer, kind in present):
            return False
        checkpoint.release()
    return True


def slow_nodes(folder: Path, manifest: Manifest) -> list[str]:
    """Layers of both graphs whose operator takes longer than its float32 twin; see `slow_path`."""
    both = (msgspec.structs.replace(manifest, artefact=name) for name in (ENCODER, MODEL))
    return [row for part in both for row in slow_nodes_of(folder, part)]


def _encoder(model: nn.Module, shapes: steps.Shapes) -> ir.Model:
    cross = shapes.names("cross")
    return to_onnx(
        steps.Encode(model, OnnxDialect()),
        shapes.source(),
        inputs=shapes.inputs,
        outputs=[*cross, steps.BIAS] if shapes.masked else cross,
        dynamic_shapes=tuple({1: Dim.DYNAMIC} if shapes.masked else {} for _ in shapes.inputs),
    )


def _decoder(model: nn.Module, shapes: steps.Shapes) -> ir.Model:
    past, cross = shapes.past(), shapes.cross()
    arguments: tuple[Any, ...] = (*shapes.tokens(), past, cross)
    dynamic: tuple[Any, ...] = ({1: Dim.DYNAMIC}, {}, [{}] * len(past))
    dynamic += ([{2: Dim.DYNAMIC} if shapes.masked else {}] * len(cross),)
    inputs = ["input_ids", "total_sequence_length", *shapes.names("past_key_values"), *shapes.names("cross")]
    if shapes.masked:
        arguments, dynamic, inputs = (*arguments, shapes.bias()), (*dynamic, {3: Dim.DYNAMIC}), [*inputs, steps.BIAS]
    outputs = ["logits", *shapes.names("present")]
    decode = steps.Decode(model, OnnxDialect())
    return to_onnx(decode, arguments, inputs=inputs, outputs=outputs, dynamic_shapes=dynamic)


class OnnxDialect:
    """ONNX Runtime's fused attention. The cached one writes new keys and values where they belong, and copies none."""

    def attend(
        self, query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, bias: torch.Tensor | None, scale: float
    ) -> torch.Tensor:
        joined = _joined(query)
        if bias is not None:  # the operator wants a row for every token
            bias = bias.expand(1, bias.shape[1], query.shape[2], keys.shape[2])
        return symbolic(
            f"{MICROSOFT}::MultiHeadAttention",
            [joined, keys, values, None, None, bias],
            {"num_heads": query.shape[1], "scale": float(scale)},
            dtype=query.dtype,
            shape=joined.shape,
            version=1,
        )

    def attend_cached(
        self,
        query: torch.Tensor,
        new: steps.Pair,
        cached: steps.Pair,
        bias: torch.Tensor | None,
        scale: float,
        total: torch.Tensor,
    ) -> tuple[torch.Tensor, steps.Pair]:
        joined, heads = _joined(query), query.shape[1]
        width = None if bias is None else _up_to(bias, total)
        inputs = [joined, *map(_joined, new), *cached, total - 1, total.reshape(()), None, None, None, width]
        y, keys, values = symbolic_multi_out(
            f"{MICROSOFT}::GroupQueryAttention",
            inputs,
            {"num_heads": heads, "kv_num_heads": heads, "scale": float(scale), "do_rotary": 0},
            dtypes=[torch.float32] * 3,
            shapes=[joined.shape, cached[0].shape, cached[1].shape],
            version=1,
        )
        return y, (keys, values)


def _up_to(bias: torch.Tensor, total: torch.Tensor) -> torch.Tensor:
    """The bias of the keys that there are so far. torch is told the widest: it doesn't compute this."""
    inputs = [bias, torch.zeros(1, dtype=torch.int64), total.to(torch.int64), torch.full((1,), 3)]
    return symbolic("::Slice", inputs, {}, dtype=bias.dtype, shape=bias.shape)


def _joined(x: torch.Tensor) -> torch.Tensor:
    """[1, heads, tokens, head_dim] -> [1, tokens, heads * head_dim]."""
    return x.transpose(1, 2).flatten(2)


def use_onnx_operators(model: nn.Module) -> nn.Module:
    """Replace dense products and T5's norms, in place, by ONNX Runtime's fused operators."""
    for path, module in list(model.named_modules()):
        if isinstance(module, nn.Linear):
            model.set_submodule(path, _Product(module.weight, module.bias))
        elif type(module).__name__.endswith("LayerNorm") and hasattr(module, "variance_epsilon"):
            model.set_submodule(path, _RmsNorm(module.weight, module.variance_epsilon))
    return model


class _Product(nn.Module):
    """x W^T + bias with W as checkpoints store it: a tied embedding shares its bytes."""

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None) -> None:
        super().__init__()
        self.weight, self.bias = weight, bias

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        shape = (*x.shape[:-1], self.weight.shape[0])
        y = symbolic(
            f"{MICROSOFT}::FusedMatMul", [x, self.weight], {"transB": 1}, dtype=x.dtype, shape=shape, version=1
        )
        return y if self.bias is None else y + self.bias


class _RmsNorm(nn.Module):
    """x / rms(x) * weight."""

    def __init__(self, weight: torch.Tensor, eps: float) -> None:
        super().__init__()
        self.weight, self.eps = weight, eps

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        attributes = {"epsilon": float(self.eps), "axis": -1}
        inputs = [x, self.weight]
        return symbolic("::SimplifiedLayerNormalization", inputs, attributes, dtype=x.dtype, shape=x.shape, version=1)
