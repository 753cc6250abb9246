"""The last look before a model is timed: it must say on this machine what its original said at export."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge.core.bundle import Bundle
from edge.core.errors import GateFailed
from edge.core.measurement import Parity
from edge.evaluate.divergence import Divergence
from edge.evaluate.gates import kl_limit

SAMPLES = "samples.safetensors"
OUTPUT = "output"
ONE_IN_ONE_CALL = ("encoder", "vision")


def held(session: Any, bundle: Bundle) -> Parity | None:
    """The opened session against the bundle's samples and the export gate's own limit; None without samples."""
    if SAMPLES not in bundle.manifest.files:
        return None
    from safetensors.numpy import load_file

    samples = load_file(bundle.path / SAMPLES)
    if bundle.manifest.task in ONE_IN_ONE_CALL:
        return _held_output(session, bundle, samples)
    tokens, logits = samples.pop("tokens"), samples.pop("logits")
    if samples:
        session.encode(samples)
    found = session.prefill(tokens.tolist())
    if found.shape != logits[-1:].shape or not np.isfinite(found).all():
        return Parity(float("inf"), limit_of(bundle), False)
    divergence = Divergence()
    divergence.add(logits[-1:], found)
    return Parity(divergence.kl_mean, limit_of(bundle), divergence.top1_agreement == 1)


def check(parity: Parity, subject: str) -> None:
    """Raise `GateFailed` for a model that doesn't say what its original said: its time would mean nothing."""
    pairs = {
        "KL divergence": (parity.kl_divergence, parity.kl_divergence_limit),
        "relative error": (parity.relative_error, parity.relative_error_limit),
    }
    for name, (found, limit) in pairs.items():
        if found is not None and limit is not None and not found <= limit:  # nor what is not a number
            message = f"{subject} doesn't say here what it said at export: {name} {found:.2e}, limit {limit:.2e}"
            raise GateFailed("profile.parity", message, "don't time or deploy it; export it again, report what stays")


def _held_output(session: Any, bundle: Bundle, samples: dict[str, NDArray[Any]]) -> Parity:
    gates = bundle.manifest.gates
    expected = samples.pop(OUTPUT)
    found = session.run(samples)
    error = float("inf")
    if found.shape == expected.shape:
        error = float(np.linalg.norm(found - expected) / max(float(np.linalg.norm(expected)), 1e-30))
    same = found.shape == expected.shape and bool((found.argmax(-1) == expected.argmax(-1)).all())
    return Parity(None, None, same, error, gates.relative_error_limit if gates else None)


def limit_of(bundle: Bundle) -> float:
    """The KL divergence in nats that the export gate allowed it; what the gate would allow where it wasn't run."""
    manifest = bundle.manifest
    if manifest.gates is not None and manifest.gates.kl_divergence_limit is not None:
        return manifest.gates.kl_divergence_limit
    return kl_limit(manifest.encodings.values(), manifest.kernels)
