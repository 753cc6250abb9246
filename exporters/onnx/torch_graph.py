"""torch modules as ONNX graphs, by torch's own exporter: nodes named after the layers they stand for, one data file."""

from __future__ import annotations

import hashlib
import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import torch
from onnxscript.values import Opset
from torch import nn

from edge.core.errors import EdgeError
from edge.exporters.onnx.builder import DATA, IR_VERSION, OPSETS, PAGE

INLINE_BYTES = 1024  # smaller constants stay in the model file
EDGE = Opset("edge", 1)
SCOPES = "pkg.torch.onnx.name_scopes"


def to_onnx(
    module: nn.Module,
    arguments: tuple[Any, ...],
    *,
    inputs: Sequence[str],
    outputs: Sequence[str],
    dynamic_shapes: Any,
) -> ir.Model:
    """The graph of a module whose compressed matrices are edge's operators. Raises `EdgeError` for one torch can't trace.

    dynamic_shapes: as torch.export takes them, by argument.
    """
    with _quiet():
        try:
            program = torch.onnx.export(
                module.eval(),
                arguments,
                dynamo=True,
                verbose=False,
                opset_version=OPSETS[""],
                input_names=list(inputs),
                output_names=list(outputs),
                dynamic_shapes=dynamic_shapes,
                custom_translation_table=TRANSLATIONS,
                external_data=False,
            )
        except Exception as error:  # torch's exporter has a tree of errors of its own
            hint = "the model computes what torch.export can't trace; report the model"
            raise EdgeError("export.trace", f"torch can't export this model: {_line(error)}", hint) from error
    assert program is not None
    return program.model


def save(models: Mapping[str, ir.Model], folder: Path) -> dict[str, str]:
    """Write models by file name with one data file that they share; return the layer of every node.

    A tensor that several models or layers hold is stored once.
    """
    layers: dict[str, str] = {}
    with (folder / DATA).open("wb") as data:
        stored: dict[bytes, tuple[int, int]] = {}
        for name, model in models.items():
            layers |= _name_nodes(model)
            for value in model.graph.initializers.values():
                _store(value, data, stored, folder)
            model.ir_version, model.producer_name, model.producer_version = IR_VERSION, "edge", None
            model.metadata_props.clear()
            ir.save(model, folder / name)
    return layers


def _store(value: ir.Value, data: Any, stored: dict[bytes, tuple[int, int]], folder: Path) -> None:
    """Move a constant of some size to the data file, at a place of its own page."""
    tensor = value.const_value
    if tensor is None or tensor.nbytes < INLINE_BYTES:
        return
    array = np.ascontiguousarray(tensor.numpy())
    key = hashlib.sha256(array.data).digest()
    if key not in stored:
        offset = -(-data.tell() // PAGE) * PAGE
        data.write(bytes(offset - data.tell()))
        array.tofile(data)
        stored[key] = (offset, array.nbytes)
    offset, length = stored[key]
    value.const_value = ir.ExternalTensor(
        DATA, offset, length, tensor.dtype, shape=ir.Shape(array.shape), name=str(value.name), base_dir=str(folder)
    )


def _name_nodes(model: ir.Model) -> dict[str, str]:
    """Give every node the name `layer/Operator`, and drop what torch wrote about where it comes from."""
    layers: dict[str, str] = {}
    for node in model.graph:
        layer = _layer(node.metadata_props.get(SCOPES, ""))
        name, count = f"{layer}/{node.op_type}", 1
        while name in layers:
            count += 1
            name = f"{layer}/{node.op_type}_{count}"
        node.name, layers[name] = name, layer
        node.metadata_props.clear()
    for function in list(model.functions):
        del model.functions[function]
    for value in (*model.graph.initializers.values(), *model.graph.inputs, *model.graph.outputs):
        value.metadata_props.clear()
    return layers


def _layer(scopes: str) -> str:
    """The innermost module's path out of torch's list of scopes, which ends with the operation's own name."""
    paths = [part.strip(" '\"") for part in scopes.strip("[]").split(",")]
    inside = [path for path in paths[:-1] if path]
    return inside[-1].removeprefix("model.") if inside else "model"


def linear(
    x: Any,
    weight: Any,
    bias: Any = None,
    skip: Any = None,
    norm_weight: Any = None,
    norm_bias: Any = None,
    *,
    rows: int,
    activations: int = 0,
    norm: int = 0,
    epilogue: int = 0,
    epsilon: float = 1e-5,
) -> Any:
    """`torch.ops.edge.linear` as a node."""
    optional = [bias, skip, norm_weight, norm_bias]
    while optional and optional[-1] is None:
        optional.pop()
    attributes = {"rows": rows, "activations": activations, "norm": norm, "epilogue": epilogue, "epsilon": epsilon}
    return EDGE.Linear(x, weight, *optional, **attributes, _outputs=2)


def embedding(ids: Any, weight: Any, *, columns: int) -> Any:
    """`torch.ops.edge.embedding` as a node."""
    return EDGE.Embedding(ids, weight, columns=columns)


def _translations() -> dict[Any, Any]:
    import edge.kernels.torch_ops  # noqa: F401 (registers the operators)

    return {torch.ops.edge.linear.default: linear, torch.ops.edge.embedding.default: embedding}


TRANSLATIONS = _translations()


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the exporters' own remarks: what matters is raised."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:300]
