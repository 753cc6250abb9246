"""What compressed modules compute, and folders that transformers loads by itself."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from edge.compress.methods import rtn
from edge.compress.run import compress
from edge.core.errors import EdgeError
from edge.kernels import reference
from edge.kernels.pack import pack
from edge.models.checkpoint import open_checkpoint
from edge.models.compressed_modules import CompressedLinear, quantize_activations
from edge.models.testing import tiny_model
from edge.models.torch_model import build_model

LOAD = """
import sys
from edge.models.hf_quantizer import install_hook
install_hook()
assert not {"torch", "transformers"} & set(sys.modules), "the hook must stay light"
import torch
from transformers import AutoModelForCausalLM
model = AutoModelForCausalLM.from_pretrained(sys.argv[1], dtype=torch.float32).eval()
with torch.no_grad():
    torch.save(model(torch.tensor([[5, 6, 7, 8]])).logits, sys.argv[2])
model.save_pretrained(sys.argv[3])
"""


@pytest.fixture(scope="module", params=["llama", "mistral", "gpt2", "gemma2"])
def folder(request, tmp_path_factory):
    root = tmp_path_factory.mktemp("compressed")
    return compress(tiny_model(request.param, root / "model"), "int4", root / "out")


def logits(source):
    with torch.no_grad():
        return build_model(open_checkpoint(source))(torch.tensor([[5, 6, 7, 8]])).logits


def test_transformers_loads_and_saves_a_compressed_folder(folder, tmp_path):
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[3]), "HF_HUB_OFFLINE": "1"}
    arguments = [sys.executable, "-c", LOAD, str(folder), str(tmp_path / "logits.pt"), str(tmp_path / "saved")]
    result = subprocess.run(arguments, env=environment, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    torch.testing.assert_close(torch.load(tmp_path / "logits.pt"), logits(folder), atol=1e-6, rtol=0)
    assert torch.equal(logits(tmp_path / "saved"), logits(folder))


def test_activations_are_int8_per_token_and_group():
    x = torch.tensor([[1.0, -127.0, 0.5, 1.5, 3.0, 1.0, 0.0], [0.0, 0.0, 0.0, 0.0, -1.0, 0.0, 0.0]])
    codes, scale = quantize_activations(x, 4)
    assert codes[0].tolist() == [[1, -127, 0, 2], [127, 42, 0, 0]]  # half to even; the short group is filled up
    assert codes[1].tolist() == [[0] * 4, [-127, 0, 0, 0]]
    assert scale[:, :, 0].tolist() == [[1.0, float(np.float32(3) / 127)], [0.0, float(np.float32(1) / 127)]]
    whole, one = quantize_activations(x, 0)
    assert whole.shape == (2, 1, 7) and one.shape == (2, 1, 1)


@pytest.mark.parametrize("group_size", [32, 64, 128, 0])
def test_activation_codes_are_the_kernels_own(group_size):
    x = np.random.default_rng(0).standard_normal((64, 576)).astype(np.float32) * np.float32(7)
    codes, scale = quantize_activations(torch.from_numpy(x), group_size)
    width = group_size or 576
    for group, start in enumerate(range(0, 576, width)):
        expected_codes, expected_scale = reference.quantize_activations(x[:, start : start + width])
        assert np.array_equal(codes[:, group, : expected_codes.shape[1]].numpy(), expected_codes)
        assert np.array_equal(scale[:, group, 0].numpy(), expected_scale)


def linear(activations):
    weight = torch.randn(40, 96, generator=torch.Generator().manual_seed(0))
    tensor = rtn.compress("m", weight, rtn.Options(bits=3, group_size=32, grid="zero_point"))
    return CompressedLinear(40, 96, tensor.encoding, bias=False, activations=activations).load(tensor), tensor


@pytest.mark.parametrize("activations", ["a8", "f32"])
def test_linear_holds_the_tensor_and_computes_what_kernels_compute(activations):
    module, tensor = linear(activations)
    held = module.compressed()
    assert all(np.array_equal(held.parts[part], tensor.parts[part]) for part in tensor.parts)
    x = torch.randn(5, 96, generator=torch.Generator().manual_seed(1))
    expected = reference.linear(pack(tensor), x.numpy(), activations)
    np.testing.assert_allclose(module(x).numpy(), expected, rtol=0, atol=2e-5)


def test_scales_stay_float16_when_the_model_changes_type():
    module, tensor = linear("f32")
    module.to(torch.bfloat16)
    assert np.array_equal(module.scales.numpy(), tensor.parts["scales"])
    assert module(torch.ones(1, 96, dtype=torch.bfloat16)).dtype == torch.bfloat16


def test_tied_head_is_the_embedding(tmp_path):
    source = compress(tiny_model("llama", tmp_path / "model"), "int4", tmp_path / "out")
    model = build_model(open_checkpoint(source))
    assert model.lm_head._source[0] is model.model.embed_tokens
    assert not any(name.startswith("lm_head") for name in model.state_dict())


@pytest.mark.parametrize("damage", ["codes", "scales", "nan"])
def test_damaged_parts_are_refused(tmp_path, damage):
    source = compress(tiny_model("llama", tmp_path / "model"), "int4", tmp_path / "out")
    path = source / "model-00002-of-00004.safetensors"
    tensors = load_file(path)
    name = "model.layers.0.mlp.up_proj"
    if damage == "nan":
        tensors[f"{name}.scales"][0, 0] = float("nan")
    else:
        tensors[f"{name}.{damage}"] = tensors[f"{name}.{damage}"][:-1].clone()
    save_file(tensors, path, metadata={"format": "pt"})
    with pytest.raises(EdgeError, match="up_proj"):
        build_model(open_checkpoint(source))
