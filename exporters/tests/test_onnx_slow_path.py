"""The slow-path gate names what is slower than float32, and nothing else."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from edge.compress.run import compress
from edge.core.recipe import Recipe, Step
from edge.exporters.onnx.export import slow_nodes, write
from edge.models.checkpoint import open_checkpoint
from edge.models.testing import tiny_model


def slow(folder: Path, bits: int, activations: Any) -> list[str]:
    """Slow nodes of a model that is large enough for the clock."""
    sizes = {"hidden_size": 512, "intermediate_size": 1024, "head_dim": 64, "num_attention_heads": 8}
    model = tiny_model("llama", folder / "model", **sizes)
    recipe = Recipe([Step("rtn", {"bits": bits, "group_size": 64, "search": False})], activations=activations)
    checkpoint = open_checkpoint(compress(model, recipe, folder / "small"))
    bundle = folder / "bundle"
    bundle.mkdir()
    return slow_nodes(bundle, write(checkpoint, bundle, kernels="builtin", context_length=32))


def test_a_cliff_is_reported_by_layer_name(tmp_path: Path) -> None:
    """ONNX Runtime has no fast 2-bit product for float activations: it dequantizes the matrix at every call."""
    rows = slow(tmp_path, 2, "f32")
    for name in ("self_attn.qkv_proj", "mlp.gate_up_proj", "mlp.down_proj"):
        found = [row for row in rows if row.partition(":")[0] == f"model.layers.0.{name} and 1 alike"]
        # Of these alone: on a busy machine chance may report a small operator as well.
        assert any("MatMulNBits" in row and "decode" in row for row in found)


def test_a_fast_operator_is_not_reported(tmp_path: Path) -> None:
    rows = slow(tmp_path, 4, "a8")
    assert [row for row in rows if "mlp" in row and "decode" in row] == []
