"""Compressed checkpoints: what is written is what was compressed, and computes what the reference computes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from numpy.typing import NDArray

from edge.compress.run import compress
from edge.core.bundle import Bundle, Manifest
from edge.core.errors import EdgeError
from edge.core.files import sha256
from edge.core.recipe import Recipe, Rule, Step
from edge.core.session import SessionOptions
from edge.exporters.onnx.builder import DATA, MODEL
from edge.exporters.onnx.export import codes_equal, write
from edge.models.checkpoint import Checkpoint, open_checkpoint
from edge.models.testing import tiny_model
from edge.runtimes.onnx import open as open_session
from edge.runtimes.torch import open_folder

CONTEXT = 48
TOKENS = np.random.default_rng(1).integers(3, 160, 40).tolist()
# 96 columns: an odd count of zero points per row at a group of 32, a last group that is short at 64.
FAMILIES = {"llama": {}, "qwen3": {"hidden_size": 96}, "qwen2": {}, "gpt2": {}}
ENCODINGS: list[dict[str, Any]] = [
    {"bits": 4, "group_size": 32},
    {"bits": 4, "group_size": 32, "grid": "zero_point"},
    {"bits": 4, "group_size": 64, "grid": "zero_point"},
    {"bits": 4, "group_size": 0, "grid": "zero_point"},
    {"bits": 8, "group_size": 128},
    {"bits": 2, "group_size": 32, "grid": "zero_point"},
]


def quantized(
    folder: Path, family: str, options: dict[str, Any], activations: Any = "a8", rules: Any = (), **changes: Any
) -> Checkpoint:
    model = tiny_model(family, folder / "model", **changes)
    step = Step("rtn", {"search": False, **options}, list(rules))
    return open_checkpoint(compress(model, Recipe([step], activations=activations), folder / "small"))


def exported(checkpoint: Checkpoint, folder: Path, kernels: Any, kv_cache: Any = "float32") -> Bundle:
    folder.mkdir()
    return Bundle(folder, write(checkpoint, folder, kernels=kernels, context_length=CONTEXT, kv_cache=kv_cache))


def logits_of(session: Any) -> NDArray[np.float32]:
    """A prefill of 33 tokens, then decode steps."""
    return np.concatenate(
        [session.prefill(TOKENS[:33], all_logits=True), *[session.decode(token) for token in TOKENS[33:]]]
    )


def mean_kl(reference: NDArray[np.float32], other: NDArray[np.float32]) -> float:
    p, q = (x - x.max(-1, keepdims=True) for x in (reference.astype(np.float64), other.astype(np.float64)))
    p, q = (x - np.log(np.exp(x).sum(-1, keepdims=True)) for x in (p, q))
    return float((np.exp(p) * (p - q)).sum(-1).mean())


@pytest.mark.parametrize("kernels", ["builtin", "edge"])
@pytest.mark.parametrize("options", ENCODINGS, ids=lambda o: "-".join(map(str, o.values())))
@pytest.mark.parametrize("family", ["llama", "qwen3"])
def test_float_activations_give_the_reference(family: str, options: dict[str, Any], kernels: str, tmp_path: Path):
    checkpoint = quantized(tmp_path, family, options, "f32", **FAMILIES[family])
    bundle = exported(checkpoint, tmp_path / "bundle", kernels)
    assert codes_equal(checkpoint, bundle.path, bundle.manifest)
    found = logits_of(open_session(bundle, SessionOptions(threads=1)))
    np.testing.assert_allclose(found, logits_of(open_folder(checkpoint, CONTEXT)), rtol=0, atol=1e-4)


@pytest.mark.parametrize(("kernels", "limit"), [("builtin", 3e-3), ("edge", 3e-5)])
@pytest.mark.parametrize("family", FAMILIES)
def test_int8_activations_stay_close(family: str, kernels: str, limit: float, tmp_path: Path) -> None:
    """The reference emulates edge's scale per token; ONNX Runtime has one per token and block."""
    checkpoint = quantized(tmp_path, family, ENCODINGS[1], **FAMILIES[family])
    bundle = exported(checkpoint, tmp_path / "bundle", kernels)
    assert codes_equal(checkpoint, bundle.path, bundle.manifest)
    found = logits_of(open_session(bundle, SessionOptions(threads=1)))
    assert mean_kl(logits_of(open_folder(checkpoint, CONTEXT)), found) < limit


