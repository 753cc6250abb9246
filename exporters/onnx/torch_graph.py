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
import onnx
import onnx_ir as ir
import torch
from onnxscript.values import Op, Opset
from torch import nn

from edge.core.errors import EdgeError
from edge.exporters.onnx.builder import DATA, IR_VERSION, OPSETS, PAGE

INLINE_BYTES = 1024  # smaller constants stay in the model file
EDGE = Opset("edge", 1)
ALL_TYPES = onnx.defs.get_schema("Identity", 13).type_constraints[0].allowed_type_strs
SCOPES = "pkg.torch.onnx.name_scopes"


def to_onnx(
    module: nn.Module,
    arguments: tuple[Any, ...],
    *,
    inputs: Sequence[str],
    outputs: Sequence[str],
    dynamic_shapes: Any,
) -> ir.Model:
    """The graph of a module whose compressed matrices are edge's operators. `EdgeError` for one torch can't trace.

    dynamic_shapes: as torch.export takes them, by argument.
    """
    with quiet():
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


def convert(program: torch.export.ExportedProgram, opset: int, *, dense: bool = False) -> ir.Model:
    """The graph of a program whose compressed matrices are edge's operators.

    dense: products that are left dense become nodes `DenseLinear` of our domain, for the caller to write as it likes.
    """
    table = TRANSLATIONS | {torch.ops.aten.linear.default: dense_linear} if dense else TRANSLATIONS
    with quiet():
        try:
            made = torch.onnx.export(
                program, (), dynamo=True, verbose=False, opset_version=opset, custom_translation_table=table
            )
        except Exception as error:  # torch's exporter has a tree of errors of its own
            hint = "the model has an operator that ONNX hasn't; report the model"
            raise EdgeError("export.onnx", f"this model can't become ONNX: {_line(error)}", hint) from error
    assert made is not None
    return made.model


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
        layer = layer_of(node)
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


def layer_of(node: ir.Node) -> str:
    """Path of the module that a node of torch's graph comes from; `model` where it is no module's."""
    return _path(node.metadata_props.get(SCOPES, ""))


def _path(scopes: str) -> str:
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
    attributes = {"rows": rows, "activations": activations, "norm": norm, "epilogue": epilogue, "epsilon": epsilon}
    inputs = (x, weight, bias, skip, norm_weight, norm_bias)
    return _node("Linear", 1 if skip is None else 2, inputs, attributes)


def embedding(ids: Any, weight: Any, *, columns: int) -> Any:
    """`torch.ops.edge.embedding` as a node."""
    return _node("Embedding", 1, (ids, weight), {"columns": columns})[0]


def dense_linear(x: Any, weight: Any, bias: Any = None) -> Any:
    """`torch.ops.aten.linear` as a node that says so: ONNX has none with a weight [out, in] and any rank of x."""
    return _node("DenseLinear", 1, (x, weight, bias), {})[0]


def _node(name: str, outputs: int, inputs: Sequence[Any], attributes: Mapping[str, Any]) -> tuple[Any, ...]:
    """A node of our domain. torch wants a schema, and a type for every value of it; ours is checked at run time."""
    schema = onnx.defs.OpSchema
    optional = schema.FormalParameterOption.Optional
    made = schema(
        name,
        EDGE.domain,
        EDGE.version,
        inputs=[schema.FormalParameter(f"x{i}", f"T{i}", param_option=optional) for i in range(len(inputs))],
        outputs=[schema.FormalParameter(f"y{i}", "tensor(float)") for i in range(outputs)],
        type_constraints=[(f"T{i}", ALL_TYPES, "") for i in range(len(inputs))],
        attributes=[schema.Attribute(key, _kind(value)) for key, value in attributes.items()],
    )
    found = Op(EDGE, name, made)(*inputs, **attributes)
    return tuple(found) if outputs > 1 else (found,)


def _kind(value: int | float) -> onnx.defs.OpSchema.AttrType:
    kinds = onnx.defs.OpSchema.AttrType
    return kinds.FLOAT if isinstance(value, float) else kinds.INT


def _translations() -> dict[Any, Any]:
    import edge.kernels.torch_ops  # noqa: F401 (registers the operators)

    return {torch.ops.edge.linear.default: linear, torch.ops.edge.embedding.default: embedding}


TRANSLATIONS = _translations()


@contextmanager
def quiet() -> Iterator[None]:
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
