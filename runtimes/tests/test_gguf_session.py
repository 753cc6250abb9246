"""The llama.cpp session: prompts in pieces, caches, the context's end, damaged bundles, the commands on a bundle."""

from __future__ import annotations

import json
from pathlib import Path

import msgspec
import numpy as np
import pytest
from typer.testing import CliRunner

from edge.core.bundle import Bundle, seal
from edge.core.errors import EdgeError, UsageError
from edge.core.session import SessionOptions
from edge.core.weight import Affine
from edge.exporters.gguf.export import write
from edge.models.checkpoint import open_checkpoint
from edge.models.testing import encoded_model
from edge.runtimes import gguf as runtime
from edge.runtimes.torch import open_folder

pytest.importorskip("llama_cpp", reason="llama-cpp-python is not installed: pip install 'edge-deploy[gguf]'")
CONTEXT = 100
TOKENS = np.random.default_rng(2).integers(3, 160, CONTEXT).tolist()
ONE_THREAD = SessionOptions(threads=1)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return encoded_model("llama", tmp_path_factory.mktemp("model"), Affine(8, 32))


@pytest.fixture(scope="module")
def bundle(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    folder = tmp_path_factory.mktemp("bundle")
    manifest = write(open_checkpoint(model), folder, kernels="builtin", context_length=CONTEXT)
    seal(folder, manifest)
    return Bundle(folder, manifest)


@pytest.fixture(scope="module")
def expected(model: Path) -> np.ndarray:
    return open_folder(open_checkpoint(model), CONTEXT).prefill(TOKENS, all_logits=True)


def assert_close(found: np.ndarray, expected: np.ndarray) -> None:
    """Up to llama.cpp's rounding of activations to 8 bits."""
    assert found.shape == expected.shape
    assert np.abs(found - expected).max() < 0.1 * np.abs(expected).max()


def test_prefill_and_decode_say_what_torch_says(bundle: Bundle, expected: np.ndarray) -> None:
    session = runtime.open(bundle, ONE_THREAD)
    assert_close(session.prefill(TOKENS, all_logits=True), expected)
    assert_close(session.prefill(TOKENS[:5]), expected[4:5])  # starts anew
    assert_close(np.concatenate([session.decode(token) for token in TOKENS[5:12]]), expected[5:12])
    session.close()


def test_a_prompt_in_pieces_is_the_same_prompt(
    bundle: Bundle, expected: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runtime, "BATCH", 7)
    session = runtime.open(bundle, ONE_THREAD)
    assert_close(session.prefill(TOKENS, all_logits=True), expected)
    assert_close(session.prefill(TOKENS), expected[-1:])
    session.close()


def test_a_conversation_is_one_prompt(bundle: Bundle, expected: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runtime, "BATCH", 7)
    session = runtime.open(bundle, ONE_THREAD)
    session.prefill(TOKENS[:3])
    assert_close(session.decode(TOKENS[3]), expected[3:4])
    assert_close(session.extend(TOKENS[4:16], all_logits=True), expected[4:16])
    assert_close(session.extend(TOKENS[16:]), expected[-1:])
    with pytest.raises(UsageError, match=f"holds {CONTEXT}"):
        session.extend([5])
    session.close()


def test_the_context_has_an_end(bundle: Bundle) -> None:
    session = runtime.open(bundle, ONE_THREAD)
    session.prefill(TOKENS)
    with pytest.raises(UsageError, match=f"holds {CONTEXT}"):
        session.decode(5)
    with pytest.raises(UsageError, match=r"outside 0\.\.159"):
        session.prefill([160])
    session.close()


def test_caches_may_be_float32(model: Path, expected: np.ndarray, tmp_path: Path) -> None:
    manifest = write(open_checkpoint(model), tmp_path, kernels="builtin", context_length=CONTEXT, kv_cache="float32")
    assert manifest.kv_cache.dtype == "float32"
    session = runtime.open(Bundle(tmp_path, manifest), ONE_THREAD)
    assert_close(session.prefill(TOKENS), expected[-1:])
    session.close()


@pytest.mark.parametrize("keep", [0, 100, 20_000, -1000])
def test_a_damaged_model_is_named_in_one_line(bundle: Bundle, keep: int, tmp_path: Path) -> None:
    (tmp_path / "model.gguf").write_bytes(bundle.artefact.read_bytes()[:keep])
    with pytest.raises(EdgeError, match=r"llama\.cpp can't open .*model\.gguf: ") as damaged:
        runtime.open(Bundle(tmp_path, bundle.manifest), ONE_THREAD)
    assert damaged.value.code == "runtime.load"
    assert damaged.value.hint and "\n" not in str(damaged.value)
    runtime.open(bundle, ONE_THREAD).close()  # and what comes after runs


def test_a_session_that_failed_leaves_no_error_for_the_next(bundle: Bundle, tmp_path: Path) -> None:
    (tmp_path / "model.gguf").write_bytes(b"GGUF")
    other = Bundle(tmp_path, msgspec.structs.replace(bundle.manifest))
    for _ in range(2):
        with pytest.raises(EdgeError) as damaged:
            runtime.open(other, ONE_THREAD)
        assert str(damaged.value).count("llama.cpp can't open") == 1


def test_the_commands_take_the_bundle(bundle: Bundle, model: Path, tmp_path: Path) -> None:
    from edge.cli import app

    text = tmp_path / "text.txt"
    text.write_text("The quick brown fox jumps over the lazy dog. " * 20)
    run = CliRunner().invoke(app, ["run", str(bundle.path), "-p", "The quick", "--raw", "-n", "4", "--json"])
    assert run.exit_code == 0, run.output
    assert json.loads(run.stdout)["generated_tokens"] > 0
    flags = ["-t", str(text), "--against", str(model), "--max-bytes", "400", "--json"]
    evaluated = CliRunner().invoke(app, ["evaluate", str(bundle.path), *flags])
    assert evaluated.exit_code == 0, evaluated.output
    assert 0 < json.loads(evaluated.stdout)["kl_divergence"] < 0.05
    flags = ["--prompt-tokens", "8", "--generated-tokens", "4", "--threads", "1", "--json"]
    profiled = CliRunner().invoke(app, ["profile", str(bundle.path), *flags])
    assert profiled.exit_code == 0, profiled.output
    measurement = json.loads(profiled.stdout)
    assert (measurement["runtime"], measurement["operators"]) == ("gguf", [])
    assert len(measurement["repetitions"]) >= 5
