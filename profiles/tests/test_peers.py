"""Side-by-side runs: turns, numbers out of samples, what is said of peers that aren't there, processes that die."""

import importlib
import sys

import numpy as np
import pytest

from edge.core.errors import EdgeError, UsageError
from edge.core.weight import Affine, Codebook, GroupMixed, Sparse
from edge.profiles.peers.apart import Worker
from edge.profiles.peers.engines import ENGINES, run
from edge.profiles.peers.engines.worker import Times
from edge.profiles.peers.matmul import Pass, Shape, worker
from edge.profiles.peers.matmul.cases import Case, all_cases, select
from edge.profiles.peers.matmul.rows import Packed, Peer, Probes, best_peer, row


def test_everyone_warms_up_and_then_takes_turns_in_an_order_that_turns_over():
    calls = []
    contenders = {name: Pass(1, lambda name=name: calls.append(name)) for name in "abc"}
    ticks = iter(range(0, 1000, 3))
    passes = worker.in_turns(contenders, 0.0, lambda: next(ticks), least_rounds=2)
    assert "".join(calls) == "abc" + "abc" + "cba"
    assert passes == {"a": [3, 3], "b": [3, 3], "c": [3, 3]}


def test_time_to_spend_makes_more_rounds():
    contenders = {"a": Pass(1, lambda: None)}
    assert len(worker.in_turns(contenders, 0.02, lambda: 0, least_rounds=1)["a"]) > 1


def test_a_row_says_what_its_samples_mean():
    case = Case(Affine(4, 64), Shape(2, 1000, 500), threads=2)
    packed = Packed("affine4_a8_avx2", "avx2", 250_000)
    times = [10.0, 20.0, 50.0]
    probes = Probes([100.0, 50.0, 20.0], [1000.0] * 3)  # loaded like the kernel: its share stays
    peers = {"slow": Peer(4, [60.0] * 3), "fast": Peer(4, [30.0, 30.0, 75.0]), "small": Peer(2, [10.0] * 3)}
    made = row(case, packed, times, probes, peers)
    assert (made.median_us, made.min_us, made.max_us, made.samples) == (20.0, 10.0, 50.0, 3)
    assert made.gb_per_s == pytest.approx(12.5)
    assert made.share_of_read_bandwidth == pytest.approx(0.25)
    assert made.gops == pytest.approx(2 * 2 * 1000 * 500 / 20e-6 / 1e9)
    assert made.share_of_int8_peak == pytest.approx(made.gops / 1000)
    assert made.bits_per_weight == 4.0
    assert made.peers == {"slow": 60.0, "fast": 30.0, "small": 10.0}
    assert (made.best_peer, made.ratio_to_best_peer) == ("fast", 1.5)
    assert (made.encoding, made.bits, made.group_size, made.m, made.k, made.n) == ("affine", 4, 64, 2, 1000, 500)
    assert row(case, packed, times, Probes([50.0] * 3, [0.0] * 3), {}).share_of_int8_peak is None


def test_a_peer_that_stores_fewer_bits_is_no_peer():
    peers = {"two": (1.0, 2), "four": (2.0, 4), "float": (9.0, 32)}
    assert [best_peer(peers, bits) for bits in (2, 3, 8, 40)] == ["two", "four", "float", None]


def test_every_row_has_a_name_of_its_own_and_rows_of_one_shape_stand_together():
    cases = all_cases([1, 2])
    assert len({case.name for case in cases}) == len(cases)
    groups = [(case.threads, case.shape) for case in cases]
    assert groups == sorted(groups)
    chosen = select("affine4g64_576x1536_m1_*", [2])
    assert [case.name for case in chosen] == ["affine4g64_576x1536_m1_t2"]
    with pytest.raises(UsageError, match="no row is called 'affine5'"):
        select("affine5")


def test_bits_decide_by_weight():
    shape = Shape(1, 128, 32)
    encodings = (Affine(3, 64), Codebook(4, dim=2), GroupMixed(64, 1), Sparse("16x8", 4, 64))
    assert [Case(encoding, shape).code_bits_per_weight for encoding in encodings] == [3, 2, 2, 4]


def test_a_sparse_matrix_has_the_density_that_its_name_says():
    case = Case(Sparse("16x8", 4, 64), Shape(1, 1024, 1024), density=0.25)
    tensor = case.tensor()
    assert tensor.parts["mask"].mean() == pytest.approx(0.25, abs=0.02)
    assert np.array_equal(
        tensor.dequantize() != 0, (tensor.parts["codes"] != 8) & (tensor.parts["scales"] != 0).repeat(64, 1)
    )
    assert "-75_" in case.name


