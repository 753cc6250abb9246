"""AutoRound: learns for every weight whether to round up or down, and for every group how much of its range to clip.

Cheng, Zhang, Shen, Cai, He, Lv, Liu: "Optimize Weight Rounding via Signed Gradient Descent for the Quantization of
LLMs", Findings of EMNLP 2024, arXiv:2309.05516.

w = s (clip(round(W / s + z + V), 0, 2^bits - 1) - z) with an offset V in [-0.5, 0.5] per weight and, per group,
s = (max(W) alpha - min(W) beta) / (2^bits - 1), alpha and beta in [0, 1] (equations 3 and 4); grids without zero points
have alpha alone. All matrices of a decoder layer are tuned together: the squared error between what leaves the layer
and what left it in the original model falls by signed gradient descent, p <- p - lr sign(gradient) (equation 6), with
straight-through gradients of rounding and lr falling linearly from 1 / steps to 0. The layer's inputs come from layers
that are compressed already. The last step's values are taken, where the authors' code takes those of the best
mini-batch; a matrix that is tuned by itself, whose loss has no chance in it, takes the best step's.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Literal

import torch
from torch.func import functional_call

from edge.compress.block import Block
from edge.compress.grid import FittedGrid, fit_grid, grouped, range_grid, stored_scale
from edge.compress.method import AffineOptions, Inputs
from edge.compress.straight_through import straight
from edge.core.errors import UsageError
from edge.core.weight import CompressedTensor

CALIBRATED = True


class Options(AffineOptions, frozen=True, forbid_unknown_fields=True):
    """steps: of the descent. batch: calibration windows that a step sees. learning_rate: at first; 0 means 1 / steps.

    search: start from ranges that are clipped for the least squared error, which pays at 2 bits.
    arithmetic: of the layer's products while tuning; bfloat16 is faster on processors that have it. device: where the
    layers are tuned; the rest of the pipeline stays on the CPU.
    """

    steps: int = 200
    batch: int = 8
    learning_rate: float = 0.0
    search: bool = False
    arithmetic: Literal["float32", "bfloat16"] = "float32"
    device: Literal["cpu", "cuda"] = "cpu"

    def __post_init__(self) -> None:
        if self.steps < 1 or self.batch < 1 or not 0 <= self.learning_rate <= 1:
            raise ValueError("`steps` and `batch` are at least 1, `learning_rate` lies in [0, 1]")


def compress_block(block: Block, options: Mapping[str, Options]) -> dict[str, CompressedTensor]:
    """Tune the matrices of a decoder layer against the output that it had in the original model."""
    settings = next(iter(options.values()))
    linears, inputs, targets = block.linears(), block.states.states, block.states.originals
    if targets is None:
        raise RuntimeError("a method with compress_block gets the original states")
    module = block.module.to(settings.device)
    tuned = {name: _Rounding(block.matrix(linears[name]), chosen) for name, chosen in options.items()}
    random = torch.Generator().manual_seed(block.seed * 100_003 + block.index)

    def loss() -> torch.Tensor:
        windows = torch.randperm(len(inputs), generator=random)[: settings.batch].tolist()
        weights = {}
        for name, rounding in tuned.items():
            dense = rounding.dequantized()
            weights[name.removeprefix(f"{block.layer.name}.")] = dense.T if linears[name].transposed else dense
        states, wanted = (torch.cat([of[window] for window in windows]).to(settings.device) for of in (inputs, targets))
        with torch.autocast(settings.device, torch.bfloat16, enabled=settings.arithmetic == "bfloat16"):
            outputs = block.states.run(block.index, _WithWeights(module, weights), states)
        return (outputs.float() - wanted).square().mean()

    _descend(list(tuned.values()), settings, loss)
    module.to("cpu")
    return {name: rounding.tensor(name) for name, rounding in tuned.items()}


def compress(name: str, weight: torch.Tensor, options: Options, inputs: Inputs | None = None) -> CompressedTensor:
    """Compress one float32 matrix [out_features, in_features] by itself, against the outputs that X^T X stands for."""
    if inputs is None:
        raise UsageError("autoround.inputs", f"{name}: autoround needs calibration inputs", "give a calibration text")
    rounding = _Rounding(weight, options)

    def loss() -> torch.Tensor:
        difference = rounding.dequantized() - weight
        return ((difference @ inputs.hessian) * difference).sum()

    _descend([rounding], options, loss, keep_best=True)
    return rounding.tensor(name)


def _descend(
    tuned: list[_Rounding], options: Options, loss: Callable[[], torch.Tensor], *, keep_best: bool = False
) -> None:
    """Signed gradient descent on the parameters of `tuned`. keep_best: of all steps, where no chance is in the loss."""
    parameters = [parameter for rounding in tuned for parameter in rounding.parameters()]
    first, least, best = options.learning_rate or 1 / options.steps, torch.inf, []
    for step in range(options.steps + keep_best):
        with torch.enable_grad():
            now = loss()
            gradients = torch.autograd.grad(now, parameters)
        if keep_best and now.item() < least:
            least, best = now.item(), [parameter.detach().clone() for parameter in parameters]
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter.data.sub_(gradient.sign_(), alpha=first * (1 - step / options.steps))
        for rounding in tuned:
            rounding.clamp()
    for parameter, values in zip(parameters, best, strict=keep_best):
        parameter.data.copy_(values)


class _Rounding:
    """The parameters of a matrix [rows, columns]: V by weight, alpha and beta by group."""

    def __init__(self, weight: torch.Tensor, options: Options) -> None:
        self.encoding, self.columns = options.encoding, weight.shape[1]
        self.groups = grouped(weight.contiguous(), self.encoding)
        self.widest = 1.0
        if options.search:
            grid, self.widest = fit_grid(weight.contiguous().cpu(), self.encoding), 1.5
            scale, zero = grid.scales.to(weight.device), grid.zeros.to(weight.device)
        else:
            scale, zero = range_grid(self.groups, self.encoding)
        top = (1 << self.encoding.bits) - 1
        self.low, self.high, self.zero = -zero * scale, (top - zero) * scale, zero
        if self.encoding.grid == "zero_point" and not options.search:  # the exact ends, before the zero was rounded
            self.low, self.high = self.groups.amin(-1).clamp(max=0), self.groups.amax(-1).clamp(min=0)
        self.offsets = torch.zeros_like(self.groups, requires_grad=True)
        self.alpha, self.beta = (torch.ones_like(scale, requires_grad=True) for _ in range(2))

    def parameters(self) -> list[torch.Tensor]:
        ends = [self.alpha, self.beta] if self.encoding.grid == "zero_point" else [self.alpha]
        return [self.offsets, *ends]

    def clamp(self) -> None:
        """Back into the intervals of the paper. With `search` a range may grow again."""
        self.offsets.data.clamp_(-0.5, 0.5)
        self.alpha.data.clamp_(0, self.widest)
        self.beta.data.clamp_(0, self.widest)

    def grid(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Scales as stored and zeros [rows, groups], differentiable as if neither was rounded."""
        top = (1 << self.encoding.bits) - 1
        if self.encoding.grid != "zero_point":
            scale = (self.high - self.low) * self.alpha / top
            return straight(scale, stored_scale(scale, self.encoding)), self.zero
        low = self.low * self.beta
        scale = (self.high * self.alpha - low) / top
        scale = straight(scale, stored_scale(scale, self.encoding))
        zero = -low / torch.where(scale == 0, 1, scale)
        return scale, straight(zero, zero.round().clamp(0, top))

    def dequantized(self) -> torch.Tensor:
        """The rounded matrix [rows, columns], differentiable by the parameters."""
        scale, zero = self.grid()
        levels = _Dequantize.apply(self.offsets, scale, zero, self.groups, self.encoding.bits)
        return levels.flatten(1)[:, : self.columns]

    @torch.no_grad()
    def tensor(self, name: str) -> CompressedTensor:
        scale, zero = self.grid()
        codes, _, _ = _codes(self.groups, self.offsets, scale, zero, self.encoding.bits)
        grid = FittedGrid(self.encoding, scale.cpu().contiguous(), zero.cpu().contiguous())
        return grid.tensor(name, codes.flatten(1)[:, : self.columns].to("cpu", torch.uint8))


