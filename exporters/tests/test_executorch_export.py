"""ExecuTorch programs: what is written is what was compressed, and computes what the other engines compute."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from edge.compress.run import compress
from edge.core.bundle import Bundle
from edge.core.errors import EdgeError
from edge.core.files import sha256
from edge.core.recipe import Recipe, Rule, Step
from edge.core.session import SessionOptions
from edge.exporters import _slow_path
from edge.exporters.onnx import export as onnx
from edge.kernels.pack import pack
from edge.models.checkpoint import Checkpoint, open_checkpoint
from edge.models.testing import tiny_model
from edge.runtimes.onnx import open as open_onnx
from edge.runtimes.torch import open_folder

pytest.importorskip("executorch", reason='pip install "edge-deploy[executorch]"')
from edge.exporters.executorch import export as executorch
from edge.exporters.executorch.builtin import stored
from edge.exporters.executorch.lower import traced
from edge.runtimes.executorch import open as open_session

CONTEXT = 100
TOKENS = np.random.default_rng(1).integers(3, 160, 90).tolist()
ONE_THREAD = SessionOptions(threads=1)
INT4 = {"bits": 4, "group_size": 32}


def quantized(
    folder: Path, family: str, options: dict[str, Any], activations: Any = "a8", rules: Any = ()
) -> Checkpoint:
    model = tiny_model(family, folder / "model")
    step = Step("rtn", {"search": False, **options}, list(rules))
    return open_checkpoint(compress(model, Recipe([step], activations=activations), folder / "small"))


def exported(checkpoint: Checkpoint, folder: Path, kernels: Any = "edge", kv_cache: Any = None, module: Any = None):
    folder.mkdir()
    write = (module or executorch).write
    return Bundle(folder, write(checkpoint, folder, kernels=kernels, context_length=CONTEXT, kv_cache=kv_cache))


def mean_kl(reference: NDArray[np.float32], other: NDArray[np.float32]) -> float:
    p, q = (
        x.astype(np.float64) - np.log(np.exp(x.astype(np.float64)).sum(-1, keepdims=True)) for x in (reference, other)
    )
    return float((np.exp(p) * (p - q)).sum(-1).mean())


def logits_of(session: Any) -> NDArray[np.float32]:
    """A prefill of more tokens than a call gives logits for, then decode steps."""
    return np.concatenate([session.prefill(TOKENS[:80], all_logits=True), *map(session.decode, TOKENS[80:])])


@pytest.mark.parametrize("family", ["qwen3", "gpt2", "gemma2"])
def test_three_engines_agree(family: str, tmp_path: Path) -> None:
    """The same codes everywhere; logits as far apart as sums in another order are."""
    checkpoint = quantized(tmp_path, family, INT4, "f32")
    ours = exported(checkpoint, tmp_path / "pte", kv_cache="float32")
    assert executorch.codes_equal(checkpoint, ours.path, ours.manifest)
    found = logits_of(open_session(ours, ONE_THREAD))
    np.testing.assert_allclose(found, logits_of(open_folder(checkpoint, CONTEXT)), rtol=0, atol=1e-4)
    other = exported(checkpoint, tmp_path / "onnx", kv_cache="float32", module=onnx)
    np.testing.assert_allclose(found, logits_of(open_onnx(other, ONE_THREAD)), rtol=0, atol=1e-5)


@pytest.mark.parametrize("kv_cache", ["float32", "float16", "int8"])
def test_int8_activations_and_caches_give_onnx_runtimes_bits(kv_cache: str, tmp_path: Path) -> None:
    """A llama is edge's operators and nothing else: both engines hand them the same numbers."""
    checkpoint = quantized(tmp_path, "llama", INT4)
    ours = exported(checkpoint, tmp_path / "pte", kv_cache=kv_cache)
    other = exported(checkpoint, tmp_path / "onnx", kv_cache=kv_cache, module=onnx)
    assert ours.manifest.kv_cache == other.manifest.kv_cache
    assert np.array_equal(logits_of(open_session(ours, ONE_THREAD)), logits_of(open_onnx(other, ONE_THREAD)))


