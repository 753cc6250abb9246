"""A thin writer of ONNX models: nodes named after the layers they stand for, weights streamed into one data file."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

MODEL = "model.onnx"
DATA = "model.onnx.data"
IR_VERSION = 10
OPSETS = {"": 21, "com.microsoft": 1, "edge": 1}
PAGE = 4096  # large weights start on a page, so that a memory map of one touches no other
LINE = 64
Array = NDArray[np.generic]


class GraphBuilder:
    """One graph and its data file `model.onnx.data` in `folder`; `save` writes `model.onnx`.

    Every node belongs to a layer: its name is `layer/Operator`, and `layer_of_node` maps it back.
    """

    def __init__(self, folder: Path, opset: int = OPSETS[""]) -> None:
        self.folder = folder
        self.opset = opset
        self.layer_of_node: dict[str, str] = {}
        self._inputs: list[ir.Value] = []
        self._outputs: list[ir.Value] = []
        self._nodes: list[ir.Node] = []
        self._weights: dict[str, ir.Value] = {}
        self._stored: dict[str, tuple[np.dtype[Any], int, int]] = {}
        self._data = (folder / DATA).open("wb")

    def __enter__(self) -> GraphBuilder:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._data.close()

    def input(self, name: str, dtype: type[np.generic], shape: Sequence[int | str]) -> ir.Value:
        """An input of the graph; a string in `shape` is a dimension known at run time."""
        self._inputs.append(_typed(ir.Value(name=name), np.dtype(dtype), shape))
        return self._inputs[-1]

    def output(self, value: ir.Value, name: str, dtype: type[np.generic], shape: Sequence[int | str]) -> None:
        """Make a value an output of the graph under `name`."""
        value.name = name
        self._outputs.append(_typed(value, np.dtype(dtype), shape))

    def weight(self, name: str, make: Callable[[], Array]) -> ir.Value:
        """An array in the data file. A name stands for one array: asking again gives the one that is there."""
        if name not in self._weights:
            array = np.ascontiguousarray(make())
            position = self._data.tell()
            offset = -(-position // PAGE) * PAGE if array.nbytes >= PAGE else -(-position // LINE) * LINE
            self._data.write(bytes(offset - position))
            array.tofile(self._data)
            self._place(name, array.dtype, array.shape, offset, array.nbytes)
        return self._weights[name]

    def alias(self, name: str, weight: ir.Value, shape: Sequence[int]) -> ir.Value:
        """The same bytes of the data file seen with another shape, so that a tied matrix is stored once."""
        if name not in self._weights:
            dtype, offset, length = self._stored[str(weight.name)]
            self._place(name, dtype, shape, offset, length)
        return self._weights[name]

    def scalar(self, name: str, value: int | float, dtype: type[np.generic]) -> ir.Value:
        """A small constant inside the model file."""
        return self.constant(name, np.array(value, dtype))

    def integers(self, name: str, values: Sequence[int]) -> ir.Value:
        """A short int64 vector inside the model file: a shape, an axis, a bound."""
        return self.constant(name, np.array(values, np.int64))

    def node(
        self, operator: str, layer: str, inputs: Sequence[ir.Value | None], *, domain: str = "", **attributes: Any
    ) -> ir.Value:
        """Add a node with one output and return that."""
        return self.nodes(operator, layer, inputs, 1, domain=domain, **attributes)[0]

    def nodes(
        self,
        operator: str,
        layer: str,
        inputs: Sequence[ir.Value | None],
        outputs: int,
        *,
        domain: str = "",
        **attributes: Any,
    ) -> Sequence[ir.Value]:
        """Add a node with several outputs and return them."""
        name, count = f"{layer}/{operator}", 1
        while name in self.layer_of_node:
            count += 1
            name = f"{layer}/{operator}_{count}"
        node = ir.node(operator, inputs, attributes, domain=domain, num_outputs=outputs, name=name)
        for index, value in enumerate(node.outputs):
            value.name = name if index == 0 else f"{name}:{index}"
        self.layer_of_node[name] = layer
        self._nodes.append(node)
        return node.outputs

    def save(self) -> None:
        """Write the model file. The same calls give the same bytes."""
        used = {node.domain for node in self._nodes} | {""}
        opsets = {domain: version for domain, version in OPSETS.items() if domain in used} | {"": self.opset}
        graph = ir.Graph(
            self._inputs,
            self._outputs,
            nodes=self._nodes,
            initializers=list(self._weights.values()),
            opset_imports=opsets,
            name="model",
        )
        self._data.flush()
        ir_version = IR_VERSION if self.opset == OPSETS[""] else IR_VERSION + 1
        ir.save(ir.Model(graph, ir_version=ir_version, producer_name="edge"), self.folder / MODEL)

    def _place(self, name: str, dtype: np.dtype[Any], shape: Sequence[int], offset: int, length: int) -> None:
        tensor = ir.ExternalTensor(
            DATA,
            offset,
            length,
            ir.DataType.from_numpy(dtype),
            shape=ir.Shape(shape),
            name=name,
            base_dir=str(self.folder),
        )
        self._stored[name] = (dtype, offset, length)
        self._weights[name] = _typed(ir.Value(name=name, const_value=tensor), dtype, shape)

    def constant(self, name: str, array: Array) -> ir.Value:
        """A small array inside the model file."""
        if name not in self._weights:
            value = ir.Value(name=name, const_value=ir.tensor(array, name=name))
            self._weights[name] = _typed(value, array.dtype, array.shape)
        return self._weights[name]


def _typed(value: ir.Value, dtype: np.dtype[Any], shape: Sequence[int | str]) -> ir.Value:
    value.type = ir.TensorType(ir.DataType.from_numpy(dtype))
    value.shape = ir.Shape(shape)
    return value
