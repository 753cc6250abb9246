"""Statistics, operator groups and the fingerprint."""

import json
import os
import platform

import pytest

from edge.core.errors import EdgeError
from edge.core.measurement import Energy, Measurement, Protocol, Repetition
from edge.core.session import OperatorTime
from edge.profiles import operators, statistics
from edge.profiles.fingerprint import caches, cpu_model, fingerprint


def measurement(repetitions):
    return Measurement(
        bundle="b",
        bundle_sha256="0",
        name="m",
        kernels="edge",
        runtime="onnx",
        recipe="int4",
        stored_bytes=1,
        bits_per_weight=4.0,
        device={},
        protocol=Protocol(128, 3, 3, len(repetitions), 0),
        load_ns=1,
        repetitions=repetitions,
        operators=[],
        peak_bytes=1,
        memory=[],
        phases=[],
        energy=Energy("not_available", "none"),
    )


def test_rates_and_latencies():
    first = Repetition(128, 64_000_000, [10_000_000, 30_000_000], 208_000_000, [])
    second = Repetition(128, 128_000_000, [5_000_000, 5_000_000], 138_000_000, [])
    result = measurement([first, second])
    assert statistics.prefill_tokens_per_s(result).max == pytest.approx(2000)
    assert statistics.prefill_tokens_per_s(result).median == pytest.approx(1500)
    assert (statistics.decode_tokens_per_s(result).min, statistics.decode_tokens_per_s(result).max) == (50, 200)
    assert statistics.ttft_ms(result).median == 96
    assert (statistics.decode_ms(result).count, statistics.decode_ms(result).median) == (4, 7.5)


def test_summary():
    values = statistics.summarize([5, 1, 2, 3, 4])
    assert (values.min, values.p10, values.median, values.p90, values.max) == (1, 1.4, 3, 4.6, 5)
    assert values.cv == pytest.approx(1.5811388 / 3)
    assert statistics.summarize([2.0]).cv == 0
    with pytest.raises(EdgeError, match="no samples"):
        statistics.decode_ms(measurement([]))


ROWS = [
    OperatorTime("a", "Linear", "model.layers.0.mlp.down_proj", 10, 300),
    OperatorTime("b", "Linear", "model.layers.11.mlp.down_proj", 10, 500),
    OperatorTime("c", "Linear", "lm_head", 10, 100),
    OperatorTime("d", "Add", "", 10, 60),
    OperatorTime("e", "GroupQueryAttention", "transformer.h.3", 10, 40),
]


def test_operators_are_grouped_by_kind_type_and_layer():
    kinds = operators.by_kind(ROWS)
    assert [(s.name, s.calls, s.total_ns) for s in kinds] == [
        ("mlp.down_proj", 20, 800),
        ("lm_head", 10, 100),
        ("Add", 10, 60),
        ("GroupQueryAttention", 10, 40),
    ]
    assert kinds[0].step_ns == 80 and kinds[0].share == 0.8
    slowest = operators.by_operator(ROWS)[0]
    assert (slowest.name, slowest.total_ns) == ("Linear", 900)
    assert operators.by_layer(ROWS)[0].name == "model.layers.11.mlp.down_proj"
    assert sum(s.share for s in operators.by_layer(ROWS)) == pytest.approx(1)
    assert operators.by_kind([]) == []


def test_this_machines_fingerprint_names_no_machine():
    found = fingerprint()
    assert found["cpu"] and found["memory_bytes"] > 1 << 28 and found["libraries"]["numpy"]
    assert found["threads"] == os.cpu_count()
    assert platform.node() not in json.dumps(found)


def test_a_simulated_arm_board(tmp_path):
    (tmp_path / "proc").mkdir()
    cpuinfo = "processor : 0\nFeatures\t: fp asimd asimddp i8mm\nCPU implementer\t: 0x41\nCPU part\t: 0xd4f\n"
    (tmp_path / "proc/cpuinfo").write_text(cpuinfo)
    for index, (level, kind, size) in enumerate([("1", "Data", "64K"), ("2", "Unified", "1024K")]):
        folder = tmp_path / f"sys/devices/system/cpu/cpu0/cache/index{index}"
        folder.mkdir(parents=True)
        for name, value in (("level", level), ("type", kind), ("size", size)):
            (folder / name).write_text(f"{value}\n")
    assert cpu_model(tmp_path) == "CPU implementer 0x41 part 0xd4f"
    assert caches(tmp_path) == {"L1 data": "64K", "L2": "1024K"}
    assert fingerprint(tmp_path)["isa"] == ["asimd", "asimddp", "i8mm"]
