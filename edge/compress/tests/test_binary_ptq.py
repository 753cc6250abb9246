"""Partly binarized weights: what stays at 8 bits, how signs are scaled, what it costs."""

import numpy as np
import pytest
import torch

from edge.compress.method import InputStatistics
from edge.compress.methods import binary_ptq, rtn
from edge.compress.methods.binary_ptq import Options
from edge.core.errors import UsageError
from edge.core.recipe import check_options
from edge.core.weight import GroupMixed
from edge.kernels.pack import pack


def problem(rows=64, columns=256, tokens=400):
    """A weight and correlated inputs of uneven energy."""
    random = torch.Generator().manual_seed(0)
    weight = torch.randn(rows, columns, generator=random)
    mixing = torch.randn(columns, columns, generator=random) * torch.rand(columns, generator=random)
    statistics = InputStatistics(columns)
    statistics.add(torch.randn(tokens, columns, generator=random) @ mixing)
    return weight, statistics.inputs()


def output_error(dense, weight, inputs):
    difference = torch.as_tensor(dense) - weight
    return ((difference @ inputs.hessian) * difference).sum().item()


@pytest.mark.parametrize("columns", [256, 150])
@pytest.mark.parametrize("scale", ["group", "second_order"])
def test_the_more_salient_weights_the_smaller_the_error(scale, columns):
    weight, inputs = problem(columns=columns)
    shares = [0.0, 0.2, 0.5, 1.0]
    tensors = [binary_ptq.compress("m", weight, Options(salient=s, scale=scale), inputs) for s in shares]
    errors = [output_error(tensor.dequantize(), weight, inputs) for tensor in tensors]
    signs = weight.sign() * weight.abs().mean(1, keepdim=True)
    two_bits = rtn.compress("m", weight, rtn.Options(bits=2, group_size=32))
    assert output_error(signs, weight, inputs) > 1.2 * errors[0]
    assert errors == sorted(errors, reverse=True) and errors[0] > output_error(two_bits.dequantize(), weight, inputs)
    assert errors[-1] < 1e-3 * errors[0]
    assert [t.encoding.high_groups for t in tensors] == [round(s * -(-columns // 32)) for s in shares]


@pytest.mark.parametrize(("scale", "bits"), [("group", 3.25), ("second_order", 3)])
def test_bits_per_weight_on_disk_and_in_kernels(scale, bits):
    weight, inputs = problem(columns=1024, tokens=50)
    tensor = binary_ptq.compress("m", weight, Options(salient=0.25, scale=scale), inputs)
    row_scales = 16 / 1024 if scale == "second_order" else 0
    assert tensor.bits_per_weight == bits + row_scales + 1 / (16 * 32)
    in_kernels = 8 * pack(tensor).size / weight.numel()
    assert bits < in_kernels < bits + 0.12  # 64 bytes of order in each tile, and of the rows' scales, and the header


def test_groups_with_strong_inputs_stay_at_8_bits():
    """The criterion is w^2 / [H^-1]^2: inputs of much energy, and large weights of one block of rows."""
    weight, _ = problem(rows=48)
    statistics = InputStatistics(256)
    x = torch.randn(400, 256, generator=torch.Generator().manual_seed(1))
    x[:, 70] *= 30
    statistics.add(x)
    weight[16:32, 96:128] *= 1000
    tensor = binary_ptq.compress("m", weight, Options(salient=1 / 8), statistics.inputs())
    chosen = tensor.parts["high"].argmax(1).tolist()
    assert tensor.encoding == GroupMixed(32, 1, scale="second_order", bits=1) and chosen == [2, 3, 2]


def test_binary_scales_fit_best():
    """Of the first group that is visited: the weights are the original ones then. sum h |w| / sum h, as 32 steps."""
    weight, inputs = problem()
    options = Options(salient=0.0, scale="group", act_order=False)
    tensor = binary_ptq.compress("m", weight, options, inputs)
    energy = inputs.hessian.diagonal()[:32]
    expected = (weight[:, :32].abs() * energy).sum(1) / energy.sum()
    np.testing.assert_allclose(32 * tensor.parts["scales"][:, 0].astype(np.float32), expected, rtol=1e-3)
    assert np.array_equal(tensor.parts["codes"][:, 0], (weight[:, 0] >= 0).numpy())


def test_dead_inputs_and_rows_of_zeros():
    weight, inputs = problem(columns=64)
    weight[3] = 0
    inputs.hessian[:32] = 0
    inputs.hessian[:, :32] = 0
    for scale in ("group", "second_order"):
        dense = binary_ptq.compress("m", weight, Options(salient=0.5, scale=scale), inputs).dequantize()
        assert np.isfinite(dense).all() and not dense[3].any()


@pytest.mark.parametrize("wrong", [{"salient": 1.5}, {"damping": 0.0}, {"bits": 2}, {"scale": "row"}])
def test_options_out_of_range(wrong):
    with pytest.raises(UsageError):
        check_options(wrong, Options, "binary_ptq")


def test_inputs_are_needed_and_groups_are_those_of_the_kernels():
    weight, inputs = problem()
    with pytest.raises(UsageError, match="calibration"):
        binary_ptq.compress("m", weight, Options(), None)
    with pytest.raises(UsageError, match="48 columns"):
        binary_ptq.compress("m", weight, Options(group_size=48), inputs)