def test_clusters_of_every_width_give_onnx_runtimes_bits(tmp_path: Path) -> None:
    # Matrices with one input have one encoding each: only they are edge's operators and nothing else.
    widths = {"0.self_attn.[qkv]": (1, 1), "0.mlp.[gu]": (6, 1), "0.mlp.d": (8, 1)}
    widths |= {"1.self_attn.[qkv]": (3, 2), "1.mlp.[gu]": (4, 4), "1.mlp.d": (2, 1)}
    rules = [Rule(name=f"model.layers.{at}*", options={"bits": b, "dim": d}) for at, (b, d) in widths.items()]
    recipe = Recipe([Step("kmeans", {"bits": 3, "group_size": 0}, rules)])
    checkpoint = open_checkpoint(compress(tiny_model("llama", tmp_path / "model"), recipe, tmp_path / "small"))
    assert {encoding.bits for encoding in checkpoint.encodings.values()} == {1, 2, 3, 4, 6, 8}
    ours = exported(checkpoint, tmp_path / "pte")
    assert executorch.codes_equal(checkpoint, ours.path, ours.manifest)
    found = logits_of(open_session(ours, ONE_THREAD))
    assert mean_kl(logits_of(open_folder(checkpoint, CONTEXT)), found) < 1e-3
    other = exported(checkpoint, tmp_path / "onnx", module=onnx)
    assert np.array_equal(found, logits_of(open_onnx(other, ONE_THREAD)))


@pytest.mark.parametrize("family", ["qwen3", "phi3"])
def test_standard_operators_compute_what_was_compressed(family: str, tmp_path: Path) -> None:
    """XNNPACK rounds activations by a scale and a zero point per token, and group scales to bfloat16."""
    checkpoint = quantized(tmp_path, family, INT4)
    bundle = exported(checkpoint, tmp_path / "pte", "builtin")
    assert executorch.codes_equal(checkpoint, bundle.path, bundle.manifest)
    operators = {node.partition(":")[2].partition("::")[0] for node in bundle.manifest.layer_of_node}
    assert "edge" not in operators
    found = logits_of(open_session(bundle, ONE_THREAD))
    assert mean_kl(logits_of(open_folder(checkpoint, CONTEXT)), found) < 3e-3
    change(bundle, stored(checkpoint.matrix("model.layers.1.mlp.down_proj.weight"))[0][1])
    assert not executorch.codes_equal(checkpoint, bundle.path, bundle.manifest)


@pytest.mark.parametrize("kernels", ["builtin", "edge"])
def test_a_model_that_was_not_compressed(kernels: str, tmp_path: Path) -> None:
    checkpoint = open_checkpoint(tiny_model("gemma2", tmp_path / "model"))
    bundle = exported(checkpoint, tmp_path / "pte", kernels, "float32")
    assert executorch.codes_equal(checkpoint, bundle.path, bundle.manifest)
    found = logits_of(open_session(bundle, ONE_THREAD))
    np.testing.assert_allclose(found, logits_of(open_folder(checkpoint, CONTEXT)), rtol=0, atol=1e-4)


def test_matrices_of_unlike_encodings_stay_apart(tmp_path: Path) -> None:
    rules = [Rule(name="*.q_proj.weight", options={"bits": 8}), Rule(name="*.up_proj.weight", exclude=True)]
    checkpoint = quantized(tmp_path, "qwen2", INT4, "f32", rules)
    bundle = exported(checkpoint, tmp_path / "pte", kv_cache="float32")
    assert executorch.codes_equal(checkpoint, bundle.path, bundle.manifest)
    layers = set(bundle.manifest.layer_of_node.values())
    assert {f"model.layers.0.{name}" for name in ("self_attn.q_proj", "self_attn", "mlp.up_proj")} <= layers
    found = logits_of(open_session(bundle, ONE_THREAD))
    np.testing.assert_allclose(found, logits_of(open_folder(checkpoint, CONTEXT)), rtol=0, atol=1e-4)


