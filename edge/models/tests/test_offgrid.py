import pytest
import torch

from edge.core.errors import EdgeError
from edge.models.checkpoint import open_checkpoint
from edge.models.offgrid import take_off_grid
from edge.models.testing import tiny_model
from edge.models.torch_model import build_model


def test_taking_a_model_off_its_grid_moves_weights_but_not_logits(tmp_path):
    before = open_checkpoint(tiny_model("llama", tmp_path / "model"))
    after = open_checkpoint(take_off_grid(before, tmp_path / "moved"))
    tokens = torch.arange(3, 40)[None]
    with torch.inference_mode():
        expected, found = build_model(before)(tokens).logits, build_model(after)(tokens).logits
    assert torch.allclose(expected, found, atol=1e-4)
    for matrix in ("self_attn.q_proj", "self_attn.v_proj", "self_attn.o_proj", "mlp.up_proj", "mlp.down_proj"):
        name = f"model.layers.0.{matrix}.weight"
        ratio = after.tensor(name) / before.tensor(name)
        assert ratio.std() > 0.05


def test_layers_of_another_structure_are_refused(tmp_path):
    with pytest.raises(EdgeError, match="structure"):
        take_off_grid(open_checkpoint(tiny_model("gpt2", tmp_path / "model")), tmp_path / "moved")
    assert not (tmp_path / "moved").exists()
