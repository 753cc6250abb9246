"""The contract of every method that compresses a matrix, and GPTQ against plain implementations of its definition."""

import numpy as np
import pytest
import torch

from edge.compress.grid import fit_grid
from edge.compress.method import AffineOptions, InputStatistics, load_method
from edge.compress.methods import autoround, finequant, gptq, hqq, rtn
from edge.core.errors import EdgeError, UsageError
from edge.core.plugins import METHODS
from edge.core.recipe import check_options
from edge.core.weight import Affine
from edge.models.stored import from_stored, stored_names, to_stored

COMPRESSING = [name for name in METHODS.names() if hasattr(load_method(name), "compress")]
UNIFORM = [name for name in COMPRESSING if issubclass(load_method(name).Options, AffineOptions)]
SETTINGS = [
    {"bits": 2, "group_size": 32},
    {"bits": 3, "group_size": 64, "grid": "zero_point"},
    {"bits": 4, "group_size": 128},
    {"bits": 5, "group_size": 0, "grid": "zero_point"},
    {"bits": 8, "group_size": 0},
    {"bits": 2, "group_size": 64, "grid": "half_integer"},
]


def problem(rows=24, columns=160, tokens=400, seed=0):
    """A weight and the Hessian of correlated inputs of uneven energy."""
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(rows, columns, generator=generator)
    mixing = torch.randn(columns, columns, generator=generator) * torch.rand(columns, generator=generator)
    x = torch.randn(tokens, columns, generator=generator) @ mixing
    return weight, inputs_from(x)


def inputs_from(x):
    statistics = InputStatistics(x.shape[1])
    statistics.add(x)
    return statistics.inputs()


def output_error(tensor, weight, inputs):
    difference = torch.from_numpy(tensor.dequantize()) - weight
    return ((difference @ inputs.hessian) * difference).sum().item()


def options_of(name, settings):
    return check_options(settings, load_method(name).Options, name)


def compressed(name, settings):
    """What a method makes of the problem: the same twice, stored at the size that it states."""
    weight, inputs = problem()
    kept = weight.clone()
    method, options = load_method(name), options_of(name, settings)
    tensor = method.compress("m.weight", weight, options, inputs)
    again = method.compress("m.weight", weight.clone(), options, problem()[1])
    assert torch.equal(weight, kept)
    assert tensor.shape == weight.shape
    assert all(np.array_equal(tensor.parts[part], again.parts[part]) for part in tensor.parts)
    stored = to_stored(tensor)
    assert sum(part.nbytes for part in stored.values()) == tensor.stored_bytes
    names = stored_names("m.weight", tensor.shape, tensor.encoding)
    back = from_stored("m.weight", tensor.shape, tensor.encoding, stored.get, names)
    assert np.array_equal(back.dequantize(), tensor.dequantize())
    return tensor


@pytest.mark.parametrize("name", COMPRESSING)
def test_contract_of_the_defaults(name):
    compressed(name, {})


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
@pytest.mark.parametrize("name", UNIFORM)
def test_contract(name, settings):
    """finequant alone chooses the group size; it is held against rounding in groups of the same size."""
    tensor, (weight, inputs) = compressed(name, settings), problem()
    if name != "finequant":
        assert tensor.encoding == options_of(name, settings).encoding
    chosen = {**settings, "group_size": tensor.encoding.group_size}
    nearest = rtn.compress("m.weight", weight, options_of("rtn", chosen))
    assert output_error(tensor, weight, inputs) <= output_error(nearest, weight, inputs)


@pytest.mark.parametrize("name", UNIFORM)
def test_bits_and_groups_that_cannot_be_stored(name):
    for wrong in ({"bits": 1}, {"bits": 9}, {"group_size": 48}):
        with pytest.raises(UsageError):
            _ = options_of(name, wrong).encoding
    with pytest.raises(UsageError, match="grid"):
        options_of(name, {"grid": "log"})
    with pytest.raises(UsageError) as caught:
        options_of(name, {"bitz": 4})
    assert "did you mean 'bits'" in caught.value.hint