@pytest.mark.parametrize(("kv_cache", "limit"), [("float16", 1e-6), ("int8", 5e-4)])
def test_a_smaller_cache_stays_close(kv_cache: str, limit: float, tmp_path: Path) -> None:
    checkpoint = quantized(tmp_path, "qwen3", ENCODINGS[0], "f32", **FAMILIES["qwen3"])
    bundle = exported(checkpoint, tmp_path / "bundle", "edge", kv_cache)
    assert bundle.manifest.kv_cache.dtype == kv_cache
    exact = logits_of(open_folder(checkpoint, CONTEXT))
    found = logits_of(open_session(bundle, SessionOptions(threads=1)))
    assert np.abs(found - exact).max() > 3e-4  # a float32 cache would be nearer
    assert mean_kl(exact, found) < limit


def test_a_stock_engine_has_no_small_cache(tmp_path: Path) -> None:
    checkpoint = quantized(tmp_path, "llama", ENCODINGS[0])
    with pytest.raises(EdgeError, match="no int8 cache"):
        exported(checkpoint, tmp_path / "bundle", "builtin", "int8")


def test_a_layer_is_five_nodes(tmp_path: Path) -> None:
    """Two layers: ten, then the embedding, the last positions of both streams (Neg, Slice, twice) and the head."""
    bundle = exported(quantized(tmp_path, "llama", ENCODINGS[0]), tmp_path / "bundle", "edge")
    operators = [node.op_type for node in ir.load(bundle.artefact).graph]
    assert operators.count("Attention") == 2
    assert operators.count("Linear") == 2 * 4 + 1
    assert len(operators) <= 2 * 5 + 6


