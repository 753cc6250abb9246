"""Preparations leave the function of a model alone, and make it easier to compress."""

import numpy as np
import pytest
import torch

from edge.compress.fold import folds
from edge.compress.method import load_method
from edge.compress.methods import awq, smoothquant
from edge.compress.run import compress
from edge.compress.tests.test_methods import inputs_from, problem
from edge.core.errors import UsageError
from edge.core.plugins import METHODS
from edge.core.recipe import check_options, parse_recipe
from edge.models.checkpoint import open_checkpoint
from edge.models.testing import FAMILIES, tiny_model
from edge.models.torch_model import build_model

TEXT = "".join(f"Line {i}: the quick brown fox jumps over {i * i} lazy dogs.\n" for i in range(40))
LATER = ("compress", "plan_steps", "finish")
PREPARING = [name for name in METHODS.names() if not any(hasattr(load_method(name), f) for f in LATER)]
TOML = """
schema = 1
activations = "f32"
calibration = {{samples = 4, sequence_length = 32}}
{step}
[[steps]]
method = "rtn"
options = {{bits = {bits}, group_size = 0}}
"""


@pytest.fixture
def text(tmp_path):
    path = tmp_path / "calibration.txt"
    path.write_text(TEXT)
    return path


def recipe(step, bits=8):
    return parse_recipe(TOML.format(step=step, bits=bits), "test")


def logits(model):
    with torch.no_grad():
        return model(torch.arange(3, 60)[None]).logits


@pytest.mark.parametrize("family", FAMILIES)
def test_folded_scales_cancel(family, tmp_path):
    checkpoint = open_checkpoint(tiny_model(family, tmp_path / "model"))
    model = build_model(checkpoint)
    before = logits(model)
    generator = torch.Generator().manual_seed(1)
    places = set()
    for layer in checkpoint.spec.layers:
        for fold in folds(layer):
            scales = 0.25 + 4 * torch.rand(fold.readers[0].in_features, generator=generator)
            kept = [model.get_parameter(reader.weight).clone() for reader in fold.readers]
            fold.apply(model.get_parameter, fold.shared(scales))
            assert not any(
                torch.equal(model.get_parameter(r.weight), old) for r, old in zip(fold.readers, kept, strict=True)
            )
            places.add(fold.place)
    assert places == {"norm", "values"} | ({"products"} if family != "gpt2" else set())
    torch.testing.assert_close(logits(model), before, rtol=1e-3, atol=1e-3 * before.std().item())


@pytest.mark.parametrize("family", ["llama-rope", "gpt2", "phi3", "gemma2"])
@pytest.mark.parametrize("name", PREPARING)
def test_a_preparation_changes_weights_and_not_the_function(name, family, tmp_path, text):
    source = tiny_model(family, tmp_path / "model", tie_word_embeddings=False)
    step = f'[[steps]]\nmethod = "{name}"'
    folder = compress(source, recipe(step), tmp_path / "out", calibration_text=text)
    original, compressed = logits(build_model(open_checkpoint(source))), open_checkpoint(folder)
    assert (logits(build_model(compressed)) - original).abs().mean() < 0.1 * original.std()
    plain = open_checkpoint(compress(source, recipe(""), tmp_path / "plain"))
    dense = ([c.matrix(name).dequantize() for name in compressed.encodings] for c in (compressed, plain))
    assert not all(map(np.array_equal, *dense))
    assert set(compressed.encodings) == {matrix for matrix, _ in compressed.spec.matrices()}


@pytest.mark.parametrize("name", PREPARING)
def test_the_same_preparation_twice_gives_the_same_bytes(name, tmp_path, text):
    source = tiny_model("llama", tmp_path / "model")
    step = f'[[steps]]\nmethod = "{name}"'
    folders = [compress(source, recipe(step, bits=3), tmp_path / out, calibration_text=text) for out in "ab"]
    files = [{path.name: path.read_bytes() for path in folder.glob("*.safetensors")} for folder in folders]
    assert files[0] == files[1]


def test_a_recipe_that_only_prepares_is_refused(tmp_path, text):
    source = tiny_model("llama", tmp_path / "model")
    only = parse_recipe('schema = 1\n[[steps]]\nmethod = "smoothquant"', "test")
    with pytest.raises(UsageError, match="compresses nothing"):
        compress(source, only, tmp_path / "out", calibration_text=text)


def test_smoothing_scales_are_those_of_the_paper():
    # Figure 5 of the paper: |X| maxima 2, 16, 2, 9 and |W| maxima 2, 1, 2, 1 at alpha 0.5 give 1, 4, 1, 3
    scales = smoothquant.smoothing_scales(torch.tensor([2.0, 16, 2, 9, 0]), torch.tensor([2.0, 1, 2, 1, 1]), 0.5)
    torch.testing.assert_close(scales, torch.tensor([1.0, 4, 1, 3, 1]))


def test_smoothquant_serves_int8_activations_with_outliers(tmp_path, text):
    """A channel of 40 times the others' size ruins int8 activations with one scale per token; smoothing saves them."""
    from safetensors.torch import load_file, save_file

    source = tiny_model("llama", tmp_path / "model")
    tensors = load_file(source / "model.safetensors")
    for layer in range(2):
        norm = tensors[f"model.layers.{layer}.input_layernorm.weight"]
        norm[5::16] *= 40
        for part in "qkv":
            tensors[f"model.layers.{layer}.self_attn.{part}_proj.weight"][:, 5::16] /= 40
    save_file(tensors, source / "model.safetensors", metadata={"format": "pt"})
    original = logits(build_model(open_checkpoint(source)))
    errors = []
    for index, step in enumerate(("", '[[steps]]\nmethod = "smoothquant"')):
        int8 = parse_recipe(TOML.format(step=step, bits=8).replace('"f32"', '"a8"'), "test")
        folder = compress(source, int8, tmp_path / f"out{index}", calibration_text=text)
        errors.append((logits(build_model(open_checkpoint(folder))) - original).square().mean())
    assert errors[1] < 0.5 * errors[0]


def test_awq_finds_the_best_alpha_of_its_equation():
    """Against running the samples through the rounded matrix, as equation 4 is written."""
    from edge.compress.fold import Fold
    from edge.compress.methods import rtn
    from edge.models.spec import Linear

    weight, _ = problem(rows=32, columns=128)
    energy = torch.logspace(-2, 0, 128)[torch.randperm(128, generator=torch.Generator().manual_seed(4))]
    x = torch.randn(256, 128, generator=torch.Generator().manual_seed(5)) * energy
    options = awq.Options(bits=3)
    scales = awq.best_scales(Fold((Linear("m", 32, 128),)), [(weight, options)], inputs_from(x))
    errors = []
    for step in range(20):
        tried = x.abs().mean(0) ** (step / 20)
        tried = tried / (tried.max() * tried.min()).sqrt()
        rounded = torch.from_numpy(rtn.compress("m", weight * tried, rtn.Options(bits=3)).dequantize())
        errors.append((((x / tried) @ rounded.T - x @ weight.T) ** 2).mean().item())
        if torch.allclose(tried, scales):
            chosen = step
    assert chosen > 0 and errors[chosen] == min(errors)


@pytest.mark.parametrize(
    ("name", "wrong"),
    [
        ("awq", {"steps": 0}),
        ("awq", {"clip_to": 0.0}),
        ("awq", {"clip_steps": -1}),
        ("smoothquant", {"alpha": 1.5}),
        ("smoothquant", {"bits": 8}),
    ],
)
def test_options_out_of_range(name, wrong):
    with pytest.raises(UsageError):
        check_options(wrong, load_method(name).Options, name)
