"""Opening checkpoints: what is right is read exactly, what is wrong is one error with a hint."""

import json
import shutil
import struct

import pytest
import torch
from safetensors.torch import load_file, save_file

from edge.core.errors import EdgeError
from edge.models.checkpoint import open_checkpoint
from edge.models.testing import tiny_model
from edge.models.torch_model import build_model


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    return tiny_model("llama", tmp_path_factory.mktemp("original") / "llama")


@pytest.fixture
def folder(original, tmp_path):
    return shutil.copytree(original, tmp_path / "llama")


def change(folder, edit):
    """Rewrite the weights after `edit(tensors)`."""
    path = folder / "model.safetensors"
    tensors = load_file(path)
    edit(tensors)
    save_file(tensors, path, metadata={"format": "pt"})


def refused(source, code):
    with pytest.raises(EdgeError) as caught:
        build_model(open_checkpoint(source))
    assert caught.value.code == code
    assert caught.value.hint and "\n" not in str(caught.value)
    return caught.value


NORM, UP = "model.norm.weight", "model.layers.0.mlp.up_proj.weight"


def test_tensors_are_exact_in_every_stored_type(folder, tmp_path):
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        path = tiny_model("llama", tmp_path / str(dtype), dtype=dtype)
        checkpoint, expected = open_checkpoint(path), load_file(path / "model.safetensors")
        assert set(checkpoint.names()) == set(expected)
        for name, tensor in expected.items():
            assert checkpoint.tensor(name).dtype == dtype and torch.equal(checkpoint.tensor(name), tensor)
        assert (checkpoint.matrix(UP).dequantize() == expected[UP].float().numpy()).all()
        assert checkpoint.stored_bytes == sum(t.nbytes for t in expected.values())


def test_released_memory_is_read_again(folder):
    checkpoint = open_checkpoint(folder)
    tensor = checkpoint.tensor(UP)
    before = tensor.clone()
    checkpoint.release()
    assert torch.equal(tensor, before)


def test_shards_are_one_checkpoint(folder):
    tensors = load_file(folder / "model.safetensors")
    digest = open_checkpoint(folder).sha256
    names = sorted(tensors)
    parts = {"a.safetensors": names[:5], "b.safetensors": names[5:]}
    for file, chosen in parts.items():
        save_file({name: tensors[name] for name in chosen}, folder / file)
    (folder / "model.safetensors").unlink()
    weight_map = {name: file for file, chosen in parts.items() for name in chosen}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    checkpoint = open_checkpoint(folder)
    assert all(torch.equal(checkpoint.tensor(name), tensors[name]) for name in names)
    assert checkpoint.sha256 != digest
    (folder / "b.safetensors").unlink()
    refused(folder, "checkpoint.missing_file")


def test_generation_tokens_come_from_the_generation_config(folder):
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [2, 7], "bos_token_id": 1}))
    assert open_checkpoint(folder).eos_token_ids == [2, 7]


def test_unknown_architecture_names_the_nearest(folder):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "model_type": "lama"}))
    assert "did you mean 'llama'" in refused(folder, "checkpoint.architecture").hint


def test_missing_tensor(folder):
    change(folder, lambda tensors: tensors.pop(NORM))
    assert NORM in refused(folder, "checkpoint.missing_tensor").message


def test_wrong_shape_is_seen_at_open(folder):
    change(folder, lambda tensors: tensors.update({UP: torch.zeros(95, 64)}))
    with pytest.raises(EdgeError, match=r"\[95, 64\].*\[96, 64\]"):
        open_checkpoint(folder)


def test_foreign_tensor_is_not_dropped(folder):
    change(folder, lambda tensors: tensors.update({"model.layers.0.self_attn.q_proj.bias": torch.zeros(64)}))
    assert "q_proj.bias" in refused(folder, "checkpoint.foreign_tensor").message


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_weights_that_are_not_finite(folder, value):
    change(folder, lambda tensors: tensors[UP][3].fill_(value))
    assert UP in refused(folder, "checkpoint.not_finite").message
    with pytest.raises(EdgeError):
        open_checkpoint(folder).matrix(UP)


def test_pickle_is_refused_with_the_reason(folder, tmp_path):
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(b"anything")
    assert "runs whatever code" in refused(folder, "checkpoint.pickle").message
    (tmp_path / "weights.pt").write_bytes(b"anything")
    refused(tmp_path / "weights.pt", "checkpoint.pickle")


@pytest.mark.parametrize("keep", [0, 5, 200, -1])
def test_truncated_safetensors(folder, keep):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:keep])
    refused(folder, "checkpoint.corrupt")


def header_of(path):
    raw = path.read_bytes()
    length = struct.unpack("<Q", raw[:8])[0]
    return json.loads(raw[8 : 8 + length]), raw[8 + length :]


@pytest.mark.parametrize(
    "damage",
    [
        lambda entry: entry.update(shape=[1 << 40]),
        lambda entry: entry.update(data_offsets=[0, 1 << 50]),
        lambda entry: entry.update(data_offsets=[-4, 252]),
        lambda entry: entry.update(shape=[-64]),
        lambda entry: entry.pop("dtype"),
    ],
)
def test_headers_that_do_not_add_up(folder, damage):
    path = folder / "model.safetensors"
    header, data = header_of(path)
    damage(header[NORM])
    raw = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(raw)) + raw + data)
    refused(folder, "checkpoint.corrupt")


def test_garbage_header(folder):
    path = folder / "model.safetensors"
    raw = bytearray(path.read_bytes())
    raw[8:20] = b"\xff" * 12
    path.write_bytes(raw)
    refused(folder, "checkpoint.corrupt")


def test_sources_that_are_no_checkpoints(tmp_path, monkeypatch):
    refused(tmp_path, "checkpoint.no_config")
    refused(tmp_path / "nothing", "checkpoint.missing")
    (tmp_path / "config.json").write_text("{broken")
    refused(tmp_path, "checkpoint.corrupt")


def test_hub_id_without_a_network(monkeypatch):
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    refused("nobody-at-all/no-such-model", "checkpoint.hub")


def test_other_tools_quantization_is_refused(folder):
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "awq", "bits": 4}
    (folder / "config.json").write_text(json.dumps(config))
    refused(folder, "checkpoint.quantized")
