"""A model with a head untied by a rotation is exported: the gates hold it against PyTorch."""

from __future__ import annotations

from pathlib import Path

import edge
from edge.compress.run import compress
from edge.core.recipe import Recipe, Rule, Step
from edge.models.testing import tiny_model


def test_an_untied_model_passes_the_gates(tmp_path: Path) -> None:
    head = Rule(module="head", options={"bits": 8})
    steps = [Step("rotate", {"untie": True}), Step("rtn", {"bits": 4, "group_size": 32}, [head])]
    small = compress(tiny_model("llama", tmp_path / "model"), Recipe(steps), tmp_path / "small")
    bundle = edge.export(small, tmp_path / "bundle", context_length=64)
    assert bundle.manifest.encodings["lm_head.weight"].bits == 8
    assert bundle.manifest.encodings["model.embed_tokens.weight"].bits == 4
    gates = bundle.manifest.gates
    assert gates.codes_equal and gates.kl_divergence_mean <= gates.kl_divergence_limit
