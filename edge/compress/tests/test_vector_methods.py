"""GPTVQ and group-mixed precision: against gptq at equal stored bits, and against their definitions."""

import numpy as np
import pytest
import torch

from edge.compress.clustering.vector_kmeans import weighted_means
from edge.compress.method import InputStatistics
from edge.compress.methods import gptq, gptvq, group_mixed
from edge.compress.run import compress
from edge.core.encoding import GroupMixed
from edge.core.errors import UsageError
from edge.core.recipe import check_options, parse_recipe
from edge.models.checkpoint import open_checkpoint
from edge.models.testing import tiny_model


@pytest.fixture(scope="module")
def problem():
    """A weight [64, 512] with heavy tails and a group that is larger, inputs of uneven energy that go together."""
    generator = torch.Generator().manual_seed(4)
    weight = torch.randn(64, 512, generator=generator) * torch.rand(64, 512, generator=generator)
    weight[:, 192:256] *= 2.5
    mixing = torch.randn(512, 512, generator=generator) * torch.rand(512, generator=generator) ** 2
    return weight, inputs_from(torch.randn(1000, 512, generator=generator) @ mixing)


def inputs_from(x):
    statistics = InputStatistics(x.shape[1])
    statistics.add(x)
    return statistics.inputs()


def error(tensor, problem):
    weight, inputs = problem
    difference = torch.from_numpy(tensor.dequantize()) - weight
    return ((difference @ inputs.hessian) * difference).sum().item()


def made(method, problem, **options):
    return method.compress("m", problem[0], check_options(options, method.Options, "m"), problem[1])


@pytest.mark.parametrize(
    ("options", "bits", "at_most"),
    [
        ({"bits": 4}, 4, 0.8),
        ({"bits": 3}, 3, 0.88),
        ({"bits": 4, "dim": 2}, 2, 0.55),
        ({"bits": 4, "dim": 2, "scale": "row", "table_columns": 128}, 2, 0.6),
    ],
    ids=str,
)
def test_gptvq_beats_gptq_at_equal_stored_bits(problem, options, bits, at_most):
    tensor, uniform = made(gptvq, problem, **options), made(gptq, problem, bits=bits)
    tensor.check()
    assert tensor.bits_per_weight < uniform.bits_per_weight + 0.01  # a table weighs more in a tiny matrix
    assert error(tensor, problem) < at_most * error(uniform, problem)


def test_gptvq_tables_end_at_the_least_error_that_their_indices_allow(problem):
    """The entries against least squares over all of them, in float64."""
    weight, inputs = problem
    options = {"bits": 2, "scale": "row", "table_rows": 1, "entry": "int8"}
    tensor = made(gptvq, problem, **options, updates=30)
    hessian = inputs.hessian.double()
    hessian = hessian + torch.eye(len(hessian)) * 0.01 * hessian.diagonal().mean()
    got = torch.from_numpy(tensor.dequantize()).double()
    for row in range(8):
        chosen = torch.nn.functional.one_hot(torch.from_numpy(tensor.parts["codes"][row]).long(), 4).double()
        wanted = weight[row].double()
        best = torch.linalg.lstsq(chosen.T @ hessian @ chosen, (chosen.T @ hessian @ wanted)[:, None]).solution[:, 0]
        errors = [(d @ hessian @ d).item() for d in (got[row] - wanted, chosen @ best - wanted)]
        assert errors[0] < 1.002 * errors[1]  # entries are int8, scales float16


@pytest.mark.parametrize("steps", [{"updates": 0}, {"act_order": False}], ids=str)
def test_every_step_of_gptvq_pays(problem, steps):
    options = {"bits": 4, "dim": 2, "scale": "row", "table_rows": 32}
    assert error(made(gptvq, problem, **options), problem) < error(made(gptvq, problem, **options, **steps), problem)


def test_gptvq_works_through_rows_in_parts(problem, monkeypatch):
    """What bounds the memory changes the order of sums alone; a tie that falls the other way moves what follows it."""
    options = {"bits": 3, "table_rows": 48}
    whole = made(gptvq, problem, **options)
    monkeypatch.setattr(gptvq, "WEIGHTS_AT_ONCE", 40 * 512)
    parts = made(gptvq, problem, **options)
    assert error(parts, problem) == pytest.approx(error(whole, problem), rel=0.01)


def test_gptvq_serves_zeros_and_dead_inputs(problem):
    weight, inputs = problem[0].clone(), problem[1]
    weight[:16] = 0
    weight[16:20, :128] = 0
    for options in ({"bits": 3}, {"bits": 4, "dim": 2, "scale": "row", "table_rows": 4}):
        tensor = made(gptvq, (weight, inputs), **options)
        tensor.check()
        dense = tensor.dequantize()
        assert np.isfinite(dense).all() and not dense[:16].any()


