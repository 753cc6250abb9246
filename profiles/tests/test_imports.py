"""Other tools' results: profiles of engines run here, llama-bench as its documentation shows it, damaged files."""

import json

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper

from edge.core.errors import EdgeError, UsageError
from edge.core.plugins import IMPORTS
from edge.profiles import statistics
from edge.profiles.compare import compare
from edge.profiles.imports import etdump, read

RUNS = 4
# Fields and values of the example in llama.cpp's tools/llama-bench/README.md.
SETTINGS = {
    "build_commit": "8cf427ff",
    "build_number": 5163,
    "cpu_info": "AMD Ryzen 7 7800X3D 8-Core Processor",
    "gpu_info": "NVIDIA GeForce RTX 4080",
    "backends": "CUDA",
    "model_filename": "models/Qwen2.5-7B-Instruct-Q4_K_M.gguf",
    "model_type": "qwen2 7B Q4_K - Medium",
    "model_size": 4677120000,
    "model_n_params": 7615616512,
    "n_batch": 2048,
    "n_threads": 8,
    "type_k": "f16",
    "flash_attn": False,
}
PROMPT = {
    **SETTINGS,
    "n_prompt": 512,
    "n_gen": 0,
    "n_depth": 0,
    "test_time": "2025-04-24T11:58:50Z",
    "avg_ns": 72135640,
    "stddev_ns": 1453752,
    "avg_ts": 7100.002165,
    "stddev_ts": 140.341520,
    "samples_ns": [74601900, 71632900, 71745200, 71952700, 70745500],
    "samples_ts": [6863.1, 7147.55, 7136.37, 7115.79, 7237.21],
}
GENERATION = {
    **SETTINGS,
    "n_prompt": 0,
    "n_gen": 128,
    "n_depth": 0,
    "test_time": "2025-04-24T11:58:51Z",
    "avg_ns": 1076767880,
    "stddev_ns": 9449585,
    "avg_ts": 118.881588,
    "stddev_ts": 1.041811,
    "samples_ns": [1075361300, 1065089400, 1071761200, 1081934900, 1089692600],
    "samples_ts": [119.03, 120.178, 119.43, 118.307, 117.464],
}


def llama_bench(folder, *rows, lines=False):
    path = folder / "bench.json"
    path.write_text("\n".join(map(json.dumps, rows)) if lines else json.dumps(rows, indent=2))
    return path


@pytest.mark.parametrize("lines", [False, True])
def test_llama_bench_joins_prompt_and_generation(tmp_path, lines):
    (found,) = read(llama_bench(tmp_path, PROMPT, GENERATION, lines=lines))
    assert (found.protocol.prompt_tokens, found.protocol.generated_tokens, found.protocol.threads) == (512, 129, 8)
    assert statistics.prefill_tokens_per_s(found).median == pytest.approx(7136.37, rel=1e-5)
    assert statistics.decode_tokens_per_s(found).max == pytest.approx(120.178, rel=1e-5)
    assert [sum(r.decode_ns) for r in found.repetitions] == GENERATION["samples_ns"]
    assert (found.name, found.recipe) == ("Qwen2.5-7B-Instruct-Q4_K_M", "qwen2 7B Q4_K - Medium")
    assert (found.runtime, found.kernels, found.engine) == ("llama.cpp", "CUDA", "imported")
    assert found.bits_per_weight == pytest.approx(4.913, abs=1e-3) and found.stored_bytes == 4677120000
    assert found.device["gpu"] == "NVIDIA GeForce RTX 4080" and "5163" in found.device["libraries"]["llama.cpp"]
    assert "memory" in found.engine_note and found.peak_bytes == 0


