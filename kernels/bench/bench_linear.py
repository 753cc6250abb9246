"""Time edge's kernels against ONNX Runtime's MatMulNBits (level 4), interleaved in one process, with cold weights.

Each side is a graph of enough equal matrices that their weights exceed `--cold` megabytes; a run of the graph is one
sample, divided by the number of matrices. Compare ratios within one run only: other load on the machine moves both.

    python kernels/bench/bench_linear.py --columns 2048 --rows 8192 --tokens 1 128
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from edge.core.weight import Affine, CompressedTensor
from edge.kernels import ort_library_path, pack

Node = tuple[onnx.NodeProto, list[onnx.TensorProto]]


def edge_node(index: int, tensor: CompressedTensor) -> Node:
    """One product with edge's operator."""
    weight = numpy_helper.from_array(pack(tensor), f"w{index}")
    return helper.make_node("Linear", ["x", weight.name], [f"y{index}"], domain="edge", rows=tensor.shape[0]), [weight]


def builtin_node(index: int, tensor: CompressedTensor, block: int) -> Node:
    """One product with MatMulNBits, 4 bits, int8 activations."""
    rows, columns = tensor.shape
    codes = tensor.parts["codes"].reshape(rows, columns // block, block)
    blob = numpy_helper.from_array(codes[..., 0::2] | codes[..., 1::2] << 4, f"w{index}")
    scales = numpy_helper.from_array(tensor.parts["scales"].astype(np.float32), f"s{index}")
    attributes = {"N": rows, "K": columns, "bits": 4, "block_size": block, "accuracy_level": 4}
    inputs = ["x", blob.name, scales.name]
    return helper.make_node("MatMulNBits", inputs, [f"y{index}"], domain="com.microsoft", **attributes), [blob, scales]


def session(nodes: list[Node], columns: int, threads: int, folder: Path) -> ort.InferenceSession:
    """A graph of all nodes over one input; only the last product is an output, reduced so that none is dropped."""
    initializers = [weight for _, weights in nodes for weight in weights]
    outputs = [helper.make_tensor_value_info(node.output[0], TensorProto.FLOAT, None) for node, _ in nodes]
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["tokens", columns])
    graph = helper.make_graph([node for node, _ in nodes], "bench", [x], outputs, initializers)
    opsets = [helper.make_opsetid(*domain) for domain in (("", 21), ("edge", 1), ("com.microsoft", 1))]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=10)
    path = folder / f"{nodes[0][0].op_type}.onnx"
    onnx.save(model, path, save_as_external_data=True, location=f"{path.name}.data")
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.register_custom_ops_library(str(ort_library_path()))
    return ort.InferenceSession(path, options)


def measure(sessions: dict[str, ort.InferenceSession], x: NDArray[np.float32], samples: int) -> dict[str, list[float]]:
    """Seconds per run, one sample of each session in turn."""
    times: dict[str, list[float]] = {name: [] for name in sessions}
    for sample in range(samples + 1):
        for name, one in sessions.items():
            start = time.perf_counter()
            one.run(None, {"x": x})
            if sample:  # the first run warms up
                times[name].append(time.perf_counter() - start)
    return times


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=8192)
    parser.add_argument("--columns", type=int, default=2048)
    parser.add_argument("--bits", type=int, default=4)
    parser.add_argument("--group", type=int, default=64)
    parser.add_argument("--tokens", type=int, nargs="+", default=[1])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--samples", type=int, default=15)
    parser.add_argument("--cold", type=int, default=160, help="megabytes of weights on each side")
    arguments = parser.parse_args()
    rows, columns = arguments.rows, arguments.columns
    count = -(-arguments.cold * 2**20 * 8 // (rows * columns * arguments.bits))
    random = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as folder:
        tensors = [random_tensor(random, rows, columns, arguments.bits, arguments.group) for _ in range(count)]
        four_bits = [random_tensor(random, rows, columns, 4, arguments.group) for _ in range(count)]
        nodes = {
            "edge": [edge_node(i, tensor) for i, tensor in enumerate(tensors)],
            "MatMulNBits": [builtin_node(i, tensor, arguments.group) for i, tensor in enumerate(four_bits)],
        }
        sessions = {name: session(some, columns, arguments.threads, Path(folder)) for name, some in nodes.items()}
        title = f"{columns}x{rows}, group {arguments.group}, {arguments.threads} threads, {count} matrices"
        print(f"{title}, edge {arguments.bits} bits, isa {os.environ.get('EDGE_KERNELS_ISA', 'auto')}")
        for tokens in arguments.tokens:
            x = random.standard_normal((tokens, columns)).astype(np.float32)
            show(tokens, measure(sessions, x, arguments.samples), count, 2 * rows * columns * tokens)


def show(tokens: int, times: dict[str, list[float]], count: int, operations: int) -> None:
    """Microseconds per product: median, minimum and maximum, and the ratio of the medians."""
    medians = {}
    for name, samples in times.items():
        each = np.array(samples) / count
        medians[name] = float(np.median(each))
        spread = f"min {each.min() * 1e6:.1f} max {each.max() * 1e6:.1f}"
        speed = f"{operations / medians[name] / 1e9:.0f} GOPS"
        print(f"M={tokens:4d} {name:12s} {medians[name] * 1e6:9.1f} us  {spread}  {speed}")
    print(f"M={tokens:4d} MatMulNBits / edge = {medians['MatMulNBits'] / medians['edge']:.2f}")


def random_tensor(random: np.random.Generator, rows: int, columns: int, bits: int, group: int) -> CompressedTensor:
    """Codes and scales at random on the symmetric grid."""
    encoding = Affine(bits, group)
    codes = random.integers(0, 1 << bits, (rows, columns), dtype=np.uint8)
    scales = (random.random((rows, encoding.groups(columns))) * 0.01).astype(np.float16)
    return CompressedTensor("random", (rows, columns), encoding, {"codes": codes, "scales": scales})


if __name__ == "__main__":
    main()