def test_a_library_that_is_not_installed_is_said_once_and_left_out(monkeypatch):
    monkeypatch.setattr(worker, "LIBRARIES", ("openvino", "ggml"))
    monkeypatch.setitem(sys.modules, "openvino", None)
    ggml = importlib.import_module("edge.profiles.peers.matmul.ggml")
    monkeypatch.setattr(ggml.importlib.util, "find_spec", lambda name: None)
    ggml.load.cache_clear()
    request = worker.Request([], 1, True, 0.0, 1000)
    found = [opened for _, _, opened in worker._peers(Shape(1, 256, 16), request)]
    assert found == ["openvino is not installed", "llama-cpp-python is not installed"]


@pytest.mark.parametrize("library", worker.LIBRARIES)
def test_every_variant_of_a_library_says_its_bits(library):
    variants = importlib.import_module(f"edge.profiles.peers.matmul.{library}").VARIANTS
    assert variants and set(variants.values()) <= {2, 3, 4, 8, 32}


@pytest.mark.parametrize("name", ["onnxruntime-q4-b32", "torch-fp32", "torch-int8"])
def test_installed_libraries_run(name):
    module = importlib.import_module(f"edge.profiles.peers.matmul.{name.split('-')[0]}")
    contender = module.open(name, Shape(2, 64, 32), 1, 5000)
    contender.run()
    assert contender.matrices == -(-5000 // (64 * 32 * module.VARIANTS[name] // 8))


def times(prefill, decode):
    return Times(prefill * 10**6, prefill * 10**5, decode * 10**6, decode * 10**5)


def test_ratios_are_taken_round_by_round(tmp_path):
    ours, slow, fast = (run.Entry(engine, "x", tmp_path) for engine in ("edge", "llama_cpp", "onnxruntime_genai"))
    (tmp_path / "model.onnx").write_bytes(b"12345")
    taken = {
        ours: [times(10, 10), times(40, 40), times(10, 10)],  # slow all through the second round, like everyone
        slow: [times(10, 40), times(40, 160), times(10, 40)],
        fast: [times(20, 20), times(80, 80), times(20, 20)],
    }
    wall = {made.engine: made for made in run.rows_of(taken, 2, run.Protocol(100, 10, 3))}
    assert wall["edge"].decode_tokens_per_s == pytest.approx(1000)
    assert wall["edge"].decode_tokens_per_s_min == pytest.approx(250)
    assert wall["edge"].prefill_tokens_per_s == pytest.approx(10_000)
    assert (wall["edge"].ratio_to_best_peer, wall["edge"].best_peer) == (2.0, "onnxruntime_genai x")
    assert (wall["edge"].prefill_ratio_to_best_peer, wall["edge"].best_prefill_peer) == (1.0, "llama_cpp x")
    assert (wall["llama_cpp"].ratio_to_best_peer, wall["edge"].stored_bytes, wall["edge"].clock) == (0.5, 5, "wall")
    cpu = run.rows_of(taken, 1, run.Protocol(100, 10, 3))[0]
    assert (cpu.clock, cpu.decode_tokens_per_s) == ("cpu", pytest.approx(10_000))
    assert cpu.decode_tokens_per_wall_s == pytest.approx(1000)
    assert run.rows_of({ours: taken[ours]}, 1, run.Protocol())[0].ratio_to_best_peer is None


@pytest.mark.parametrize("engine", ENGINES)
def test_an_engine_has_its_formats(engine):
    module = importlib.import_module(f"edge.profiles.peers.engines.{engine}")
    assert module.FORMATS and callable(module.prepare) and callable(module.start)


def test_an_engine_that_is_not_installed_says_what_to_install(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "llama_cpp", None)
    module = importlib.import_module("edge.profiles.peers.engines.llama_cpp")
    with pytest.raises(EdgeError, match="llama-cpp-python can't be imported") as raised:
        module.prepare(run.Model("m", tmp_path, tmp_path), "Q4_0")
    assert "bench" in raised.value.hint


def test_a_worker_answers_fails_and_dies_in_ways_that_are_told_apart(tmp_path, monkeypatch):
    (tmp_path / "half_worker.py").write_text(
        "import os\n"
        "from edge.core.errors import EdgeError\n"
        "from edge.profiles.peers.apart import serve\n"
        "def handle(request):\n"
        "    print('noise on stdout')\n"
        "    yield 2 * request\n"
        "    if request == 3: raise EdgeError('a.code', 'three', 'not three')\n"
        "    if request == 4: os.abort()\n"
        "serve(handle)\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with Worker("half_worker") as process:
        assert list(process.ask(5)) == [10]
        with pytest.raises(EdgeError, match="three"):
            list(process.ask(3))
        assert list(process.ask(6)) == [12]
        with pytest.raises(EdgeError, match="signal 6"):
            list(process.ask(4))
