"""ONNX Runtime's MatMulNBits with int8 activations (accuracy level 4): a graph with a node per matrix, its own threads.

Timed: one run of the session with inputs and outputs bound, so the graph's cost per node is in it.
"""

from __future__ import annotations

import numpy as np

from edge.profiles.peers.matmul import Contender, Missing, Pass, Shape

VARIANTS = {
    "onnxruntime-q4-b32": 4,
    "onnxruntime-q4-b64": 4,
    "onnxruntime-q4-b128": 4,
    "onnxruntime-q2-b64": 2,
    "onnxruntime-q8-b32": 8,
}


def open(name: str, shape: Shape, threads: int, cold_bytes: int) -> Contender:
    """Raises `Missing` for columns that the block doesn't divide."""
    import onnx
    import onnxruntime
    from onnx import TensorProto, helper, numpy_helper

    bits, block = (int(part[1:]) for part in name.split("-")[1:])
    if shape.k % block:
        raise Missing(f"{name} needs columns in multiples of {block}")
    count = shape.matrices(shape.n * shape.k * bits / 8, cold_bytes)
    random = np.random.default_rng(0)
    codes = random.integers(0, 256, (shape.n, shape.k // block, block * bits // 8), dtype=np.uint8)
    scales = (random.random((shape.n, shape.k // block)) * 0.01).astype(np.float32)
    attributes = {"K": shape.k, "N": shape.n, "bits": bits, "block_size": block, "accuracy_level": 4}
    nodes, weights = [], [numpy_helper.from_array(scales, "scales")]
    for i in range(count):
        weights.append(numpy_helper.from_array(np.roll(codes, i), f"w{i}"))
        inputs = ["x", f"w{i}", "scales"]
        nodes.append(helper.make_node("MatMulNBits", inputs, [f"y{i}"], domain="com.microsoft", **attributes))
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, [shape.m, shape.k])
    outputs = [helper.make_tensor_value_info(f"y{i}", TensorProto.FLOAT, [shape.m, shape.n]) for i in range(count)]
    graph = helper.make_graph(nodes, "bench", [x], outputs, weights)
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
    model: onnx.ModelProto = helper.make_model(graph, opset_imports=opsets, ir_version=10)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    binding = session.io_binding()
    binding.bind_cpu_input("x", shape.activations())
    for output in outputs:
        value = onnxruntime.OrtValue.ortvalue_from_shape_and_type([shape.m, shape.n], np.float32)
        binding.bind_ortvalue_output(output.name, value)
    return Pass(count, lambda: session.run_with_iobinding(binding))
