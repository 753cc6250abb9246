"""What the fused operators compute around the matrix products, in NumPy: the definition, bit by bit.

Everything is float32 and rounded once an operation. Sums over a row go to 16 partial sums (element k to sum k mod 16,
ascending), which are then added pairwise: (l, l + 8), (l, l + 4), (l, l + 2), (l, l + 1).
"""

from __future__ import annotations

from typing import Literal

import numpy as np

from edge.kernels import reference
from edge.kernels.pack import Bytes
from edge.kernels.reference import Activations, Floats

LANES = 16
Norm = Literal["none", "rms", "layer"]
Epilogue = Literal["none", "gelu", "gelu_tanh", "silu_gated", "gelu_gated", "gelu_tanh_gated"]
F32 = np.float32
ERF = (
    *(7.853861353153693e-5, -8.010193625184903e-4, 5.188327685732524e-3, -2.685381193529856e-2),
    *(1.128358514861418e-1, -3.761262582423300e-1, 1.128379165726710),
)


def fused_linear(
    packed: Bytes,
    x: Floats,
    activations: Activations = "a8",
    bias: Floats | None = None,
    *,
    norm: Norm = "none",
    norm_weight: Floats | None = None,
    norm_bias: Floats | None = None,
    epsilon: float = 1e-5,
    skip: Floats | None = None,
    epilogue: Epilogue = "none",
) -> Floats:
    """epilogue(norm(x + skip) times the matrix transposed + bias): [tokens, rows], or half the rows when gated."""
    y = x if skip is None else x + skip
    if norm_weight is not None:
        y = rms_norm(y, norm_weight, epsilon) if norm == "rms" else layer_norm(y, norm_weight, norm_bias, epsilon)
    out = reference.linear(packed, y, activations, bias)
    if epilogue == "none":
        return out
    activation = {"silu": silu, "gelu": gelu, "gelu_tanh": gelu_tanh}[epilogue.removesuffix("_gated")]
    if not epilogue.endswith("_gated"):
        return activation(out)
    gate, up = np.split(out, 2, axis=-1)
    return activation(gate) * up


def lane_sum(x: Floats) -> Floats:
    """Sum over the last axis in the order that the module's text states; missing lanes add +0."""
    short = -x.shape[-1] % LANES
    padded = np.pad(x, [(0, 0)] * (x.ndim - 1) + [(0, short)]).reshape(*x.shape[:-1], -1, LANES)
    total = np.zeros((*x.shape[:-1], LANES), F32)
    for step in range(padded.shape[-2]):
        total = total + padded[..., step, :]
    for width in (8, 4, 2, 1):
        total = total[..., :width] + total[..., width:]
    return total[..., 0]


def rms_norm(x: Floats, weight: Floats, epsilon: float) -> Floats:
    """(x * inverse) * weight, inverse = 1 / sqrt(mean(x^2) + epsilon)."""
    return (x * _inverse_deviation(x, epsilon)) * weight


def layer_norm(x: Floats, weight: Floats, bias: Floats | None, epsilon: float) -> Floats:
    """(centred * inverse) * weight + bias, centred = x - mean(x), inverse = 1 / sqrt(mean(centred^2) + epsilon)."""
    centred = x - (lane_sum(x) / F32(x.shape[-1]))[..., None]
    y = (centred * _inverse_deviation(centred, epsilon)) * weight
    return y if bias is None else y + bias


def _inverse_deviation(x: Floats, epsilon: float) -> Floats:
    with np.errstate(over="ignore", invalid="ignore"):
        mean = lane_sum(x * x) / F32(x.shape[-1])
        inverse: Floats = F32(1) / np.sqrt(mean + F32(epsilon))
    return inverse[..., None]


def exp(x: Floats) -> Floats:
    """x = n ln 2 + r; a polynomial in r (Cephes' expf) times 2^n. 0 below -87, infinity above 88.73."""
    x = np.minimum(np.maximum(x, F32(-87)), F32(89))
    n = np.rint(x * F32(1.44269504))
    r = (x - n * F32(0.693359375)) - n * F32(-2.12194440e-4)
    y = polynomial(
        r, 1.9875691500e-4, 1.3981999507e-3, 8.3334519073e-3, 4.1665795894e-2, 1.6666665459e-1, 5.0000001201e-1
    )
    y = (y * (r * r) + r) + F32(1)
    half_power: Floats = np.where(n > -126, np.ldexp(F32(1), np.nan_to_num(n - 1).astype(np.int32)), F32(0))
    with np.errstate(over="ignore"):
        return (y + y) * half_power


def polynomial(x: Floats, *factors: float) -> Floats:
    """Horner's scheme, the highest power first; every product and sum rounded."""
    y = np.full_like(x, factors[0])
    for factor in factors[1:]:
        y = y * x + F32(factor)
    return y


def tanh(x: Floats) -> Floats:
    """Cephes' tanhf: an odd polynomial below 0.625, else 1 - 2 / (exp(2 |x|) + 1)."""
    size, square = np.abs(x), x * x
    y = polynomial(square, -5.70498872745e-3, 2.06390887954e-2, -5.37397155531e-2, 1.33314422036e-1, -3.33332819422e-1)
    near = (y * square) * x + x
    far = F32(1) - F32(2) / (exp(size + size) + F32(1))
    return np.where(size < F32(0.625), near, np.where(x < 0, F32(0) - far, far))


def silu(x: Floats) -> Floats:
    """x / (1 + exp(-x))."""
    return x / (F32(1) + exp(F32(0) - x))


def gelu_tanh(x: Floats) -> Floats:
    """0.5 x (1 + tanh(u)) = x / (1 + exp(-2 u)), u = sqrt(2 / pi) (x + 0.044715 x^3)."""
    u = x * polynomial(x * x, -0.0713548163, -1.59576912)  # -2 u
    return x / (F32(1) + exp(u))


def gelu(x: Floats) -> Floats:
    """0.5 x (1 + erf(z)), z = x / sqrt 2: Cephes' erff below |z| = 1, else max(x, 0) - |x| q with Abramowitz and
    Stegun's 7.1.26 for q = 0.5 (1 - erf(|z|))."""
    size, z, half = np.abs(x), x * F32(0.70710678), x * F32(0.5)
    with np.errstate(over="ignore", invalid="ignore"):  # not used where that happens
        near = half + half * (polynomial(z * z, *ERF) * z)
    t = F32(1) / (F32(1) + F32(0.231641888) * size)
    q = polynomial(t, 0.5307027145, -0.7265760135, 0.7107068705, -0.142248368, 0.127414796)
    q = (q * t) * exp((size * size) * F32(-0.5))
    far = np.maximum(x, F32(0)) - size * q
    return np.where(np.abs(z) < F32(1), near, far)


def fma(a: Floats, b: Floats, c: Floats) -> Floats:
    """a * b + c, rounded once.

    The product of two float32 is exact in float64. Their sum with c is rounded to odd there, so that the rounding to
    float32 can't fall on a tie that the first one made.
    """
    product = a.astype(np.float64) * b
    total = product + c
    with np.errstate(invalid="ignore"):
        rest = total - product
        error = (product - (total - rest)) + (c - rest)  # exactly what `total` lost
        move = (np.nan_to_num(error) != 0) & (total.view(np.int64) & 1 == 0)
        odd = np.where(move, np.nextafter(total, np.copysign(np.inf, error)), total)
    return odd.astype(F32)
