"""Every architecture's graph computes what transformers computes, however a text is cut into prefill and decode."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from edge.core.bundle import Bundle, seal
from edge.core.session import SessionOptions
from edge.exporters.onnx.export import codes_equal, write
from edge.models.checkpoint import open_checkpoint
from edge.models.testing import COMMON, FAMILIES, tiny_model
from edge.runtimes.onnx import open as open_session

CONTEXT = 48
TOLERANCE = 1e-4


def tokens_of(length: int, seed: int = 0) -> list[int]:
    return np.random.default_rng(seed).integers(3, COMMON["vocab_size"], length).tolist()


@pytest.mark.parametrize("family", FAMILIES)
def test_logits_are_those_of_transformers(family: str, tmp_path: Path) -> None:
    model = tiny_model(family, tmp_path / "model")
    checkpoint = open_checkpoint(model)
    folder = tmp_path / "bundle"
    folder.mkdir()
    manifest = write(checkpoint, folder, kernels="builtin", context_length=CONTEXT)
    seal(folder, manifest)
    assert codes_equal(checkpoint, folder, manifest)

    reference = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32, attn_implementation="eager").eval()
    tokens = tokens_of(CONTEXT)
    with torch.inference_mode():
        expected = reference(torch.tensor([tokens])).logits[0].numpy()

    session = open_session(Bundle(folder, manifest), SessionOptions(threads=1))
    for length in (1, 2, 7, 33):  # 8 is the sliding window
        found = session.prefill(tokens[:length], all_logits=True)
        np.testing.assert_allclose(found, expected[:length], rtol=0, atol=TOLERANCE)
        np.testing.assert_allclose(session.prefill(tokens[:length])[0], found[-1], rtol=0, atol=TOLERANCE)
        for position in range(length, length + 5):
            found = session.decode(tokens[position])
            np.testing.assert_allclose(found[0], expected[position], rtol=0, atol=TOLERANCE)


def test_a_window_changes_the_logits(tmp_path: Path) -> None:
    """The parity test above would be blind to windows if tiny models didn't react to them."""
    logits = []
    for name, window in (("narrow", 8), ("wide", 64)):
        model = tiny_model("mistral", tmp_path / name, sliding_window=window)
        folder = tmp_path / f"{name}-bundle"
        folder.mkdir()
        manifest = write(open_checkpoint(model), folder, kernels="builtin", context_length=CONTEXT)
        session = open_session(Bundle(folder, manifest), SessionOptions(threads=1))
        logits.append(session.prefill(tokens_of(33), all_logits=True))
    np.testing.assert_allclose(logits[0][:8], logits[1][:8], rtol=0, atol=TOLERANCE)
    assert np.abs(logits[0][-1] - logits[1][-1]).max() > 100 * TOLERANCE