def test_llama_bench_tells_settings_and_lengths_apart(tmp_path):
    other = [{**row, "n_threads": 4} for row in (PROMPT, GENERATION)]
    longer = {**PROMPT, "n_prompt": 1024}
    found = read(llama_bench(tmp_path, PROMPT, longer, GENERATION, *other))
    kinds = [(f.protocol.prompt_tokens, f.protocol.generated_tokens, f.protocol.threads) for f in found]
    assert kinds == [(512, 129, 8), (1024, 129, 8), (512, 129, 4)]
    (alone,) = read(llama_bench(tmp_path, GENERATION))
    assert (alone.protocol.prompt_tokens, alone.repetitions[0].prefill_ns) == (0, 0)
    (deep,) = read(llama_bench(tmp_path, {**GENERATION, "n_depth": 512}))
    assert "depth of 512" in deep.engine_note


def test_llama_bench_of_both_together_has_no_time_of_either(tmp_path):
    with pytest.raises(UsageError, match="alone"):
        read(llama_bench(tmp_path, {**PROMPT, "n_gen": 128}))


def test_two_results_of_llama_bench_are_compared(tmp_path):
    (a,) = read(llama_bench(tmp_path, PROMPT, GENERATION))
    slower = {**GENERATION, "samples_ns": [2 * ns for ns in GENERATION["samples_ns"]], "avg_ns": 2 * 1076767880}
    (b,) = read(llama_bench(tmp_path, PROMPT, slower))
    changes = {change.metric: change for change in compare([a], [b]).changes}
    assert changes["decode"].words == "slower" and changes["decode"].ratio == pytest.approx(0.5)
    assert "load" not in changes and "peak memory" not in changes


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"samples_ns": []}, "samples_ns"),
        ({"samples_ns": [1, -5]}, "samples_ns"),
        ({"samples_ns": "fast"}, "samples_ns"),
        ({"avg_ns": 5}, "avg_ns"),
        ({"n_prompt": 10**12}, "range"),
        ({"n_prompt": 0}, "range"),
        ({"model_size": 0}, "model_size"),
        ({"n_threads": "many"}, "n_threads"),
    ],
)
def test_impossible_rows_of_llama_bench(tmp_path, changes, word):
    with pytest.raises(EdgeError, match=word) as raised:
        read(llama_bench(tmp_path, PROMPT, {**PROMPT, **changes}))
    assert "row 2" in raised.value.message and "\n" not in raised.value.message


@pytest.fixture(scope="module")
def ort_profile(tmp_path_factory):
    """What ONNX Runtime writes of a few runs of a small graph."""
    folder = tmp_path_factory.mktemp("ort")
    weight = helper.make_tensor("w", TensorProto.FLOAT, [64, 64], np.eye(64, dtype=np.float32).ravel())
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["y"], name="/layer/MatMul"),
        helper.make_node("Sin", ["y"], ["z"], name="/layer/Sin"),
    ]
    ends = [[helper.make_tensor_value_info(name, TensorProto.FLOAT, [8, 64])] for name in "xz"]
    graph = helper.make_graph(nodes, "graph", *ends, [weight])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    onnx.checker.check_model(model)
    options = onnxruntime.SessionOptions()
    options.enable_profiling = True
    options.profile_file_prefix = str(folder / "profile")
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    for _ in range(RUNS):
        session.run(None, {"x": np.ones((8, 64), np.float32)})
    return folder / session.end_profiling()


def test_onnx_runtimes_profile(ort_profile):
    (found,) = read(ort_profile)
    assert {(row.node, row.operator, row.calls) for row in found.operators} == {
        ("/layer/MatMul", "MatMul", RUNS),
        ("/layer/Sin", "Sin", RUNS),
    }
    assert all(row.total_ns > 0 for row in found.operators)
    assert len(found.repetitions) == found.protocol.repetitions == RUNS
    total = sum(row.total_ns for row in found.operators)
    assert total <= sum(r.prefill_ns for r in found.repetitions)
    assert found.load_ns > 0 and (found.runtime, found.kernels) == ("onnx", "CPU")
    assert "profiler on" in found.engine_note


@pytest.mark.parametrize("keep", [0.3, 0.9])
def test_a_profile_that_was_cut_off(ort_profile, tmp_path, keep):
    whole = ort_profile.read_bytes()
    (tmp_path / "cut.json").write_bytes(whole[: int(keep * len(whole))])
    with pytest.raises(EdgeError, match="no whole profile") as raised:
        read(tmp_path / "cut.json")
    assert "session ends" in raised.value.hint


