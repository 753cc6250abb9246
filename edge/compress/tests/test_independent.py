"""GPTQ and AWQ against other people's implementations of them, on one matrix.

Weights are made so that the scale of every group is a power of two: float16, in which ours are stored, holds it as it
is, and both sides round on one grid.
"""

import sys
from types import ModuleType

import numpy as np
import pytest
import torch

from edge.compress.fold import Fold
from edge.compress.method import InputStatistics
from edge.compress.methods import awq, gptq

ROWS, COLUMNS = 48, 256


def problem(bits, group_size):
    """A weight [rows, columns] whose groups span `2**bits - 1` powers of two, and what it sees: x and its `Inputs`."""
    generator = torch.Generator().manual_seed(bits)
    groups = torch.randn(ROWS, COLUMNS // (group_size or COLUMNS), group_size or COLUMNS, generator=generator)
    spans = groups.amax(-1, keepdim=True) - groups.amin(-1, keepdim=True)
    scales = 2.0 ** torch.randint(-8, -4, spans.shape, generator=generator)
    weight = (groups * scales * (2**bits - 1) / spans).flatten(1)
    mixing = torch.randn(COLUMNS, COLUMNS, generator=generator) * (0.02 + torch.rand(COLUMNS, generator=generator) ** 2)
    x = torch.randn(1000, COLUMNS, generator=generator) @ mixing
    statistics = InputStatistics(COLUMNS)
    statistics.add(x)
    return weight, x, statistics.inputs()


def output_error(dense, weight, inputs):
    return awq.output_errors(torch.as_tensor(dense) - weight, inputs.hessian).sum().item()


@pytest.fixture
def neural_compressor(monkeypatch):
    """Intel's GPTQ. Its module imports one function of `accelerate`, which it uses for other things."""
    accelerate = ModuleType("accelerate.utils")
    accelerate.set_module_tensor_to_device = None
    monkeypatch.setitem(sys.modules, "accelerate", ModuleType("accelerate"))
    monkeypatch.setitem(sys.modules, "accelerate.utils", accelerate)
    return pytest.importorskip("neural_compressor.torch.algorithms.weight_only.gptq")


def their_gptq(package, weight, inputs, bits, group_size, variant):
    solver = package.GPTQ(torch.nn.Linear(COLUMNS, ROWS, bias=False), weight)
    defaults = {"dtype": "int", "sym": False, "mse": False, "perchannel": True}
    solver.quantizer.configure(defaults | {"bits": bits, "use_double_quant": False, "double_quant_sym": False})
    solver.H = inputs.hessian.clone()
    return solver.fasterquant(weight.clone(), groupsize=group_size or -1, **variant)[3]


@pytest.mark.parametrize("group_size", [0, 32])
@pytest.mark.parametrize("act_order", [False, True])
@pytest.mark.parametrize("bits", [2, 3, 4])
def test_gptq_has_the_codes_of_another_implementation(neural_compressor, bits, act_order, group_size):
    weight, _, inputs = problem(bits, group_size)
    variant = {"act_order": act_order, "static_groups": group_size > 0}
    theirs = their_gptq(neural_compressor, weight, inputs, bits, group_size, variant)
    options = gptq.Options(bits, group_size, "zero_point", search=False, act_order=act_order)
    tensor = gptq.compress("m", weight, options, inputs)
    size = group_size or COLUMNS
    zeros, scales = (np.repeat(tensor.parts[part].astype(np.float32), size, 1) for part in ("zero_points", "scales"))
    codes = theirs.numpy() / scales + zeros
    assert np.abs(codes - codes.round()).max() < 1e-3  # one grid
    assert (codes.round() == tensor.parts["codes"]).mean() > 0.99  # a tie may fall the other way, and move others
    ratio = output_error(tensor.dequantize(), weight, inputs) / output_error(theirs, weight, inputs)
    assert ratio == pytest.approx(1, rel=0.01)


@pytest.mark.parametrize("bits", [3, 4])
def test_gptq_without_static_groups_is_as_good_as_another_implementation(neural_compressor, bits):
    """Scales come from corrected weights here, and differ by float16. Theirs sees corrections once a block."""
    weight, _, inputs = problem(bits, 32)
    theirs = their_gptq(neural_compressor, weight, inputs, bits, 32, {"blocksize": 32})
    options = gptq.Options(bits, 32, "zero_point", search=False, act_order=False, static_groups=False)
    ours = gptq.compress("m", weight, options, inputs).dequantize()
    assert output_error(ours, weight, inputs) == pytest.approx(output_error(theirs, weight, inputs), rel=0.03)


@pytest.mark.parametrize("bits", [3, 4])
def test_awq_finds_the_scales_of_another_implementation(bits):
    api = pytest.importorskip("torchao.prototype.awq.core")
    quantization = pytest.importorskip("torchao.quantization")
    weight, x, inputs = problem(bits, 32)
    asymmetric = quantization.quant_primitives.MappingType.ASYMMETRIC
    grid = {"granularity": quantization.PerGroup(32), "mapping_type": asymmetric}
    config = quantization.IntxWeightOnlyConfig(weight_dtype=getattr(torch, f"int{bits}"), **grid)
    observer = api.AWQObserver(weight, None, config)
    observer(x, None)
    theirs = observer.calculate_qparams()
    options = awq.Options(bits, 32, "zero_point")
    ours = awq.best_scales(Fold(()), [(weight, options)], inputs)
    assert ours.log() @ theirs.log() > 0.999 * ours.log().norm() * theirs.log().norm()  # powers of the same activity
    errors = [awq._scaled_error(weight, options.encoding, scales, inputs) for scales in (ours, theirs)]
    assert errors[0] == pytest.approx(errors[1], rel=0.005)  # neighbouring exponents may be as good
    assert errors[0] < 0.9 * awq._scaled_error(weight, options.encoding, torch.ones(COLUMNS), inputs)