def test_what_xnnpack_does_is_profiled_by_layer(tmp_path: Path) -> None:
    bundle = exported(open_checkpoint(tiny_model("llama", tmp_path / "model")), tmp_path / "pte")
    session = open_session(bundle, SessionOptions(threads=1, profile_path=str(tmp_path / "trace")))
    session.prefill(TOKENS)
    rows = session.end_profile()
    products = {row.layer for row in rows if row.operator.startswith("Fully Connected")}
    assert {"model.layers.1.self_attn.qkv_proj", "model.layers.0.mlp.up_proj", "lm_head"} <= products
    assert all(row.layer for row in rows)
    session.close()


def test_the_same_checkpoint_gives_the_same_bytes(tmp_path: Path) -> None:
    checkpoint = quantized(tmp_path, "llama", INT4)
    first, second = (exported(checkpoint, tmp_path / name) for name in ("a", "b"))
    assert first.manifest == second.manifest
    assert {"model.pte", "config.json", "tokenizer.json"} <= {path.name for path in first.path.iterdir()}
    for path in first.path.iterdir():
        assert sha256(path) == sha256(second.path / path.name), path.name


def test_a_changed_code_is_found(tmp_path: Path) -> None:
    checkpoint = quantized(tmp_path, "llama", INT4)
    bundle = exported(checkpoint, tmp_path / "pte")
    change(bundle, pack(checkpoint.matrix("model.layers.1.mlp.down_proj.weight")))
    assert not executorch.codes_equal(checkpoint, bundle.path, bundle.manifest)


def change(bundle: Bundle, stored_bytes: NDArray[Any]) -> None:
    """Flip a bit in the middle of these bytes of the program."""
    data = bytearray(bundle.artefact.read_bytes())
    data[data.index(stored_bytes.tobytes()) + stored_bytes.nbytes // 2] ^= 1
    bundle.artefact.write_bytes(data)


@pytest.mark.parametrize(
    ("kernels", "options", "advice"),
    [
        ("builtin", {"bits": 3, "group_size": 32}, "4 bits on the symmetric grid"),
        ("builtin", {"bits": 4, "group_size": 32, "grid": "zero_point"}, "--kernels edge"),
        ("builtin", {"bits": 8, "group_size": 32}, "group_size = 0"),
        ("edge", {"bits": 5, "group_size": 32}, "use 4 bits"),
    ],
)
def test_what_the_kernels_cannot_run_is_refused(kernels: Any, options: Any, advice: str, tmp_path: Path) -> None:
    checkpoint = quantized(tmp_path, "llama", options)
    with pytest.raises(EdgeError, match="is stored as affine") as refused:
        exported(checkpoint, tmp_path / "pte", kernels)
    assert refused.value.code == "export.encoding"
    assert advice in refused.value.hint
    assert not any((tmp_path / "pte").iterdir())


def test_standard_operators_have_no_small_cache(tmp_path: Path) -> None:
    checkpoint = open_checkpoint(tiny_model("llama", tmp_path / "model"))
    with pytest.raises(EdgeError, match="no int8 cache"):
        exported(checkpoint, tmp_path / "pte", "builtin", "int8")


def test_a_model_that_torch_cannot_trace_is_named_with_its_line() -> None:
    class Inner(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x if x.sum() > 0 else -x

    class Outer(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = Inner()

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.inner(x)

    with pytest.raises(EdgeError, match=r"'inner' \(test_executorch_export\.py:\d+\)") as refused:
        traced(Outer(), [torch.zeros(2)], None)
    assert refused.value.code == "export.trace"
    assert "branches" in refused.value.hint


def test_the_slow_path_gate_times_our_operators(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bundle = exported(quantized(tmp_path, "llama", INT4), tmp_path / "pte")
    monkeypatch.setattr(_slow_path, "REPETITIONS", 1)
    monkeypatch.setattr(_slow_path.Operator, "slack_ns", lambda self, tokens: -(10**9))  # nothing is fast enough
    rows = executorch.slow_nodes(bundle.path, bundle.manifest)
    assert any(row.startswith("model.layers.0.mlp.down_proj and 1 alike: edge::linear 64x96 takes") for row in rows)
    assert any(row.startswith("model.embed_tokens: edge::embedding") for row in rows)