def test_gptvq_has_int16_entries_too(problem):
    fine, coarse = made(gptvq, problem, entry="int16"), made(gptvq, problem)
    assert fine.parts["tables"].dtype == np.int16
    assert error(fine, problem) == pytest.approx(error(coarse, problem), rel=0.1)


@pytest.mark.parametrize(
    "wrong",
    [{"bits": 5}, {"dim": 3}, {"damping": 0.0}, {"block": 3, "dim": 2}, {"updates": -1}, {"group_size": 48}],
    ids=str,
)
def test_gptvq_refuses_options_out_of_range(wrong):
    with pytest.raises(UsageError):
        check_options(wrong, gptvq.Options, "m")


def test_means_are_weighted_where_they_start_and_where_they_end():
    """Two far clusters of which one weighs nothing: no mean stays there but such as nothing is nearest to."""
    generator = torch.Generator().manual_seed(1)
    points = torch.randn(1, 400, 2, generator=generator)
    weights = torch.ones(1, 400, 2)
    points[:, 200:] += 50
    weights[:, 200:] = 0
    means = weighted_means(points, weights, 4, 20)
    assert means.amax() < 10
    assert weighted_means(points, weights, 4, 20).equal(means)


def test_group_mixed_beats_gptq_at_fewer_stored_bits(problem):
    mixed = made(group_mixed, problem, high=0.125, group_size=64)
    uniform = made(gptq, problem, bits=2, group_size=32)
    assert mixed.bits_per_weight < uniform.bits_per_weight
    assert error(mixed, problem) < 0.8 * error(uniform, problem)


def test_group_mixed_stores_at_most_2_85_bits():
    for columns in (576, 1536):
        weight = torch.randn(16, columns, generator=torch.Generator().manual_seed(columns))
        inputs = inputs_from(torch.randn(64, columns, generator=torch.Generator().manual_seed(0)))
        tensor = group_mixed.compress("m", weight, group_mixed.Options(), inputs)
        tensor.check()
        assert 2.7 < tensor.bits_per_weight <= 2.85


def test_sensitive_groups_have_range_and_energy():
    weight, importance = torch.full((32, 128), 0.1), torch.ones(128)
    weight[:, ::2] *= -1
    weight[3, 40] = 5  # range in group 1 of the first tile
    importance[96:] = 20  # energy in group 3
    high = group_mixed.sensitive_groups(weight, GroupMixed(32, 1, "zero_point"), importance)
    assert high.tolist() == [[False, True, False, False], [False, False, False, True]]


def test_more_groups_at_4_bits_and_the_right_ones_lower_the_error(problem, monkeypatch):
    few, more = (error(made(group_mixed, problem, high=share), problem) for share in (0.0, 0.25))
    assert more < 0.85 * few
    chosen = group_mixed.sensitive_groups
    monkeypatch.setattr(group_mixed, "sensitive_groups", lambda *args: chosen(*args).roll(1, 1))
    assert more < error(made(group_mixed, problem, high=0.25), problem)


@pytest.mark.parametrize("wrong", [{"high": 1.5}, {"damping": 0.0}, {"group_size": 0}, {"block": 0}], ids=str)
def test_group_mixed_refuses_options_out_of_range(wrong):
    with pytest.raises(UsageError):
        check_options(wrong, group_mixed.Options, "m")


MODEL = """
[calibration]
samples = 4
sequence_length = 32
[[steps]]
method = "group-mixed"
rules = [{name = "*down_proj*"}, {name = "*", exclude = true}]
[[steps]]
method = "gptvq"
options = {bits = 4, dim = 2, table_rows = 16}
"""


def test_a_model_with_its_tied_embedding(tmp_path):
    """Every matrix is stored as asked, and means what its file says."""
    model = tiny_model("llama", tmp_path / "model", tie_word_embeddings=True, num_hidden_layers=2)
    text = tmp_path / "text.txt"
    text.write_text("".join(f"Line {i}: {i * i} lazy dogs.\n" for i in range(80)))
    folder = compress(model, parse_recipe(MODEL, "m"), tmp_path / "out", calibration_text=text)
    original, compressed = open_checkpoint(model), open_checkpoint(folder)
    assert set(compressed.encodings) == {matrix for matrix, _ in original.spec.matrices()}
    for name, encoding in compressed.encodings.items():
        assert str(encoding).startswith("mixed2" if "down_proj" in name else "codebook4d2g64t16")
        wanted, got = (checkpoint.matrix(name).dequantize() for checkpoint in (original, compressed))
        assert np.corrcoef(got.flatten(), wanted.flatten())[0, 1] > 0.8