def test_a_profile_without_runs(ort_profile, tmp_path):
    loading = [event for event in json.loads(ort_profile.read_text()) if event["name"].startswith("model_loading")]
    (tmp_path / "p.json").write_text(json.dumps(loading))
    with pytest.raises(UsageError, match="no run"):
        read(tmp_path / "p.json")


@pytest.fixture(scope="module")
def et_files(tmp_path_factory):
    """An ETDump of a few runs of a small module, and its ETRecord."""
    pytest.importorskip("executorch")
    import torch
    from executorch.exir import to_edge_transform_and_lower
    from executorch.extension.pybindings import _C

    class Small(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.first = torch.nn.Linear(8, 8)
            self.inner = torch.nn.Sequential(torch.nn.Linear(8, 4))

        def forward(self, x):
            return torch.sin(self.inner(torch.cos(self.first(x))))

    folder = tmp_path_factory.mktemp("et")
    inputs = (torch.ones(1, 8),)
    program = to_edge_transform_and_lower(torch.export.export(Small().eval(), inputs), generate_etrecord=True)
    lowered = program.to_executorch()
    (folder / "small.pte").write_bytes(lowered.buffer)
    lowered.get_etrecord().save(str(folder / "small.etrecord"))
    loaded = _C._load_program(str(folder / "small.pte"), enable_etdump=True)
    method = loaded.load_method("forward")
    for _ in range(RUNS):
        method.call(list(inputs))
    loaded.write_etdump_result_to_file(str(folder / "small.etdp"))
    return folder


def test_an_etdump_names_operators(et_files):
    (found,) = read(et_files / "small.etdp")
    assert {row.operator for row in found.operators} == {"permute_copy.out", "addmm.out", "cos.out", "sin.out"}
    assert all(row.calls == RUNS and row.total_ns > 0 and row.layer == "" for row in found.operators)
    assert len(found.repetitions) == RUNS and found.load_ns > 0
    assert sum(row.total_ns for row in found.operators) <= sum(r.prefill_ns for r in found.repetitions)


def test_an_etrecord_names_layers(et_files):
    (found,) = read(et_files / "small.etdp", et_files / "small.etrecord")
    layers = {(row.operator, row.layer) for row in found.operators}
    assert {("addmm.out", "first"), ("addmm.out", "inner.0"), ("cos.out", "")} <= layers


def test_damaged_files_of_executorch(et_files, tmp_path):
    whole = (et_files / "small.etdp").read_bytes()
    for keep in (20, len(whole) // 2):
        (tmp_path / "cut.etdp").write_bytes(whole[:keep])
        with pytest.raises(EdgeError, match="can't be read") as raised:
            read(tmp_path / "cut.etdp")
        assert "\n" not in raised.value.message
    record = (et_files / "small.etrecord").read_bytes()
    (tmp_path / "cut.etrecord").write_bytes(record[: len(record) // 2])
    with pytest.raises(EdgeError, match=r"can't be read|is no ETRecord"):
        etdump.layers(tmp_path / "cut.etrecord")


def test_files_of_no_kind(tmp_path, ort_profile):
    for content in (b"", b"# not a result", b"{}", b'[{"build_commit": 1}]', b"[" * 10000, bytes(64)):
        (tmp_path / "x").write_bytes(content)
        with pytest.raises(UsageError, match="no kind") as raised:
            read(tmp_path / "x")
        assert "llama-bench" in raised.value.hint
    with pytest.raises(UsageError, match="can't read"):
        read(tmp_path / "missing")
    with pytest.raises(UsageError, match="of no use"):
        read(ort_profile, tmp_path / "x")


@pytest.mark.parametrize("name", IMPORTS.names())
def test_every_kind_says_what_it_reads(name):
    kind = IMPORTS.load(name)
    assert kind.DESCRIPTION and not kind.recognizes(b"") and not kind.recognizes(b'{"schema": 1}')
