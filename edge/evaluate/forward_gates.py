"""The parity gate of models that run in one call: encoders and vision models, by their first output."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from edge.core.bundle import Gates, Manifest
from edge.core.errors import EdgeError, GateFailed
from edge.core.session import ForwardSession, Inputs
from edge.core.target import Kernels
from edge.core.weight import Dense

FLOAT_LIMIT = 1e-3
# Of what rounding activations to int8 does to the reference itself: see `rounding_noise`. Ours round as the reference
# does, the runtime's builtin operators by scales of their own.
NOISE_FACTOR: dict[Kernels, float] = {"edge": 3.0, "builtin": 5.0}
DISTURBANCE = 1e-6


class Reference(ForwardSession, Protocol):
    """A session that can also say what it would answer if sums were rounded otherwise."""

    def run_disturbed(self, inputs: Inputs, relative: float) -> NDArray[np.float32]:
        """As `run`, with what every compressed product reads moved by up to `relative` of its largest value."""


@dataclass(frozen=True)
class Parity:
    """relative_error: |candidate - reference| / |reference| over the whole first output, in the Euclidean norm."""

    relative_error: float
    relative_error_limit: float
    max_abs_logit_error: float
    top1_agreement: float

    def gates(self, codes_equal: bool, slow_nodes: Sequence[str]) -> Gates:
        """The record for the manifest, with what other gates found."""
        found = asdict(self) | {"kl_divergence_mean": None, "kl_divergence_limit": None}
        return Gates(**found, codes_equal=codes_equal, slow_nodes=list(slow_nodes))

    def check(self, subject: str) -> None:
        """Raise `GateFailed` where the artefact is further from the reference than its limit."""
        if self.relative_error <= self.relative_error_limit:
            return
        message = (
            f"{subject} doesn't compute what its reference computes: relative error {self.relative_error:.2e}, "
            f"limit {self.relative_error_limit:.2e}; largest error {self.max_abs_logit_error:.3g}"
        )
        raise GateFailed("gate.parity", message, "don't deploy it; report the model, and try the other --kernels")


def parity(
    reference: Reference,
    candidate: ForwardSession,
    inputs: Inputs,
    manifest: Manifest,
    expected: NDArray[np.float32],
) -> Parity:
    """Hold the candidate's first output against `expected`, the reference's, of the same inputs.

    Float weights: 1e-3, as only the order of sums differs. Compressed weights: the reference's own noise is allowed
    for, on the same inputs.
    Raises `EdgeError` for an output of another shape or one that isn't finite.
    """
    found = candidate.run(inputs)
    if found.shape != expected.shape or not np.isfinite(found).all():
        message = f"the artefact gives {list(found.shape)}, the reference {list(expected.shape)}, or values not finite"
        raise EdgeError("gate.output", message, "don't deploy it; report the model")
    limit = FLOAT_LIMIT
    if not all(isinstance(encoding, Dense) for encoding in manifest.encodings.values()):
        limit += NOISE_FACTOR[manifest.kernels] * rounding_noise(reference, inputs, expected)
    agreement = float((found.argmax(-1) == expected.argmax(-1)).mean())
    return Parity(relative_error(expected, found), limit, float(np.abs(found - expected).max()), agreement)


def rounding_noise(reference: Reference, inputs: Inputs, expected: NDArray[np.float32]) -> float:
    """Relative error of the reference from itself where sums are rounded otherwise.

    Next to nothing in float. Where activations are rounded to int8 a difference of 1e-6 flips a few codes, and the
    layers that follow flip more, up to about the error of the rounding itself: no artefact can be held closer.
    """
    return relative_error(expected, reference.run_disturbed(inputs, DISTURBANCE))


def relative_error(reference: NDArray[np.float32], found: NDArray[np.float32]) -> float:
    """|found - reference| / |reference|."""
    return float(np.linalg.norm(found - reference) / max(float(np.linalg.norm(reference)), 1e-30))


def sample_text(manifest: Manifest, tokens: Sequence[int]) -> dict[str, NDArray[np.int64]]:
    """The text inputs of a manifest: token ids [1, n], ones for a mask."""
    ids = np.array([tokens], np.int64)
    return {name: ids if name == "input_ids" else np.ones_like(ids) for name in manifest.inputs}


def sample_source(manifest: Manifest, tokens: Sequence[int], seed: int = 0) -> dict[str, NDArray[np.generic]]:
    """A source for an encoder-decoder: text of these tokens, or noise within the range that features have."""
    if "input_ids" in manifest.inputs:
        return dict(sample_text(manifest, tokens))
    random = np.random.default_rng(seed)
    return {name: random.uniform(-1, 1, wanted.shape).astype(np.float32) for name, wanted in manifest.inputs.items()}


def sample_image(manifest: Manifest) -> dict[str, NDArray[np.float32]]:
    """The input of a vision model, filled with a synthetic image."""
    (name, wanted), *_ = manifest.inputs.items()
    _, channels, height, width = wanted.shape
    return {name: image_noise((channels, height, width))}


def image_noise(shape: tuple[int, int, int], seed: int = 0) -> NDArray[np.float32]:
    """A synthetic image [1, channels, height, width], as a model sees one after normalization: waves and noise.

    The same for a seed.
    """
    channels, height, width = shape
    random = np.random.default_rng(seed)
    y, x = np.mgrid[0:height, 0:width].astype(np.float32) / max(height, width)
    image = np.empty((1, channels, height, width), np.float32)
    for channel in image[0]:
        waves = random.uniform(1, 12, (6, 2)).astype(np.float32)
        phases = random.uniform(0, 6.28, 6).astype(np.float32)
        shapes = sum(np.sin(6.28 * (a * x + b * y) + p) for (a, b), p in zip(waves, phases, strict=True))
        channel[:] = shapes + 0.3 * random.standard_normal(channel.shape, np.float32)
    return image / image.std()