class _Dequantize(torch.autograd.Function):
    """scale * (code - zero) of groups [rows, groups, size], straight through the rounding but not through the clipping.

    Keeps nothing of the size of the matrix but its arguments: the codes are made again for the gradient.
    """

    @staticmethod
    def forward(
        ctx: Any, offsets: torch.Tensor, scale: torch.Tensor, zero: torch.Tensor, groups: torch.Tensor, bits: int
    ) -> torch.Tensor:
        ctx.save_for_backward(offsets, scale, zero, groups)
        ctx.bits = bits
        codes, _, _ = _codes(groups, offsets, scale, zero, bits)
        return codes.sub_(zero[..., None]).mul_(scale[..., None])

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:  # type: ignore[override]
        offsets, scale, zero, groups = ctx.saved_tensors
        codes, inside, plain = _codes(groups, offsets, scale, zero, ctx.bits)
        by_scale = codes.sub_(zero[..., None]).sub_(plain.mul_(inside)).mul_(gradient).sum(-1)
        outside = (gradient * ~inside).sum(-1)
        return gradient * inside * scale[..., None], by_scale, -scale * outside, None, None


def _codes(
    groups: torch.Tensor, offsets: torch.Tensor, scale: torch.Tensor, zero: torch.Tensor, bits: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Codes, which of them needed no clipping, and W / scale."""
    below = zero.floor()[..., None]
    plain = groups * torch.where(scale == 0, 0, 1 / scale)[..., None]
    codes = (plain + offsets).add_(zero[..., None] - below).round_().add_(below)
    top = (1 << bits) - 1
    inside = (codes >= 0) & (codes <= top)
    return codes.clamp_(0, top), inside, plain


class _WithWeights:
    """A module called with other weights than its own."""

    def __init__(self, module: torch.nn.Module, weights: dict[str, torch.Tensor]) -> None:
        self.module, self.weights = module, weights

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return functional_call(self.module, self.weights, args, kwargs)
