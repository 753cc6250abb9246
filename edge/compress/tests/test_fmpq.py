"""FMPQ: permutations keep the function and bring outliers to the front; 4-bit activations as PyTorch evaluates them."""

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from edge import api
from edge.compress.methods import fmpq
from edge.compress.run import compress
from edge.core.errors import UsageError
from edge.core.recipe import Calibration, Recipe, Rule, Step
from edge.models.checkpoint import open_checkpoint
from edge.models.compressed_modules import quantize_activations
from edge.models.testing import tiny_model
from edge.models.torch_model import build_model

IDS = torch.arange(3, 60)[None]
RTN = Step("rtn", {"bits": 8, "group_size": 32}, [Rule(module="embedding", exclude=True)])


def logits(folder_or_checkpoint):
    opened = (
        open_checkpoint(folder_or_checkpoint) if not hasattr(folder_or_checkpoint, "spec") else folder_or_checkpoint
    )
    with torch.no_grad():
        return build_model(opened)(IDS).logits


@pytest.fixture
def text(tmp_path):
    path = tmp_path / "calibration.txt"
    path.write_text("".join(f"Line {i}: the quick brown fox jumps over {i * i} lazy dogs.\n" for i in range(20)))
    return path


def recipe(*steps, activations="f32"):
    return Recipe(list(steps), activations=activations, calibration=Calibration(samples=2, sequence_length=32))


@pytest.mark.parametrize("family", ["llama-rope", "gemma3_text", "phi3", "gpt2"])
def test_permuted_weights_compute_the_same(family, tmp_path, text):
    source = open_checkpoint(tiny_model(family, tmp_path / "model"))
    turned = fmpq.rewrite(source, fmpq.Options(), seed=0)
    torch.testing.assert_close(logits(turned), logits(source), atol=1e-4, rtol=0)
    embedding = f"{source.spec.embedding}.weight"
    assert not torch.equal(turned.tensor(embedding), source.tensor(embedding))
    # Within the layers too: only what is stored as half precision scales differs.
    whole = compress(tmp_path / "model", recipe(Step("fmpq"), RTN), tmp_path / "out", calibration_text=text)
    assert (logits(whole) - logits(source)).abs().max() < 0.2


def test_outliers_come_to_the_front(tmp_path):
    folder = tiny_model("llama", tmp_path / "model")
    tensors = load_file(folder / "model.safetensors")
    for name in tensors:
        if name.endswith(("embed_tokens.weight", "o_proj.weight", "down_proj.weight")):
            channels = tensors[name].T if "embed" in name else tensors[name]
            channels[[7, 50]] *= 30
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    source = open_checkpoint(folder)
    turned = fmpq.rewrite(source, fmpq.Options(), seed=0)
    found = turned.tensor("model.embed_tokens.weight")[:, :2]
    expected = source.tensor("model.embed_tokens.weight")[:, [7, 50]]
    assert torch.equal(found.sort(1)[0], expected.sort(1)[0])


def test_four_bit_activations_keep_eight_in_the_first_block():
    x = torch.randn(5, 256, generator=torch.Generator().manual_seed(0))
    codes, scale = quantize_activations(x, 32, "a4")
    assert codes.abs().amax((0, 2)).tolist() == [127] + [7] * 7
    error = ((codes * scale).flatten(-2) - x).unflatten(-1, (8, 32)).abs().amax((0, 2))
    assert error[0] < 0.02 and error[1:].min() > 0.1
    eight, _ = quantize_activations(x, 32)
    np.testing.assert_array_equal(eight[:, 0], codes[:, 0])


def test_a_recipe_with_four_bit_activations_is_evaluated_but_not_exported(tmp_path, text):
    model = tiny_model("llama", tmp_path / "model")
    exact = logits(model)
    errors = {}
    for activations in ("a8", "a4"):
        steps = recipe(Step("fmpq"), RTN, Step("kv_cache", {"bits": 4}), activations=activations)
        folder = compress(model, steps, tmp_path / activations, calibration_text=text)
        errors[activations] = float((logits(folder) - exact).square().mean())
    assert errors["a8"] < errors["a4"] < 1
    with pytest.raises(UsageError, match="4-bit activations"):
        api.export(tmp_path / "a4", tmp_path / "bundle")