@pytest.mark.parametrize("search", [False, True])
@pytest.mark.parametrize("grid", ["symmetric", "zero_point", "half_integer"])
def test_rtn_takes_the_nearest_level_of_the_stored_scale(grid, search):
    weight, _ = problem(rows=8, columns=96)
    encoding = Affine(3, 64, grid)
    tensor = rtn.compress("m", weight, rtn.Options(bits=3, group_size=64, grid=grid, search=search))
    scales = tensor.parts["scales"].astype(np.float64)
    zeros = tensor.parts.get("zero_points", np.full(scales.shape, encoding.symmetric_zero)).astype(np.float64)
    for group in range(2):
        block = weight[:, group * 64 : group * 64 + 64].double().numpy()
        steps = 2 * np.arange(8) - 7 if grid == "half_integer" else np.arange(8) - zeros[:, group, None]
        levels = scales[:, group, None] * steps
        best = np.abs(block[:, :, None] - levels[:, None, :]).min(-1)
        got = np.abs(block - tensor.dequantize()[:, group * 64 : group * 64 + 64])
        np.testing.assert_allclose(got, best, atol=1e-6)


@pytest.mark.parametrize("grid", ["symmetric", "half_integer"])
def test_plain_rtn_keeps_the_extreme_weight(grid):
    weight = torch.randn(16, 64, generator=torch.Generator().manual_seed(2))
    dense = rtn.compress("m", weight, rtn.Options(bits=4, grid=grid, search=False)).dequantize()
    extreme = weight.abs().argmax(1)
    rows = torch.arange(16)
    np.testing.assert_allclose(dense[rows, extreme], weight[rows, extreme], rtol=1e-3)


def test_search_lowers_the_squared_error():
    weight, _ = problem()
    for grid in ("symmetric", "zero_point", "half_integer"):
        plain, searched = (fit_grid(weight, Affine(3, 64, grid), search=search) for search in (False, True))
        errors = [
            np.square(g.tensor("m", g.encode(weight)).dequantize() - weight.numpy()).sum() for g in (plain, searched)
        ]
        assert errors[1] < 0.95 * errors[0]


def test_groups_of_zeros_and_single_signs():
    weight = torch.zeros(2, 128)
    weight[0, 64:] = torch.linspace(0.5, 2, 64)
    for grid in ("symmetric", "zero_point"):
        tensor = rtn.compress("m", weight, rtn.Options(bits=8, grid=grid))
        np.testing.assert_allclose(tensor.dequantize(), weight.numpy(), atol=2 / 127)


def test_scales_beyond_float16_are_refused():
    with pytest.raises(EdgeError, match="too large"):
        rtn.compress("m", torch.full((1, 64), 1e9), rtn.Options())