@pytest.mark.parametrize("kernels", ["builtin", "edge"])
def test_matrices_of_unlike_encodings_stay_apart(kernels: str, tmp_path: Path) -> None:
    rules = [
        Rule(name="*.q_proj.weight", options={"bits": 8}),
        Rule(name="*.v_proj.weight", exclude=True),
        Rule(name="*.up_proj.weight", options={"grid": "zero_point"}),
    ]
    checkpoint = quantized(tmp_path, "qwen2", ENCODINGS[0], "f32", rules)
    bundle = exported(checkpoint, tmp_path / "bundle", kernels)
    assert codes_equal(checkpoint, bundle.path, bundle.manifest)
    assert "model.layers.0.self_attn.q_proj" in bundle.manifest.layer_of_node.values()
    assert str(bundle.manifest.encodings["model.layers.0.self_attn.v_proj.weight"]) == "float32"
    found = logits_of(open_session(bundle, SessionOptions(threads=1)))
    np.testing.assert_allclose(found, logits_of(open_folder(checkpoint, CONTEXT)), rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    ("kernels", "part"), [("edge", ""), ("builtin", ""), ("builtin", ".scales"), ("builtin", ".zero_points")]
)
def test_a_changed_byte_is_found(kernels: str, part: str, tmp_path: Path) -> None:
    checkpoint = quantized(tmp_path, "llama", ENCODINGS[1])
    bundle = exported(checkpoint, tmp_path / "bundle", kernels)
    weight = ir.load(bundle.artefact).graph.initializers[f"model.layers.1.mlp.down_proj.weight{part}"]
    tensor = weight.const_value
    data = bytearray((bundle.path / DATA).read_bytes())
    # Not the last bytes of a float32 scale's mantissa: float16 scales leave those at zero and don't look at them.
    data[tensor.offset + tensor.nbytes // 2 + (3 if part == ".scales" else 0)] ^= 1
    (bundle.path / DATA).write_bytes(data)
    assert not codes_equal(checkpoint, bundle.path, bundle.manifest)


@pytest.mark.parametrize(("kernels", "bits", "advice"), [("builtin", 3, "--kernels edge"), ("edge", 5, "bits")])
def test_bits_that_no_kernel_serves_are_refused(kernels: Any, bits: int, advice: str, tmp_path: Path) -> None:
    checkpoint = quantized(tmp_path, "llama", {"bits": bits, "group_size": 32})
    with pytest.raises(EdgeError, match=f"affine{bits}g32") as caught:
        exported(checkpoint, tmp_path / "bundle", kernels)
    assert caught.value.code == "export.encoding"
    assert advice in caught.value.hint
    assert not any((tmp_path / "bundle").iterdir())


@pytest.mark.parametrize("kernels", ["builtin", "edge"])
def test_the_same_checkpoint_gives_the_same_bytes(kernels: str, tmp_path: Path) -> None:
    checkpoint = quantized(tmp_path, "gemma3_text", ENCODINGS[1])
    first, second = (exported(checkpoint, tmp_path / name, kernels) for name in ("a", "b"))
    assert first.manifest == second.manifest
    names = sorted(path.name for path in first.path.iterdir())
    assert {MODEL, DATA, "config.json", "tokenizer.json"} <= set(names)
    assert [sha256(first.path / name) for name in names] == [sha256(second.path / name) for name in names]


@pytest.mark.parametrize("kernels", ["builtin", "edge"])
@pytest.mark.parametrize("bits", [4, 0])
def test_a_tied_embedding_is_stored_once(bits: int, kernels: str, tmp_path: Path) -> None:
    sizes = {}
    for tied in (True, False):
        options = {"bits": bits, "group_size": 32} if bits else {}
        folder = tmp_path / str(tied)
        settings = {"tie_word_embeddings": tied, "hidden_size": 96}
        if bits:
            checkpoint = quantized(folder, "qwen3", options, **settings)
        else:
            checkpoint = open_checkpoint(tiny_model("qwen3", folder / "model", **settings))
        bundle = exported(checkpoint, folder / "bundle", kernels)
        sizes[tied] = (bundle.path / DATA).stat().st_size
        matrix = checkpoint.matrix("model.embed_tokens.weight")
    least = matrix.dequantize().nbytes if not bits else matrix.shape[0] * matrix.shape[1] // 2
    assert sizes[False] - sizes[True] >= least


def test_the_manifest_says_what_was_written(tmp_path: Path) -> None:
    checkpoint = quantized(tmp_path, "llama", ENCODINGS[0])
    manifest: Manifest = exported(checkpoint, tmp_path / "bundle", "builtin").manifest
    assert (
        manifest.layer_of_node["model.layers.0.self_attn.qkv_proj/MatMulNBits"] == "model.layers.0.self_attn.qkv_proj"
    )
    assert set(manifest.encodings) == {name for name, _ in checkpoint.spec.matrices()}
    assert (manifest.kv_cache.layers, manifest.kv_cache.heads, manifest.kv_cache.head_dim) == (2, 2, 16)
    assert manifest.stored_bytes == sum((tmp_path / "bundle" / name).stat().st_size for name in (MODEL, DATA))


@pytest.mark.parametrize(
    ("changes", "context", "code"),
    [({"head_dim": 24}, CONTEXT, "export.head_dim"), ({}, 129, "export.context"), ({}, 0, "export.context")],
)
def test_what_the_engine_cannot_run_is_refused(changes: Any, context: int, code: str, tmp_path: Path) -> None:
    checkpoint = open_checkpoint(tiny_model("llama", tmp_path / "model", **changes))
    with pytest.raises(EdgeError) as caught:
        write(checkpoint, tmp_path, kernels="builtin", context_length=context)
    assert caught.value.code == code
    assert not (tmp_path / MODEL).exists()


@pytest.mark.parametrize(
    "options",
    [
        {"bits": 1},
        {"bits": 3, "scale": "group", "table_rows": 1},
        {"bits": 6, "group_size": 0},
        {"bits": 8, "table_rows": 16},
        {"bits": 4, "dim": 4, "group_size": 128},
    ],
    ids=str,
)
def test_clusters_of_every_kind(options: dict[str, Any], tmp_path: Path) -> None:
    """Tables that kernels look up, and those that they hold as 8-bit codes."""
    model = tiny_model("llama", tmp_path / "model", num_hidden_layers=1)
    recipe = Recipe([Step("kmeans", options)], activations="f32")
    checkpoint = open_checkpoint(compress(model, recipe, tmp_path / "small"))
    bundle = exported(checkpoint, tmp_path / "bundle", "edge")
    assert codes_equal(checkpoint, bundle.path, bundle.manifest)
    found = logits_of(open_session(bundle, SessionOptions(threads=1)))
    expected = logits_of(open_folder(checkpoint, CONTEXT))
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-4 * np.abs(expected).max())
