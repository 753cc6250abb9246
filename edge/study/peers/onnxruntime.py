"""ONNX Runtime's own 4-bit quantizers (MatMulNBits) on our float32 graph, in blocks of 32 with int8 activations.

`rtn` rounds to the nearest, `k_quant` searches each block's scale and least value, both with a zero point.
`k_quant_mixed` keeps some layers' value and down projections at 8 bits, as onnxruntime-genai's model builder does.
The head is at 8 bits, and a tied embedding reads its rows there; an embedding of its own stays in float.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import torch

from edge.core.bundle import seal
from edge.core.errors import EdgeError
from edge.exporters._fusion import fused_name
from edge.exporters.onnx.builder import DATA, MODEL
from edge.exporters.onnx.export import write
from edge.models.checkpoint import open_checkpoint
from edge.models.spec import DecoderSpec

FORMATS = ("rtn", "k_quant", "k_quant_mixed")
BLOCK, HIGH = 32, 8
INT8_ACTIVATIONS = 4  # MatMulNBits' accuracy_level


def prepare(
    source: str | Path, format: str, folder: Path, *, windows: torch.Tensor, context_length: int, shared: Path
) -> None:
    """Write a bundle of a decoder quantized by ONNX Runtime into `folder`. These methods are not calibrated."""
    import onnx

    checkpoint = open_checkpoint(source)
    spec = checkpoint.spec
    manifest = write(checkpoint, folder, kernels="builtin", context_length=context_length)
    model = onnx.load(folder / MODEL)
    for name in (MODEL, DATA):
        (folder / name).unlink()
    tables = sum(size for name, size in _sizes(model.graph) if name.startswith("rope."))
    plain_matmuls(model.graph)
    high = [node for node, layer in manifest.layer_of_node.items() if _is_high(layer, spec, format)]
    quantized = _quantized(model, format.removesuffix("_mixed"), high)
    if spec.tied:
        share_head(quantized.graph, spec.head, f"{spec.embedding}.weight")
    size = sum(size for _, size in _sizes(quantized.graph)) - tables
    onnx.save(quantized, folder / MODEL, save_as_external_data=True, location=DATA)
    about = {
        "recipe": {"name": f"onnxruntime {format}"},
        "encodings": {},
        "layer_of_node": {},
        "stored_bytes": size,
        "bits_per_weight": 8 * size / checkpoint.parameters,
        "notes": [] if spec.tied else ["the embedding is stored in float32"],
    }
    seal(folder, msgspec.structs.replace(manifest, **about))


def plain_matmuls(graph: Any) -> None:
    """Make multiplications by a transposed constant MatMul by that constant turned: what the quantizer looks for."""
    from onnx import helper, numpy_helper

    constants = {tensor.name: tensor for tensor in graph.initializer}
    added = {}
    for node in graph.node:
        if node.op_type != "FusedMatMul" or node.input[1] not in constants:
            continue
        turned = f"{node.input[1]}.turned"
        if turned not in added:
            values = numpy_helper.to_array(constants[node.input[1]]).T
            added[turned] = numpy_helper.from_array(np.ascontiguousarray(values), turned)
        node.CopyFrom(helper.make_node("MatMul", [node.input[0], turned], node.output, name=node.name))
    used = {name for node in graph.node for name in node.input}
    kept = [tensor for tensor in graph.initializer if tensor.name in used]
    del graph.initializer[:]
    graph.initializer.extend([*kept, *added.values()])


def _is_high(layer: str, spec: DecoderSpec, format: str) -> bool:
    """Whether a layer's matrix is at 8 bits: the head's, and in `k_quant_mixed` those that the model builder names."""
    if layer == spec.head:
        return True
    if not format.endswith("_mixed"):
        return False
    count = len(spec.layers)
    eighth = count / 8
    for index, owner in enumerate(spec.layers):
        if layer.startswith(f"{owner.name}."):
            chosen = index < eighth or index >= 7 * eighth or (index - round(eighth)) % 3 == 2
            return chosen and (layer == owner.mlp.down.name or layer == fused_name(owner.attention.qkv, "qkv_proj"))
    return False


def _quantized(model: Any, algorithm: str, high: Sequence[str]) -> Any:
    from onnxruntime.quantization import matmul_nbits_quantizer as quantizers

    kind = {"rtn": quantizers.RTNWeightOnlyQuantConfig, "k_quant": quantizers.KQuantWeightOnlyQuantConfig}[algorithm]
    settings = kind(customized_weight_config={node: {"bits": HIGH} for node in high})
    matrices = quantizers.MatMulNBitsQuantizer(
        model, block_size=BLOCK, accuracy_level=INT8_ACTIVATIONS, algo_config=settings
    )
    try:
        with redirect_stdout(StringIO()):  # a progress bar of its own
            matrices.process()
    except ValueError as error:  # rows with an odd number of blocks, for one
        raise EdgeError("study.quantize", f"ONNX Runtime's quantizer fails: {error}", "leave it out") from error
    return matrices.model.model


def share_head(graph: Any, head: str, embedding: str) -> None:
    """Let the rows of a tied embedding be read from the head's 8-bit codes, as the model builder has it."""
    from onnx import helper, numpy_helper

    matmul = next(node for node in graph.node if node.op_type == "MatMulNBits" and node.name.startswith(f"{head}/"))
    gather = next(node for node in graph.node if node.op_type == "Gather" and node.input[0] == embedding)
    sizes = {attribute.name: attribute.i for attribute in matmul.attribute}
    shapes = {"codes": [sizes["N"], -1], "scales": [sizes["N"], -1], "zero_points": [sizes["N"], -1]}
    rows, seen = [], []
    for source, (part, shape) in zip(matmul.input[1:4], shapes.items(), strict=True):
        seen.append(f"{embedding}.{part}")
        graph.initializer.append(numpy_helper.from_array(np.array(shape, np.int64), f"{embedding}.{part}.shape"))
        rows.append(helper.make_node("Reshape", [source, f"{embedding}.{part}.shape"], [seen[-1]], name=seen[-1]))
    about = {"bits": HIGH, "block_size": BLOCK, "gather_axis": 0, "quantize_axis": 1, "domain": "com.microsoft"}
    inputs = [seen[0], gather.input[1], *seen[1:]]
    gather.CopyFrom(helper.make_node("GatherBlockQuantized", inputs, gather.output, name=gather.name, **about))
    nodes = [*rows, *graph.node]
    del graph.node[:]
    graph.node.extend(nodes)
    kept = [tensor for tensor in graph.initializer if tensor.name != embedding]
    del graph.initializer[:]
    graph.initializer.extend(kept)


def _sizes(graph: Any) -> list[tuple[str, int]]:
    """Bytes of every constant."""
    return [(tensor.name, len(tensor.raw_data)) for tensor in graph.initializer]
