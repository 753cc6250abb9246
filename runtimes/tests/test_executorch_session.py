"""The ExecuTorch session: prompts in pieces, the profile by layer, threads, and what can be wrong with a program."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from importlib.metadata import PackageNotFoundError
from pathlib import Path

import msgspec
import numpy as np
import pytest

from edge.compress.run import compress
from edge.core.bundle import Bundle
from edge.core.errors import EdgeError, UsageError
from edge.core.plugins import RUNTIMES
from edge.core.recipe import Recipe, Step
from edge.core.session import Session, SessionOptions
from edge.kernels import executorch_ops
from edge.models.checkpoint import open_checkpoint
from edge.models.testing import tiny_model

pytest.importorskip("executorch", reason=executorch_ops.INSTALL)
from edge.exporters.executorch.export import write
from edge.runtimes import executorch as runtime

CONTEXT = 600  # more than a call takes
TOKENS = np.random.default_rng(2).integers(3, 160, CONTEXT).tolist()
ONE_THREAD = SessionOptions(threads=1)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    folder = tmp_path_factory.mktemp("bundle")
    models = tmp_path_factory.mktemp("models")
    recipe = Recipe([Step("rtn", {"bits": 4, "group_size": 32})], activations="f32")
    small = compress(tiny_model("llama", models / "tiny", max_position_embeddings=1024), recipe, models / "small")
    options = {"kernels": "edge", "context_length": CONTEXT, "kv_cache": "float32"}
    return Bundle(folder, write(open_checkpoint(small), folder, **options))


@pytest.fixture
def session(bundle: Bundle) -> Iterator[Session]:
    with closing(runtime.open(bundle, ONE_THREAD)) as opened:
        yield opened


def test_a_prompt_in_pieces_is_the_same_prompt_token_by_token(session: Session) -> None:
    together = session.prefill(TOKENS, all_logits=True)
    assert together.shape == (CONTEXT, 160)
    np.testing.assert_allclose(session.prefill(TOKENS)[0], together[-1], rtol=0, atol=1e-4)
    apart = np.concatenate([session.prefill(TOKENS[:1]), *map(session.decode, TOKENS[1:])])
    np.testing.assert_allclose(apart, together, rtol=0, atol=1e-4)
    with pytest.raises(UsageError, match="holds 600"):
        session.decode(5)
    again = session.prefill(TOKENS[:5], all_logits=True)  # over caches that hold a longer text
    np.testing.assert_allclose(again, together[:5], rtol=0, atol=1e-4)


def test_a_conversation_is_one_prompt(session: Session) -> None:
    together = session.prefill(TOKENS, all_logits=True)
    session.prefill(TOKENS[:3])
    np.testing.assert_allclose(session.decode(TOKENS[3]), together[3:4], rtol=0, atol=1e-4)
    np.testing.assert_allclose(session.extend(TOKENS[4:20], all_logits=True), together[4:20], rtol=0, atol=1e-4)
    np.testing.assert_allclose(session.decode(TOKENS[20]), together[20:21], rtol=0, atol=1e-4)
    np.testing.assert_allclose(session.extend(TOKENS[21:]), together[-1:], rtol=0, atol=1e-4)
    with pytest.raises(UsageError, match="holds 600"):
        session.extend([5])


def test_logits_of_a_step_stay_after_the_next(session: Session) -> None:
    session.prefill(TOKENS[:3])
    first = session.decode(TOKENS[3])
    kept = first.copy()
    session.decode(TOKENS[4])
    assert np.array_equal(first, kept)


def test_wrong_tokens_are_an_error(session: Session) -> None:
    for tokens, code in (([], "prompt.empty"), ([160], "prompt.token"), ([1] * 601, "session.context_full")):
        with pytest.raises(UsageError) as wrong:
            session.prefill(tokens)
        assert wrong.value.code == code


def test_the_profile_names_the_models_own_layers(bundle: Bundle, tmp_path: Path) -> None:
    trace = tmp_path / "trace.etdp"
    session = runtime.open(bundle, SessionOptions(threads=1, profile_path=str(trace)))
    session.prefill(TOKENS[:8])
    for token in TOKENS[8:11]:
        session.decode(token)
    rows = session.end_profile()
    assert trace.stat().st_size > 0
    layers = {row.layer for row in rows}
    assert {"model.embed_tokens", "model.layers.1.self_attn", "model.layers.0.mlp.gate_up_proj", "lm_head"} <= layers
    assert {row.calls for row in rows} == {4}
    assert all(row.total_ns > 0 for row in rows)
    assert {row.operator for row in rows} == {
        "edge::embedding",
        "edge::linear",
        "edge::attention",
        "aten::index_select",
    }
    assert session.end_profile() == []


def test_threads_change_no_bit_and_a_pool_in_use_stays(bundle: Bundle) -> None:
    one = runtime.open(bundle, ONE_THREAD)
    expected = one.prefill(TOKENS[:40], all_logits=True)
    with pytest.raises(EdgeError, match="open with 1 threads, not 2") as refused:
        runtime.open(bundle, SessionOptions(threads=2))
    assert refused.value.code == "runtime.threads"
    one.close()
    two = runtime.open(bundle, SessionOptions(threads=2))
    assert np.array_equal(two.prefill(TOKENS[:40], all_logits=True), expected)
    two.close()


@pytest.mark.parametrize("keep", [0, 10, 1000, 0.5, 0.99])
def test_a_truncated_program_is_named(bundle: Bundle, keep: float, tmp_path: Path) -> None:
    data = bundle.artefact.read_bytes()
    (tmp_path / "model.pte").write_bytes(data[: keep if isinstance(keep, int) else int(keep * len(data))])
    with pytest.raises(EdgeError, match=r"model\.pte") as damaged:
        runtime.open(Bundle(tmp_path, bundle.manifest), ONE_THREAD)
    assert damaged.value.code == "runtime.load"
    assert "\n" not in damaged.value.message


def test_damaged_weights_fail_the_call_with_the_reason(bundle: Bundle, tmp_path: Path) -> None:
    data = bytearray(bundle.artefact.read_bytes())
    data[data.rindex(b"EDGK") + 34] ^= 1  # in the checksum of a matrix
    (tmp_path / "model.pte").write_bytes(data)
    session = runtime.open(Bundle(tmp_path, bundle.manifest), ONE_THREAD)
    with pytest.raises(EdgeError, match="checksum") as damaged:
        session.prefill(TOKENS[:3])
    assert damaged.value.code == "runtime.run"
    session.close()


def test_a_program_of_another_kind_is_refused(bundle: Bundle, tmp_path: Path) -> None:
    import torch

    from edge.exporters.executorch.lower import lower, traced

    other = lower(traced(torch.nn.ReLU(), [torch.zeros(2)], None))
    (tmp_path / "model.pte").write_bytes(other.buffer)
    with pytest.raises(EdgeError, match="no language model"):
        runtime.open(Bundle(tmp_path, bundle.manifest), ONE_THREAD)


def test_a_bundle_for_a_newer_engine_is_refused(bundle: Bundle) -> None:
    newer = msgspec.structs.replace(bundle.manifest, tool_versions={"executorch": "99.1.0"})
    with pytest.raises(EdgeError, match=r"99\.1\.0") as refused:
        runtime.open(Bundle(bundle.path, newer), ONE_THREAD)
    assert refused.value.code == "runtime.version"
    assert "pip install" in refused.value.hint


def test_without_executorch_the_error_says_what_to_install(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> str:
        raise PackageNotFoundError(name)

    monkeypatch.setattr(executorch_ops, "version", missing)
    with pytest.raises(EdgeError, match=r"edge-deploy\[executorch\]") as error:
        runtime.open(bundle, ONE_THREAD)
    assert error.value.code == "kernels.no_executorch"


def test_without_the_operators_library_the_error_says_how_to_get_it(bundle: Bundle, monkeypatch) -> None:
    def no_compiler() -> None:
        raise EdgeError("kernels.compiler", "executorch-1.5.1 needs a C++ compiler", "install g++ or clang, or set CXX")

    monkeypatch.setattr(executorch_ops, "load", no_compiler)
    with pytest.raises(EdgeError, match="install g\\+\\+"):
        runtime.open(bundle, ONE_THREAD)


def test_the_family_has_this_runtime() -> None:
    assert "executorch" in RUNTIMES.names()
    assert RUNTIMES.load("executorch").versions()["executorch"]
