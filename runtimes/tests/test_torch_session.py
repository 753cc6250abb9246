"""The reference session: transformers with its own cache, one sequence at a time."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from edge.core.errors import UsageError
from edge.core.plugins import RUNTIMES
from edge.core.session import SessionOptions
from edge.models.checkpoint import open_checkpoint
from edge.models.testing import tiny_model
from edge.runtimes.torch import open_folder

CONTEXT = 24
TOKENS = np.random.default_rng(3).integers(3, 160, CONTEXT).tolist()


@pytest.mark.parametrize("family", ["llama", "mistral", "gpt2"])
def test_prefill_and_decode_are_one_forward_pass(family: str, tmp_path: Path) -> None:
    model = tiny_model(family, tmp_path)
    with torch.inference_mode():
        reference = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).eval()
        expected = reference(torch.tensor([TOKENS])).logits[0].numpy()
    session = open_folder(open_checkpoint(model), CONTEXT)
    np.testing.assert_allclose(session.prefill(TOKENS, all_logits=True), expected, rtol=0, atol=1e-5)
    for start in (1, 12):  # a prefill forgets what was before
        np.testing.assert_allclose(session.prefill(TOKENS[:start]), expected[start - 1 : start], rtol=0, atol=1e-5)
        for position in range(start, CONTEXT):
            found = session.decode(TOKENS[position])
            np.testing.assert_allclose(found, expected[position : position + 1], rtol=0, atol=1e-5)
    session.prefill(TOKENS[:3])  # a conversation is one prompt
    np.testing.assert_allclose(session.extend(TOKENS[3:9], all_logits=True), expected[3:9], rtol=0, atol=1e-5)
    session.decode(TOKENS[9])
    np.testing.assert_allclose(session.extend(TOKENS[10:]), expected[-1:], rtol=0, atol=1e-5)
    with pytest.raises(UsageError, match="holds 24"):
        session.decode(5)
    assert session.end_profile() == []
    session.close()


def test_a_bundle_is_refused_with_the_reason() -> None:
    with pytest.raises(UsageError, match="checkpoints, not bundles"):
        RUNTIMES.load("torch").open(SimpleNamespace(path="bundle"), SessionOptions())