def plain_gptq(weight, hessian, grid, order, damping):
    """The definition (OBQ in a fixed order): round a column, update the rest by the inverse Hessian, drop it."""
    weight, hessian = weight.double().clone(), hessian.double().clone()
    hessian += torch.eye(len(hessian)) * damping * hessian.diagonal().mean()
    inverse = torch.linalg.inv(hessian)
    codes = torch.empty(weight.shape, dtype=torch.uint8)
    size, top = grid.encoding.group_size or weight.shape[1], (1 << grid.encoding.bits) - 1
    for column in order.tolist():
        scale, zero = grid.scales[:, column // size].double(), grid.zeros[:, column // size].double()
        code = (weight[:, column] / scale + zero).round().clamp(0, top)
        codes[:, column] = code.to(torch.uint8)
        error = (weight[:, column] - scale * (code - zero)) / inverse[column, column]
        weight -= error[:, None] * inverse[column][None]
        inverse -= inverse[:, column, None] @ inverse[None, column] / inverse[column, column]
        inverse[column, column] = 1.0  # dropped: its row and column are zero from here on
    return codes


@pytest.mark.parametrize("act_order", [False, True])
@pytest.mark.parametrize("grid", ["symmetric", "zero_point", "half_integer"])
def test_gptq_is_its_definition(act_order, grid):
    weight, inputs = problem(rows=12, columns=96)
    options = gptq.Options(bits=3, group_size=32, grid=grid, act_order=act_order, block=40)
    tensor = gptq.compress("m", weight, options, inputs)
    energy = inputs.hessian.diagonal()
    order = torch.argsort(energy, descending=True, stable=True) if act_order else torch.arange(96)
    importance = energy if options.search else None
    fitted = fit_grid(weight, options.encoding, search=options.search, importance=importance)
    expected = fitted.tensor("m", plain_gptq(weight, inputs.hessian, fitted, order, options.damping))
    same = (tensor.parts["codes"] == expected.parts["codes"]).mean()
    assert same > 0.995  # float32 against float64: a tie may fall the other way
    assert np.array_equal(tensor.parts["scales"], expected.parts["scales"])
    ratio = output_error(tensor, weight, inputs) / output_error(expected, weight, inputs)
    assert ratio == pytest.approx(1, rel=0.02)


def test_gptq_beats_rounding_by_far_on_correlated_inputs():
    weight, inputs = problem()
    nearest = rtn.compress("m", weight, rtn.Options(bits=3))
    tensor = gptq.compress("m", weight, gptq.Options(bits=3), inputs)
    assert output_error(tensor, weight, inputs) < 0.6 * output_error(nearest, weight, inputs)


def test_gptq_rounds_dead_columns_to_nearest():
    weight, inputs = problem(columns=64)
    inputs.hessian[7] = 0
    inputs.hessian[:, 7] = 0
    options = gptq.Options(bits=4, search=False)
    codes = gptq.compress("m", weight, options, inputs).parts["codes"]
    assert np.array_equal(
        codes[:, 7], rtn.compress("m", weight, rtn.Options(bits=4, search=False)).parts["codes"][:, 7]
    )


def test_gptq_survives_a_singular_hessian():
    weight, _ = problem(columns=64)
    inputs = inputs_from(torch.ones(10, 64))
    tensor = gptq.compress("m", weight, gptq.Options(damping=1e-8), inputs)
    assert np.isfinite(tensor.dequantize()).all()


def gptq_on_the_way(weight, hessian, encoding, damping):
    """Without static groups, as dense algebra: after each column the rest is the least-squares optimum given the codes.

    min over the free columns F of tr(D H D^T), D = original - present, is W_F + D_C H_CF H_FF^-1 for the fixed C.
    """
    weight, hessian = weight.double(), hessian.double()
    hessian = hessian + torch.eye(len(hessian)) * damping * hessian.diagonal().mean()
    now, codes = weight.clone(), torch.empty(weight.shape, dtype=torch.uint8)
    for column in range(weight.shape[1]):
        if column % encoding.group_size == 0:
            part = now[:, column : column + encoding.group_size].float()
            grid = fit_grid(part, encoding, search=False)
        code = grid.encode(now[:, column, None].float())
        codes[:, column] = code[:, 0]
        now[:, column] = torch.from_numpy(grid.tensor("m", code).dequantize())[:, 0].double()
        free = slice(column + 1, None)
        change = (weight - now)[:, : column + 1] @ hessian[: column + 1, free]
        now[:, free] = weight[:, free] + torch.linalg.solve(hessian[free, free], change.T).T
    return codes


@pytest.mark.parametrize("grid", ["symmetric", "zero_point", "half_integer"])
def test_gptq_without_static_groups_is_a_sequence_of_least_squares(grid):
    weight, inputs = problem(rows=12, columns=80)
    settings = {"bits": 3, "group_size": 32, "grid": grid, "act_order": False, "static_groups": False, "search": False}
    options = options_of("gptq", settings)
    tensor = gptq.compress("m", weight, options, inputs)
    expected = gptq_on_the_way(weight, inputs.hessian, options.encoding, options.damping)
    assert (tensor.parts["codes"] == expected.numpy()).mean() > 0.97  # a tie in float32 moves the columns after it


@pytest.mark.parametrize("grid", ["symmetric", "zero_point", "half_integer"])
def test_hqq_lets_few_weights_be_wrong_but_not_the_largest(grid):
    weight = torch.randn(32, 256, generator=torch.Generator().manual_seed(3)) * 0.02
    weight[:, ::64] *= 8

    def errors(method, **options):
        tensor = method.compress("m", weight, method.Options(bits=3, grid=grid, **options))
        return np.abs(tensor.dequantize() - weight.numpy())

    nearest, plain, weighted = errors(rtn), errors(hqq, salience=0.0), errors(hqq)
    assert (plain**0.7).sum() < 0.97 * (nearest**0.7).sum()
    assert (weighted**0.7 * weight.abs().numpy()).sum() < (nearest**0.7 * weight.abs().numpy()).sum()
    assert (weighted[:, ::64] ** 2).sum() < (plain[:, ::64] ** 2).sum()


def test_finequant_takes_small_groups_where_outliers_are_few():
    """Ranges: all alike; one group of 32 ten times the others; one half of the row ten times the other."""
    random = torch.Generator().manual_seed(4)
    even = torch.rand(16, 512, generator=random) * 2 - 1
    even[:, ::16] = 1
    even[:, 1::16] = -1
    spiky, halves = even.clone(), even.clone()
    spiky[:, 64:96] *= 10
    halves[:, 256:] *= 10
    sizes = [finequant.compress("m", w, finequant.Options()).encoding.group_size for w in (even, spiky, halves)]
    assert sizes == [0, 32, 128]
    assert finequant.group_size(spiky, finequant.Options(group_size=64)) == 64
    assert finequant.group_size(spiky, finequant.Options(alpha=0.0)) == 0
    assert finequant.group_size(spiky[:, 64:128], finequant.Options()) == 32
    assert finequant.group_size(spiky[:, :32], finequant.Options()) == 0


@pytest.mark.parametrize("grid", ["symmetric", "zero_point", "half_integer"])
def test_gradients_of_autoround_are_those_of_its_formula(grid):
    """Straight through every rounding, by finite differences of the formula with no rounding inside the range."""
    weight, _ = problem(rows=4, columns=64)
    rounding = autoround._Rounding(weight, autoround.Options(bits=3, group_size=32, grid=grid))
    with torch.no_grad():
        rounding.alpha *= 0.6
        rounding.beta *= 0.7
    direction = torch.randn(weight.shape, generator=torch.Generator().manual_seed(6))
    (rounding.dequantized() * direction).sum().backward()
    scale, zero = rounding.grid()
    levels = weight.view(4, 2, 32) / scale[..., None] + zero[..., None]
    inside = (levels.round() >= 0) & (levels.round() <= 7)
    assert inside.float().mean() < 1
    expected = direction.view(4, 2, 32) * scale[..., None] * inside
    torch.testing.assert_close(rounding.offsets.grad, expected)
    assert rounding.alpha.grad.abs().min() > 0


def test_autoround_finds_better_roundings_than_the_nearest():
    weight, inputs = problem()
    nearest = rtn.compress("m", weight, rtn.Options(bits=3))
    tensor = autoround.compress("m", weight, autoround.Options(bits=3), inputs)
    assert output_error(tensor, weight, inputs) < 0.9 * output_error(nearest, weight, inputs)


@pytest.mark.parametrize("wrong", [{"steps": 0}, {"batch": 0}, {"learning_rate": 2.0}, {"arithmetic": "int8"}])
def test_autoround_refuses_options_out_of_range(wrong):
    with pytest.raises(UsageError):
        options_of("autoround", wrong)


@pytest.mark.parametrize("wrong", [{"alpha": 1.5}, {"alpha": -0.1}])
def test_finequant_refuses_options_out_of_range(wrong):
    with pytest.raises(UsageError):
        options_of("finequant", wrong)


@pytest.mark.parametrize(
    "wrong", [{"p": 0.0}, {"p": 1.5}, {"beta": 0.0}, {"growth": 0.5}, {"iterations": 0}, {"salience": 3.0}]
)
def test_hqq_refuses_options_out_of_range(wrong):
    with pytest.raises(UsageError):
        options_of("hqq", wrong)


@pytest.mark.parametrize(
    "wrong", [{"damping": 0.0}, {"damping": 2.0}, {"block": 0}, {"static_groups": False, "act_order": True}]
)
def test_gptq_refuses_options_out_of_range(wrong):
    with pytest.raises(UsageError):
        options_of("gptq", wrong)
