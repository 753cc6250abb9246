"""The ONNX Runtime session: caches in place, the context's end, profiles with layer names, damaged bundles."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import onnx
import pytest

from edge.core.bundle import Bundle, seal
from edge.core.errors import EdgeError, UsageError
from edge.core.plugins import RUNTIMES
from edge.core.session import SessionOptions, generate
from edge.exporters.onnx.export import write
from edge.models.checkpoint import open_checkpoint
from edge.models.testing import tiny_model
from edge.runtimes import onnx as runtime

CONTEXT = 32
TOKENS = np.random.default_rng(2).integers(3, 160, CONTEXT).tolist()
ONE_THREAD = SessionOptions(threads=1)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    folder = tmp_path_factory.mktemp("bundle")
    checkpoint = open_checkpoint(tiny_model("llama", tmp_path_factory.mktemp("model")))
    manifest = write(checkpoint, folder, kernels="builtin", context_length=CONTEXT)
    seal(folder, manifest)
    return Bundle(folder, manifest)


@pytest.fixture(scope="module")
def expected(bundle: Bundle) -> np.ndarray:
    """Logits of every position, in one piece."""
    return runtime.open(bundle, ONE_THREAD).prefill(TOKENS, all_logits=True)


def test_prefill_starts_anew(bundle: Bundle, expected: np.ndarray) -> None:
    session = runtime.open(bundle, ONE_THREAD)
    first = session.prefill(TOKENS, all_logits=True)
    again = session.prefill(TOKENS[:5], all_logits=True)  # over caches that hold a longer text
    np.testing.assert_array_equal(first, expected)
    np.testing.assert_allclose(again, expected[:5], rtol=0, atol=1e-5)


def test_a_prompt_in_pieces_is_the_same_prompt(
    bundle: Bundle, expected: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runtime, "PREFILL_CHUNK", 7)
    session = runtime.open(bundle, ONE_THREAD)
    np.testing.assert_allclose(session.prefill(TOKENS, all_logits=True), expected, rtol=0, atol=1e-5)
    np.testing.assert_allclose(session.prefill(TOKENS), expected[-1:], rtol=0, atol=1e-5)


@pytest.mark.parametrize("kernels", ["builtin", "edge"])
def test_a_conversation_is_one_prompt(kernels: Any, bundle: Bundle, tmp_path: Path, monkeypatch) -> None:
    if kernels == "edge":
        manifest = write(
            open_checkpoint(tiny_model("llama", tmp_path / "model")),
            tmp_path,
            kernels=kernels,
            context_length=CONTEXT,
            kv_cache="float32",
        )
        bundle = Bundle(tmp_path, manifest)
    expected = runtime.open(bundle, ONE_THREAD).prefill(TOKENS, all_logits=True)
    monkeypatch.setattr(runtime, "PREFILL_CHUNK", 5)
    session = runtime.open(bundle, ONE_THREAD)
    session.prefill(TOKENS[:3])
    np.testing.assert_allclose(session.decode(TOKENS[3]), expected[3:4], rtol=0, atol=1e-5)
    np.testing.assert_allclose(session.extend(TOKENS[4:16], all_logits=True), expected[4:16], rtol=0, atol=1e-5)
    np.testing.assert_allclose(session.decode(TOKENS[16]), expected[16:17], rtol=0, atol=1e-5)
    np.testing.assert_allclose(session.extend(TOKENS[17:]), expected[-1:], rtol=0, atol=1e-5)
    with pytest.raises(UsageError, match=f"holds {CONTEXT}"):
        session.extend([5])


def test_logits_of_a_step_stay_after_the_next(bundle: Bundle, expected: np.ndarray) -> None:
    session = runtime.open(bundle, ONE_THREAD)
    session.prefill(TOKENS[:4])
    kept = [session.decode(token) for token in TOKENS[4:8]]
    np.testing.assert_allclose(np.concatenate(kept), expected[4:8], rtol=0, atol=1e-5)


def test_the_context_has_an_end(bundle: Bundle) -> None:
    session = runtime.open(bundle, ONE_THREAD)
    session.prefill(TOKENS[:-1])
    session.decode(TOKENS[-1])
    with pytest.raises(UsageError, match=f"holds {CONTEXT}") as full:
        session.decode(5)
    assert full.value.code == "session.context_full"
    for tokens, code in (
        ([*TOKENS, 5], "session.context_full"),
        ([], "prompt.empty"),
        ([160], "prompt.token"),
        ([-1], "prompt.token"),
    ):
        with pytest.raises(UsageError) as refused:
            session.prefill(tokens)
        assert refused.value.code == code
    assert len(list(generate(session, TOKENS[:-3], max_tokens=99))) == 3


def test_profile_rows_carry_layer_names(bundle: Bundle, tmp_path: Path) -> None:
    trace = tmp_path / "trace.json"
    session = runtime.open(bundle, SessionOptions(threads=1, profile_path=str(trace)))
    session.prefill(TOKENS[:8])
    for token in TOKENS[8:11]:
        session.decode(token)
    rows = session.end_profile()
    assert list(tmp_path.iterdir()) == [trace]
    assert {row.layer for row in rows} == set(bundle.manifest.layer_of_node.values())
    assert {row.calls for row in rows} == {4}
    assert sum(row.total_ns for row in rows) > 0
    head = next(row for row in rows if row.layer == "lm_head" and row.operator == "FusedMatMul")
    assert head.node == "lm_head/FusedMatMul"
    assert session.end_profile() == []
    assert runtime.open(bundle, ONE_THREAD).end_profile() == []


@pytest.mark.parametrize("keep", [0, 100])
def test_a_damaged_model_is_named(bundle: Bundle, keep: int, tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(bundle.artefact.read_bytes()[:keep])
    with pytest.raises(EdgeError, match=r"model\.onnx") as damaged:
        runtime.open(Bundle(tmp_path, bundle.manifest), ONE_THREAD)
    assert damaged.value.code == "runtime.load"
    assert "\n" not in damaged.value.message


def test_missing_weights_are_an_error(bundle: Bundle, tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(bundle.artefact.read_bytes())
    with pytest.raises(EdgeError) as missing:
        runtime.open(Bundle(tmp_path, bundle.manifest), ONE_THREAD)
    assert missing.value.code == "runtime.load"


@pytest.mark.parametrize("keep", [0, 100, -1])
def test_weights_cut_short_are_an_error(bundle: Bundle, keep: int, tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(bundle.artefact.read_bytes())
    data = bundle.artefact.with_name("model.onnx.data").read_bytes()
    (tmp_path / "model.onnx.data").write_bytes(data[:keep])
    with pytest.raises(EdgeError, match=r"model\.onnx can't be opened") as damaged:
        runtime.open(Bundle(tmp_path, bundle.manifest), ONE_THREAD)
    assert damaged.value.code == "runtime.load"
    assert damaged.value.hint and "\n" not in damaged.value.message


def test_the_model_of_another_bundle_is_refused(bundle: Bundle, tmp_path: Path) -> None:
    one = [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [1]) for name in "xy"]
    graph = onnx.helper.make_graph([onnx.helper.make_node("Identity", ["x"], ["y"])], "graph", one[:1], one[1:])
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=9)
    (tmp_path / "model.onnx").write_bytes(model.SerializeToString())
    other_words = msgspec.structs.replace(bundle.manifest, vocab_size=161)
    for damaged, reason in (
        (Bundle(tmp_path, bundle.manifest), "no input 'input_ids'"),
        (Bundle(bundle.path, other_words), "no logits of 161 tokens"),
    ):
        with pytest.raises(EdgeError, match=reason) as refused:
            runtime.open(damaged, ONE_THREAD)
        assert refused.value.code == "runtime.graph"


@pytest.mark.parametrize("tokens", [[1.5], np.array([3.0]), ["a"], "ab", [None], np.zeros((1, 4), int), 7])
def test_tokens_are_whole_numbers(bundle: Bundle, tokens: Any) -> None:
    session = runtime.open(bundle, ONE_THREAD)
    with pytest.raises(UsageError) as refused:
        session.prefill(tokens)
    assert refused.value.code == "prompt.type"
    assert session.prefill(np.array([5, 6], np.int16)).shape == (1, 160)
    with pytest.raises(UsageError, match="float"):
        session.decode(1.5)  # type: ignore[arg-type]


def test_a_bundle_for_a_newer_engine_is_refused(bundle: Bundle) -> None:
    newer = msgspec.structs.replace(bundle.manifest, tool_versions={"onnxruntime": "99.1.0"})
    with pytest.raises(EdgeError, match=r"99\.1\.0") as refused:
        runtime.open(Bundle(bundle.path, newer), ONE_THREAD)
    assert refused.value.code == "runtime.version"


def test_a_kernels_library_that_does_not_load_is_named(bundle: Bundle, tmp_path: Path, monkeypatch) -> None:
    library = tmp_path / "libedge_kernels.so"
    library.write_bytes(b"not a library")
    monkeypatch.setattr("edge.kernels.lib.ort_library_path", lambda: library)
    with pytest.raises(EdgeError, match=r"libedge_kernels\.so") as refused:
        runtime.open(Bundle(bundle.path, msgspec.structs.replace(bundle.manifest, kernels="edge")), ONE_THREAD)
    assert refused.value.code == "runtime.kernels"


def test_the_family_has_this_runtime() -> None:
    assert "onnx" in RUNTIMES.names()
    assert RUNTIMES.load("onnx").versions()["onnxruntime"]
