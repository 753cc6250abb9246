"""PyTorch on CPU: float32 (oneMKL) and dynamic int8 (oneDNN, one scale per output row and one per input).

Timed: a call from Python per matrix, some microseconds each.
"""

from __future__ import annotations

from collections.abc import Callable

from edge.profiles.peers.matmul import Contender, Missing, Pass, Shape

VARIANTS = {"torch-fp32": 32, "torch-int8": 8}


def open(name: str, shape: Shape, threads: int, cold_bytes: int) -> Contender:
    """Raises `Missing` where this build of PyTorch has no oneDNN."""
    import torch

    torch.set_num_threads(threads)
    count = shape.matrices(shape.n * shape.k * VARIANTS[name] / 8, cold_bytes)
    x = torch.from_numpy(shape.activations())
    weight = torch.randn(shape.n, shape.k)
    calls: list[Callable[[], object]] = []
    if name == "torch-fp32":
        weights = [weight.clone() for _ in range(count)]
        calls = [lambda w=w: torch.nn.functional.linear(x, w) for w in weights]
    else:
        if "onednn" not in torch.backends.quantized.supported_engines:
            raise Missing("this PyTorch has no oneDNN int8 products")
        torch.backends.quantized.engine = "onednn"
        scales, zeros = weight.abs().amax(1) / 127, torch.zeros(shape.n, dtype=torch.int64)
        codes = torch.quantize_per_channel(weight, scales, zeros, 0, torch.qint8)
        packed = [torch.ops.quantized.linear_prepack(codes, None) for _ in range(count)]
        calls = [lambda w=w: torch.ops.quantized.linear_dynamic(x, w) for w in packed]

    def run() -> None:
        with torch.inference_mode():
            for call in calls:
                call()

    return Pass(count, run)
