"""Models without an adapter: transformers' class says what there is to compress, and loads what was compressed."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

import edge  # registers the quantizer
from edge.core.errors import EdgeError
from edge.models.any_model import model_class
from edge.models.checkpoint import open_checkpoint
from edge.models.spec import ModuleSpec
from edge.models.testing import CLASSES, tiny_any_model
from edge.models.torch_model import build_model

TASKS = {
    "ForConditionalGeneration": "encoder_decoder",
    "MTModel": "encoder_decoder",
    "ForImageClassification": "vision",
}


def task_of(class_name):
    return next((task for ending, task in TASKS.items() if class_name.endswith(ending)), "encoder")


def inputs_of(config, task):
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(3, 150, (1, 9), generator=generator)
    if task == "vision":
        return {"pixel_values": torch.randn(1, 3, config.image_size, config.image_size, generator=generator)}
    if config.model_type == "whisper":
        features = torch.randn(1, config.num_mel_bins, 2 * config.max_source_positions, generator=generator)
        return {"input_features": features, "decoder_input_ids": ids}
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    return inputs | ({"decoder_input_ids": ids} if task == "encoder_decoder" else {})


def first_output(model, task):
    with torch.inference_mode():
        return model.eval()(**inputs_of(model.config, task))[0]


def distance(found, expected):
    return float((found - expected).norm() / expected.norm())


@pytest.mark.parametrize("class_name", CLASSES)
def test_the_reference_is_transformers_model(class_name, tmp_path):
    checkpoint = open_checkpoint(tiny_any_model(class_name, tmp_path))
    task = task_of(class_name)
    assert isinstance(checkpoint.spec, ModuleSpec)
    assert (checkpoint.spec.task, checkpoint.spec.class_name) == (task, class_name)
    expected = first_output(model_class(checkpoint.config).from_pretrained(tmp_path), task)
    assert distance(first_output(build_model(checkpoint), task), expected) < 1e-5


@pytest.mark.parametrize("class_name", CLASSES)
def test_a_compressed_model_opens_in_transformers_too(class_name, tmp_path):
    source = tiny_any_model(class_name, tmp_path / "source")
    small = edge.compress(source, "int8", tmp_path / "small")
    checkpoint, original = open_checkpoint(small), open_checkpoint(source)
    task = task_of(class_name)
    assert set(checkpoint.encodings) == {name for name, _ in original.spec.matrices()}
    assert checkpoint.stored_bytes < original.stored_bytes
    found = first_output(build_model(checkpoint), task)
    again = first_output(model_class(checkpoint.config).from_pretrained(small), task)
    assert distance(again, found) < 5e-3  # sums in another order flip a few int8 activations
    assert 0 < distance(found, first_output(build_model(original), task)) < 0.1


def test_a_missing_tensor_is_named(tmp_path):
    folder = tiny_any_model("BertModel", tmp_path)
    tensors = load_file(folder / "model.safetensors")
    del tensors["encoder.layer.1.attention.self.key.weight"]
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(EdgeError, match=r"encoder\.layer\.1\.attention\.self\.key\.weight.* missing"):
        open_checkpoint(folder)


def test_a_foreign_tensor_is_named(tmp_path):
    folder = tiny_any_model("ViTForImageClassification", tmp_path)
    tensors = load_file(folder / "model.safetensors")
    save_file(tensors | {"adapter.weight": torch.ones(3)}, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(EdgeError, match=r"adapter\.weight.* no place"):
        open_checkpoint(folder)


def test_a_class_that_transformers_does_not_have_is_named(tmp_path):
    folder = tiny_any_model("BertModel", tmp_path)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"architectures": ["BertForDreams"]}))
    with pytest.raises(EdgeError, match="BertForDreams"):
        open_checkpoint(folder)


def test_a_recipe_that_calibrates_refuses(tmp_path):
    folder = tiny_any_model("BertModel", tmp_path / "source")
    with pytest.raises(EdgeError) as error:
        edge.compress(folder, "int4-gptq", tmp_path / "small", calibration_text=__file__)
    assert "int4" in error.value.hint or "rtn" in str(error.value)
