"""Rotations keep the function, lower the rounding error of weights with outliers, and untie what has to be."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from edge.compress.hadamard import hadamard, rotation
from edge.compress.methods import rotate, rtn
from edge.compress.run import compress
from edge.core.errors import EdgeError, UsageError
from edge.core.recipe import Recipe, Rule, Step
from edge.models.checkpoint import open_checkpoint
from edge.models.testing import FAMILIES, tiny_any_model, tiny_model
from edge.models.torch_model import build_model

UNTIE = Step("rotate", {"untie": True})


def logits(checkpoint):
    with torch.no_grad():
        return build_model(checkpoint)(torch.arange(3, 60)[None]).logits


def rounded(bits, *before):
    return Recipe([*before, Step("rtn", {"bits": bits, "group_size": 32})], activations="f32")


@pytest.mark.parametrize("order", [1, 2, 4, 12, 20, 28, 36, 44, 64, 80, 576, 896])
def test_hadamard_matrices(order):
    matrix = hadamard(order)
    assert torch.equal(matrix.abs(), torch.ones(order, order))
    assert torch.equal(matrix @ matrix.T, order * torch.eye(order))


@pytest.mark.parametrize("size", [6, 52, 96])  # there is no Hadamard matrix of 6, and we know none of 52
def test_rotations_are_orthogonal_and_follow_the_seed(size):
    turn = rotation(size, 3)
    torch.testing.assert_close(turn @ turn.T, torch.eye(size), atol=1e-6, rtol=0)
    rotation.cache_clear()
    assert torch.equal(rotation(size, 3), turn)
    assert not torch.equal(rotation(size, 4), turn)


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("family", FAMILIES)
def test_rotated_weights_compute_the_same(family, tied, tmp_path):
    source = open_checkpoint(tiny_model(family, tmp_path / "model", tie_word_embeddings=tied))
    turned = rotate.rewrite(source, rotate.Options(untie=True), seed=0)
    torch.testing.assert_close(logits(turned), logits(source), atol=1e-4, rtol=0)
    name, norms = f"{source.spec.embedding}.weight", [layer.mlp_norm.name for layer in source.spec.layers]
    everywhere = not family.startswith("g")  # Gemma has norms after its blocks, GPT-2 has LayerNorm
    assert torch.equal(turned.tensor(name), source.tensor(name)) == (not everywhere)
    assert all(torch.unique(turned.tensor(f"{norm}.weight")).numel() == 1 for norm in norms) == everywhere
    assert turned.spec.tied == (tied and not everywhere)
    assert turned.parameters == source.parameters
    out = source.spec.layers[0].attention.o.weight
    assert not torch.allclose(turned.tensor(out), source.tensor(out))


def test_norms_with_one_weight_for_all_channels_let_a_rotation_pass(tmp_path):
    folder = tiny_model("gemma2", tmp_path / "model")
    tensors = load_file(folder / "model.safetensors")
    for name in tensors:
        if "post_" in name or name == "model.norm.weight":
            tensors[name].fill_(0.3)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    source = open_checkpoint(folder)
    turned = rotate.rewrite(source, rotate.Options(residual=True), seed=0)
    torch.testing.assert_close(logits(turned), logits(source), atol=1e-4, rtol=0)
    assert turned.spec.tied and not torch.equal(*(c.tensor("model.embed_tokens.weight") for c in (source, turned)))


def test_outliers_cost_less_once_rotated(tmp_path):
    """Hidden channels, and channels of the values, whose weights are ten times the others' in what reads them."""
    folder = tiny_model("llama", tmp_path / "model")
    tensors = load_file(folder / "model.safetensors")
    read = ("q_proj.weight", "k_proj.weight", "gate_proj.weight", "up_proj.weight", "o_proj.weight")
    outliers = [name for name in tensors if name.endswith(read)]
    for name in outliers:
        tensors[name][:, 5::16] *= 10
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    source = open_checkpoint(folder)
    turned = rotate.rewrite(source, rotate.Options(untie=True), seed=0)
    for name in outliers:
        weights = [checkpoint.tensor(name).float() for checkpoint in (source, turned)]
        small = [torch.from_numpy(rtn.compress(name, w, rtn.Options(group_size=32)).dequantize()) for w in weights]
        before, after = (((q - w).norm() / w.norm()).item() for q, w in zip(small, weights, strict=True))
        assert after < 0.7 * before


def test_channels_that_hold_the_first_token_are_left_alone(tmp_path):
    folder = tiny_model("llama", tmp_path / "model")
    tensors = load_file(folder / "model.safetensors")
    tensors["model.layers.1.mlp.down_proj.weight"][[7, 30]] *= 20
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    source = open_checkpoint(folder)
    kept, all_turned = (rotate.rewrite(source, rotate.Options(untie=True, keep=n), seed=0) for n in (2, 0))
    before, after, without = (c.tensor("model.embed_tokens.weight") for c in (source, kept, all_turned))
    assert [i for i in range(64) if torch.allclose(before[:, i], after[:, i])] == [7, 30]
    assert not any(torch.allclose(before[:, i], without[:, i]) for i in range(64))
    torch.testing.assert_close(logits(kept), logits(source), atol=1e-3, rtol=0)


def test_an_untied_model_says_so_and_counts_its_head(tmp_path):
    source = tiny_model("llama", tmp_path / "model")
    kept, untied = (
        compress(source, rounded(8, Step("rotate", {"untie": untie})), tmp_path / str(untie)) for untie in (False, True)
    )
    config = json.loads((untied / "config.json").read_text())
    assert config["tie_word_embeddings"] is False
    assert {"model.embed_tokens.weight", "lm_head.weight"} < set(config["quantization_config"]["encodings"])
    source, kept, untied = (open_checkpoint(folder) for folder in (source, kept, untied))
    assert source.parameters == kept.parameters == untied.parameters
    assert untied.stored_bytes - kept.stored_bytes == 160 * (64 + 2 * 2)
    assert (logits(untied) - logits(source)).abs().mean() < 0.05 * logits(source).std()


def test_transformers_loads_an_untied_model(tmp_path):
    from transformers import AutoModelForCausalLM

    folder = compress(tiny_model("llama", tmp_path / "model"), rounded(4, UNTIE), tmp_path / "out")
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    with torch.no_grad():
        found = model(torch.arange(3, 60)[None]).logits
    torch.testing.assert_close(found, logits(open_checkpoint(folder)), atol=1e-5, rtol=0)


def test_what_cannot_be_rotated_is_refused(tmp_path):
    residual = rounded(8, Step("rotate", {"residual": True}))
    for source in (tiny_model("gpt2", tmp_path / "gpt2"), tiny_model("llama", tmp_path / "llama")):
        with pytest.raises(EdgeError, match="can't be rotated"):
            compress(source, residual, tmp_path / "out")
    with pytest.raises(EdgeError, match="decoder"):
        compress(tiny_any_model("BertModel", tmp_path / "bert"), rounded(8, UNTIE), tmp_path / "out")
    late = Recipe([Step("rtn", rules=[Rule(module="head", exclude=True)]), UNTIE])
    ruled = rounded(8, Step("rotate", rules=[Rule(name="*", exclude=True)]))
    for recipe in (late, ruled):
        with pytest.raises(UsageError, match="whole model"):
            compress(source, recipe, tmp_path / "out")
