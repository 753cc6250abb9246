"""Made-up results, labelled so: for tests of the report alone."""

import numpy as np

from edge.core.measurement import Energy, Evaluation, Measurement, MemorySample, Phase, Protocol, Repetition
from edge.core.session import OperatorTime

DEVICE = {
    "cpu": "Synthetic CPU",
    "cores": 2,
    "isa": ["avx2", "avx512_vnni"],
    "virtual_machine": True,
    "caches": {"L1 data": "48K", "L2": "1024K"},
    "memory_bytes": 25_000_000_000,
    "governor": None,
    "os": "Debian GNU/Linux 12",
    "kernel": "6.1.0",
    "libraries": {"onnxruntime": "1.31.1"},
}
LAYER_US = {
    "self_attn.q_proj, k_proj, v_proj": 21,
    "self_attn.o_proj": 12,
    "mlp.gate_proj, up_proj": 62,
    "mlp.down_proj": 34,
    "self_attn": 14,
    "input_layernorm": 3,
    "post_attention_layernorm": 3,
}


def evaluation(**changes):
    fields = {
        "subject": "out/bundle",
        "kind": "artefact",
        "name": "SmolLM2-135M-Instruct",
        "recipe": "int4, edge kernels",
        "text": "synthetic.txt",
        "text_sha256": "ab" * 32,
        "context_length": 1024,
        "tokens": 11943,
        "perplexity": 42.31,
        "word_perplexity": 93.1,
        "bits_per_byte": 1.21,
        "original": "out/original",
        "perplexity_original": 38.88,
        "kl_divergence": 0.0732,
        "top1_agreement": 0.862,
        "stored_bytes": 79_300_000,
        "bits_per_weight": 4.71,
    }
    return Evaluation(**{**fields, **changes})


def measurement(step_ms=5.2, seed=0, memory_mb=240.0, **changes):
    random = np.random.default_rng(seed)
    repetitions = [
        Repetition(128, int(random.normal(158, 4) * 1e6), _steps(random, step_ms), 900_000_000, [2_600_000, 2_590_000])
        for _ in range(6)
    ]
    fields = {
        "bundle": "out/bundle",
        "bundle_sha256": "cd" * 32,
        "name": "SmolLM2-135M-Instruct",
        "kernels": "edge",
        "runtime": "onnx",
        "recipe": "int4",
        "stored_bytes": 79_300_000,
        "bits_per_weight": 4.71,
        "device": DEVICE,
        "protocol": Protocol(128, 64, 3, 6, 0),
        "load_ns": 84_000_000,
        "repetitions": repetitions,
        "operators": _operators(step_ms),
        "peak_bytes": int((memory_mb + 9) * 1e6),
        "memory": _memory(random, memory_mb),
        "phases": [
            Phase("load", 0, 90_000_000),
            Phase("warm-up", 95_000_000, 1_600_000_000),
            Phase("measured", 1_605_000_000, 4_900_000_000),
        ],
        "energy": Energy("not_available", "no RAPL counter under /sys/class/powercap"),
    }
    return Measurement(**{**fields, **changes})


def _steps(random, step_ms):
    return [int(ns) for ns in random.lognormal(np.log(step_ms * 1e6), 0.06, 63)]


def _operators(step_ms):
    rows = [
        OperatorTime(f"/{i}/{part}", _operator(part), f"model.layers.{i}.{part}", 191, int(191e3 * us * step_ms / 5))
        for i in range(30)
        for part, us in LAYER_US.items()
    ]
    return [*rows, OperatorTime("/head", "Linear", "lm_head", 191, int(191e3 * 620 * step_ms / 5))]


def _operator(part):
    if part == "self_attn":
        return "GroupQueryAttention"
    return "SkipSimplifiedLayerNormalization" if part.endswith("norm") else "Linear"


def _memory(random, memory_mb):
    times = np.arange(0, 5.0, 0.02)
    ramp = 95 + (memory_mb - 95) * np.clip((times - 0.02) / 0.5, 0, 1) + random.normal(0, 0.4, len(times))
    return [MemorySample(int(t * 1e9), int(mb * 1e6)) for t, mb in zip(times, ramp, strict=True)]
