"""k-means: what its importance does, exactly and through the pipeline."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from edge.compress.gradients import squared_gradients
from edge.compress.method import Gradients, Inputs
from edge.compress.methods import kmeans, rtn
from edge.compress.run import compress
from edge.core.errors import UsageError
from edge.core.recipe import check_options, parse_recipe
from edge.models.checkpoint import open_checkpoint
from edge.models.testing import tiny_model
from edge.models.torch_model import build_model


def weights(rows=48, columns=256):
    generator = torch.Generator().manual_seed(2)
    return torch.randn(rows, columns, generator=generator) * torch.rand(rows, columns, generator=generator)


def made(weight, inputs=None, **options):
    return kmeans.compress("m", weight, check_options(options, kmeans.Options, "m"), inputs)


def error(tensor, weight, importance=1.0):
    return float(((torch.from_numpy(tensor.dequantize()) - weight).square() * importance).sum())


@pytest.mark.parametrize("bits", [2, 3, 4])
def test_tables_beat_the_grid_at_fewer_stored_bits(bits):
    weight = weights()
    for scale in ("row", "group"):
        tensor = made(weight, bits=bits, scale=scale)
        grid = rtn.compress("m", weight, rtn.Options(bits=bits, group_size=64))
        assert tensor.bits_per_weight < grid.bits_per_weight + 0.02
        assert error(tensor, weight) < 0.9 * error(grid, weight)


def test_more_entries_and_fewer_columns_to_an_index_lower_the_error():
    weight = weights()
    errors = [error(made(weight, bits=bits, rounds=0), weight) for bits in (1, 2, 3, 4, 6, 8)]
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < 1e-4 * float(weight.square().sum())
    by_dim = [error(made(weight, bits=4, dim=dim, group_size=128), weight) for dim in (1, 2, 4)]
    assert by_dim == sorted(by_dim)
    assert error(made(weight, bits=4, dim=2), weight) < error(made(weight, bits=2, dim=1), weight)


@pytest.mark.parametrize("rounds", [0, 3])
def test_exact_tables_are_no_worse_and_rounds_pay(rounds):
    weight = weights()
    found, exact = (made(weight, bits=3, rounds=rounds, exact=exact, entry="int16") for exact in (False, True))
    assert error(exact, weight) <= 1.0005 * error(found, weight)  # entries and scales are rounded after it
    assert error(made(weight, bits=3, rounds=3), weight) < error(made(weight, bits=3, rounds=0), weight)


@pytest.mark.parametrize(("importance", "dim"), [("activations", 1), ("fisher", 1), ("activations", 2), ("fisher", 4)])
def test_importance_lowers_the_error_that_counts(importance, dim):
    weight, generator = weights(), torch.Generator().manual_seed(5)
    known, counts = Inputs(torch.diag(torch.rand(256, generator=generator) ** 4), *torch.ones(2, 256)), None
    counts = known.hessian.diagonal()
    if importance == "fisher":
        counts = torch.rand(weight.shape, generator=generator) ** 4
        known = Gradients(counts)
    options = {"bits": 3, "dim": dim, "group_size": 128}
    weighted, plain = made(weight, known, importance=importance, **options), made(weight, **options)
    assert error(weighted, weight, counts) < 0.95 * error(plain, weight, counts)
    with pytest.raises(UsageError, match=f"nothing is known of its {importance}"):
        made(weight, importance=importance)


@pytest.mark.parametrize("wrong", [{"exact": True, "dim": 2}, {"rounds": -1}, {"bits": 5}, {"importance": "hessian"}])
def test_options_out_of_range_are_refused(wrong):
    with pytest.raises(UsageError):
        check_options(wrong, kmeans.Options, "m")


def test_squared_gradients_are_those_of_the_whole_model(tmp_path):
    model = tiny_model("llama", tmp_path / "model", tie_word_embeddings=False, num_hidden_layers=2)
    checkpoint = open_checkpoint(model)
    vocabulary = checkpoint.spec.vocab_size  # token 0 is padding, which torch gives no gradient
    windows = torch.randint(1, vocabulary, (3, 24), generator=torch.Generator().manual_seed(0))
    names = {name for name, _ in checkpoint.spec.matrices()}
    found = squared_gradients(checkpoint, names, windows, tmp_path / "gradients", seed=7)
    whole, generator = build_model(checkpoint), torch.Generator().manual_seed(7)
    expected = dict.fromkeys(names, 0)
    with torch.enable_grad():
        for window in windows:
            whole.zero_grad()
            logits = whole.requires_grad_()(input_ids=window[None], use_cache=False).logits[0]
            labels = torch.multinomial(logits.detach().softmax(-1), 1, generator=generator)[:, 0]
            F.cross_entropy(logits, labels, reduction="sum").backward()
            for name in names:
                expected[name] = expected[name] + whole.get_parameter(name).grad.square()
    for name in names:
        torch.testing.assert_close(found.read(name), expected[name], rtol=1e-3, atol=1e-6)


RECIPE = """
[calibration]
samples = 4
sequence_length = 32
[[steps]]
method = "kmeans"
options = {bits = 3, importance = "IMPORTANCE"}
"""


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("importance", ["none", "fisher"])
def test_a_model_without_its_inputs(tmp_path, importance, tied):
    """Neither walks with the compression; only gradients need a text. Nothing of them is left in the folder."""
    model = tiny_model("llama", tmp_path / "model", tie_word_embeddings=tied, num_hidden_layers=2)
    text = tmp_path / "text.txt"
    text.write_text("".join(f"Line {i}: {i * i} lazy dogs.\n" for i in range(80)))
    recipe = parse_recipe(RECIPE.replace("IMPORTANCE", importance), "m")
    folder = compress(model, recipe, tmp_path / "out", calibration_text=text if importance == "fisher" else None)
    original, compressed = open_checkpoint(model), open_checkpoint(folder)
    assert set(compressed.encodings) == {matrix for matrix, _ in original.spec.matrices()}
    for name in compressed.encodings:
        wanted, got = (checkpoint.matrix(name).dequantize() for checkpoint in (original, compressed))
        assert np.corrcoef(got.flatten(), wanted.flatten())[0, 1] > (0.95 if importance == "none" else 0.7)
    assert not [path.name for path in folder.iterdir() if path.name.startswith(".")]


def test_gradients_of_weights_that_a_preparation_changes_are_refused(tmp_path):
    model = tiny_model("llama", tmp_path / "model", num_hidden_layers=1)
    text = tmp_path / "text.txt"
    text.write_text("A lazy dog. " * 100)
    steps = '[[steps]]\nmethod = "smoothquant"\n' + RECIPE[RECIPE.index("[[steps]]") :].replace("IMPORTANCE", "fisher")
    recipe = parse_recipe(RECIPE[: RECIPE.index("[[steps]]")] + steps, "m")
    with pytest.raises(UsageError, match="gradients are others"):
        compress(model, recipe, tmp_path / "out", calibration_text=text)
