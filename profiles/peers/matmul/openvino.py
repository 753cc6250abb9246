"""OpenVINO's compressed products with int8 activations: one model with a node per matrix, its own threads.

Symmetric weights, float32 in between and dynamic quantization by the weights' groups: the fastest of its settings here.
Timed: one synchronous inference with the input bound, so the graph's cost per node is in it.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from edge.profiles.peers.matmul import Contender, Missing, Pass, Shape

GROUP = 64
VARIANTS = {"openvino-i4-g64": 4, "openvino-i8-g64": 8}


def open(name: str, shape: Shape, threads: int, cold_bytes: int) -> Contender:
    """Raises `Missing` where openvino isn't installed or the group doesn't divide the columns."""
    try:
        import openvino
        from openvino import opset13
    except ImportError as error:
        raise Missing("openvino is not installed") from error
    if shape.k % GROUP:
        raise Missing(f"{name} needs columns in multiples of {GROUP}")
    bits = VARIANTS[name]
    count = shape.matrices(shape.n * shape.k * bits / 8, cold_bytes)
    codes = np.random.default_rng(0).integers(0, 256, shape.n * shape.k * bits // 8, dtype=np.uint8)
    weights = [np.roll(codes, i) for i in range(count)]  # OpenVINO's constants use this memory
    x = opset13.parameter([shape.m, shape.k], np.float32)
    products = [opset13.matmul(x, _dequantized(codes, shape, bits), False, True) for codes in weights]
    model = openvino.Model([opset13.result(product) for product in products], [x])
    settings: dict[str, Any] = {
        "INFERENCE_NUM_THREADS": threads,
        "NUM_STREAMS": 1,
        "INFERENCE_PRECISION_HINT": "f32",
        "DYNAMIC_QUANTIZATION_GROUP_SIZE": GROUP,
    }
    request = openvino.Core().compile_model(model, "CPU", settings).create_infer_request()
    request.set_input_tensor(openvino.Tensor(shape.activations()))

    def run() -> None:
        request.infer(share_outputs=True)

    return Pass(len(weights), run)


def _dequantized(codes: Any, shape: Shape, bits: int) -> Any:
    """The float matrix as OpenVINO's own compression writes it: code * scale by groups."""
    import openvino
    from openvino import opset13

    kind = openvino.Type.i4 if bits == 4 else openvino.Type.i8
    stored = opset13.constant(openvino.Tensor(codes, [shape.n, shape.k // GROUP, GROUP], kind))
    scale = opset13.constant(np.full([shape.n, shape.k // GROUP, 1], 0.01, np.float16))
    values = opset13.multiply(opset13.convert(stored, "f16"), scale)
    return opset13.convert(opset13.reshape(values, [shape.n, shape.k], False), "f32")
