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
from edge.core.weight import Codebook, GroupMixed, Sparse
from edge.kernels import reference
from edge.kernels.pack import pack
from edge.kernels.testing import EVERY_LAYOUT
from edge.models.checkpoint import open_checkpoint
from edge.models.compressed_modules import CompressedLinear, quantize_activations
from edge.models.testing import encoded_model, random_matrix, tiny_model
from edge.models.torch_model import build_model

LOAD = """
import pathlib, sys
from edge.models.hf_quantizer import install_hook
install_hook()
assert not {"torch", "transformers"} & set(sys.modules), "the hook must stay light"
import torch
from transformers import AutoModelForCausalLM
for folder in map(pathlib.Path, sys.argv[1:]):
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    with torch.no_grad():
        torch.save(model(torch.tensor([[5, 6, 7, 8]])).logits, folder / "logits.pt")
    model.save_pretrained(folder / "saved")
"""


@pytest.fixture(scope="module", params=["llama", "mistral", "gpt2", "gemma2"])
def folder(request, tmp_path_factory):
    root = tmp_path_factory.mktemp("compressed")
    return compress(tiny_model(request.param, root / "model"), "int4", root / "out")


# Each kind of part once; blocks of 16 by 8 have a size that only the data know.
KINDS = [
    Codebook(3, dim=2, group_size=64),
    Codebook(4, entry="int16", table_rows=8, group_size=32),
    GroupMixed(32, high_groups=1, grid="zero_point", scale="second_order"),
    Sparse("16x8", 4, 32),
    Sparse("2:4", 8, 0),
]


def logits(source):
    with torch.no_grad():
        return build_model(open_checkpoint(source))(torch.tensor([[5, 6, 7, 8]])).logits


def load_and_save_with_transformers(*folders):
    """Leaves logits.pt and saved/ in each."""
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[3]), "HF_HUB_OFFLINE": "1"}
    arguments = [sys.executable, "-c", LOAD, *map(str, folders)]
    result = subprocess.run(arguments, env=environment, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr


def test_transformers_loads_and_saves_compressed_folders(folder, tmp_path):
    load_and_save_with_transformers(folder)
    torch.testing.assert_close(torch.load(folder / "logits.pt"), logits(folder), atol=1e-6, rtol=0)
    assert torch.equal(logits(folder / "saved"), logits(folder))


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_transformers_loads_and_saves_every_kind_of_part(family, tmp_path):
    folders = [encoded_model(family, tmp_path / str(encoding), encoding) for encoding in KINDS]
    load_and_save_with_transformers(*folders)
    for folder in folders:
        torch.testing.assert_close(torch.load(folder / "logits.pt"), logits(folder), atol=1e-6, rtol=0)
        assert torch.equal(logits(folder / "saved"), logits(folder))


def test_a_stored_model_holds_what_was_compressed_and_says_its_size(tmp_path):
    for encoding in KINDS:
        folder = encoded_model("llama", tmp_path / str(encoding), encoding)
        checkpoint = open_checkpoint(folder)
        sizes = []
        for seed, (name, _) in enumerate(checkpoint.spec.matrices()):
            written = random_matrix(name, checkpoint.matrix_shape(name), encoding, seed)
            read = checkpoint.matrix(name)
            assert read.encoding == encoding and read.parts.keys() == written.parts.keys()
            assert all(np.array_equal(read.parts[part], written.parts[part]) for part in written.parts)
            sizes.append(written.stored_bytes)
        norms = sum(4 * checkpoint.spec.hidden_size for name in checkpoint.names() if "norm" in name)
        assert checkpoint.stored_bytes == sum(sizes) + norms


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


@pytest.mark.parametrize("encoding", EVERY_LAYOUT, ids=str)
def test_module_of_every_encoding(encoding):
    """Against the definition of int8 activations, group by group; parts keep their types when the model changes its."""
    tensor = random_matrix("weight", (48, 192), encoding)
    module = CompressedLinear(48, 192, encoding, bias=False, activations="a8").load(tensor)
    x = torch.randn(5, 192, generator=torch.Generator().manual_seed(1))
    width = encoding.group_size or 192
    quantized = x.double().numpy().copy()
    for start in range(0, 192, width):
        codes, scale = reference.quantize_activations(x[:, start : start + width].numpy())
        quantized[:, start : start + width] = codes * scale.astype(np.float64)[:, None]
    expected = quantized @ tensor.dequantize().astype(np.float64).T
    np.testing.assert_allclose(module(x).numpy(), expected, rtol=0, atol=1e-5 * np.abs(expected).max())
    for changed in (module.half(), module.to(torch.bfloat16), module.to(torch.float64)):
        held = changed.compressed()
        assert all(np.array_equal(held.parts[part], tensor.parts[part]) for part in tensor.parts)


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


def replaced(folder, change):
    """Change the stored parts of one matrix; the files keep their names."""
    for path in folder.glob("*.safetensors"):
        tensors = load_file(path)
        for name in [name for name in tensors if ".0.mlp.up_proj." in name]:
            tensors[name] = change(name.rpartition(".")[2], tensors[name]).contiguous()
        save_file(tensors, path, metadata={"format": "pt"})


DAMAGE = {
    "tables of -128": (KINDS[0], lambda part, x: torch.full_like(x, -128) if part == "tables" else x, "-128"),
    "another type": (KINDS[1], lambda part, x: x.to(torch.int8) if part == "tables" else x, "'tables' is int8"),
    "more high groups": (KINDS[2], lambda part, x: x | 3 if part == "high" else x, "1 groups at 4 bits"),
    "less high codes": (KINDS[2], lambda part, x: x[:, :-1] if part == "high_codes" else x, "'high_codes' is uint8"),
    "infinite row scales": (KINDS[2], lambda part, x: x * torch.inf if part == "row_scales" else x, "infinite"),
    "a block too few": (KINDS[3], lambda part, x: x[:-1] if part == "codes" else x, "different numbers of weights"),
    "another mask": (KINDS[3], lambda part, x: ~x if part == "mask" else x, "different numbers of weights"),
    "not 2:4": (KINDS[4], lambda part, x: x & 0x3F | 0x40 if part == "mask" else x, "up_proj"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_damaged_parts_of_every_kind_are_refused(tmp_path, damage):
    encoding, change, message = DAMAGE[damage]
    folder = encoded_model("llama", tmp_path / "model", encoding)
    replaced(folder, change)
    with pytest.raises(EdgeError, match=message) as caught:
        open_checkpoint(folder).matrix("model.layers.0.mlp.up_proj.weight")
    assert "up_proj" in caught.value.message and caught.value.hint


def test_encodings_that_do_not_fit_the_model_are_refused(tmp_path):
    folder = encoded_model("llama", tmp_path / "model", GroupMixed(32, 2))
    config = (folder / "config.json").read_text()
    for old, new, message in [
        ('"group_size": 32', '"group_size": 33', "group of 33"),
        ('"high_groups": 2', '"high_groups": 9', "9 groups"),
        ('"group_mixed"', '"fibonacci"', "fibonacci"),
        ('"model.embed_tokens.weight": {', '"model.norm.weight": {', "no matrix"),
    ]:
        (folder / "config.json").write_text(config.replace(old, new))
        with pytest.raises(EdgeError, match=message) as caught:
            open_checkpoint(folder)
        assert caught.value.hint
