"""Encoders and vision models through ONNX Runtime compute what transformers computes; what can't be done says so."""

import shutil
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
import torch
from torch import nn

import edge
from edge.core.bundle import Bundle
from edge.core.errors import EdgeError, UsageError
from edge.core.session import SessionOptions
from edge.exporters import _trace
from edge.exporters.onnx import generic
from edge.models.any_model import model_class
from edge.models.checkpoint import open_checkpoint
from edge.models.testing import tiny_any_model
from edge.runtimes.onnx import open as open_session

ENCODERS = ["BertModel", "BertForSequenceClassification", "RobertaModel", "DistilBertModel"]
VISION = ["ViTForImageClassification", "SwinForImageClassification", "EfficientNetForImageClassification"]


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bert")
    return edge.compress(tiny_any_model("BertModel", folder / "source"), "int4", folder / "small")


@pytest.fixture(scope="module")
def bundle(small):
    return edge.export(small, small.parent / "bundle")


def samples_of(manifest, length=9):
    random = np.random.default_rng(1)
    if manifest.task == "vision":
        return {"pixel_values": random.standard_normal(manifest.inputs["pixel_values"].shape, np.float32)}
    ids = random.integers(3, 150, (1, length))
    return {"input_ids": ids, "attention_mask": np.ones_like(ids)}


def transformers_answer(folder, inputs):
    model = model_class(open_checkpoint(folder).config).from_pretrained(folder, dtype=torch.float32).eval()
    with torch.inference_mode():
        return model(**{name: torch.from_numpy(array) for name, array in inputs.items()})[0].numpy()


@pytest.mark.parametrize("class_name", ENCODERS + VISION)
def test_a_float_bundle_computes_what_transformers_computes(class_name, tmp_path):
    source = tiny_any_model(class_name, tmp_path / "source")
    bundle = edge.export(source, tmp_path / "bundle")
    assert bundle.manifest.gates.relative_error < 1e-5
    session = open_session(bundle, SessionOptions(threads=1))
    for length in (1, 2, 9, bundle.manifest.context_length)[: 1 if bundle.manifest.task == "vision" else 4]:
        inputs = samples_of(bundle.manifest, length)
        np.testing.assert_allclose(session.run(inputs), transformers_answer(source, inputs), atol=1e-4)


@pytest.mark.parametrize("kernels", ["edge", "builtin"])
@pytest.mark.parametrize("class_name", ["BertForMaskedLM", "ViTForImageClassification"])
def test_a_compressed_bundle_holds_the_codes_and_passes_its_gate(class_name, kernels, tmp_path):
    small = edge.compress(tiny_any_model(class_name, tmp_path / "source"), "int8", tmp_path / "small")
    bundle = edge.export(small, tmp_path / "bundle", kernels=kernels)
    manifest, checkpoint = bundle.manifest, open_checkpoint(small)
    assert manifest.gates.codes_equal and set(manifest.encodings) >= set(checkpoint.encodings) - {"pooler.dense.weight"}
    operators = {node.op_type for node in ir.load(bundle.artefact).graph}
    assert ("Linear" in operators) == (kernels == "edge") and ("MatMulNBits" in operators) == (kernels == "builtin")
    layers = {name.removesuffix(".weight") for name in checkpoint.encodings}
    assert set(manifest.layer_of_node.values()) >= layers - {"bert.pooler.dense"}
    session = open_session(bundle, SessionOptions(threads=1))
    inputs = samples_of(manifest)
    expected = transformers_answer(small, inputs)
    assert np.linalg.norm(session.run(inputs) - expected) < 0.1 * np.linalg.norm(expected)


def test_the_same_inputs_give_the_same_bytes_and_no_paths(small, bundle, tmp_path):
    again = edge.export(small, tmp_path / "again")
    assert again.manifest.files == bundle.manifest.files
    assert b"site-packages" not in bundle.artefact.read_bytes()


def test_damaged_codes_are_noticed(small, bundle, tmp_path):
    bundle = Bundle(Path(shutil.copytree(bundle.path, tmp_path / "damaged")), bundle.manifest)
    checkpoint = open_checkpoint(small)
    assert generic.codes_equal(checkpoint, bundle.path, bundle.manifest)
    data = bundle.path / "model.onnx.data"
    raw = bytearray(data.read_bytes())
    raw[len(raw) // 2 : len(raw) // 2 + 512] = bytes(512)
    data.write_bytes(raw)
    assert not generic.codes_equal(checkpoint, bundle.path, bundle.manifest)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"pixel_values": np.zeros((1, 3, 32, 32), np.float32)}, "takes attention_mask, input_ids"),
        ({"input_ids": np.ones((1, 3), np.int32), "attention_mask": np.ones((1, 3), np.int64)}, "int32"),
        ({"input_ids": np.ones((2, 3), np.int64), "attention_mask": np.ones((2, 3), np.int64)}, r"\[2, 3\]"),
        ({"input_ids": np.ones((1, 65), np.int64), "attention_mask": np.ones((1, 65), np.int64)}, "65 tokens"),
        ({"input_ids": np.ones((1, 4), np.int64), "attention_mask": np.ones((1, 3), np.int64)}, "different lengths"),
        ({"input_ids": np.full((1, 4), 160), "attention_mask": np.ones((1, 4), np.int64)}, r"outside 0\.\.159"),
    ],
)
def test_inputs_that_do_not_fit_are_refused(change, said, bundle):
    session = open_session(bundle, SessionOptions(threads=1))
    with pytest.raises(UsageError, match=said):
        session.run(change)


def test_a_model_that_cannot_be_traced_says_where(tmp_path, monkeypatch):
    class Moody(nn.Module):
        def forward(self, x):
            if x.sum() > 0:
                return x
            return -x

    build = _trace.build_model

    def moody(checkpoint):
        model = build(checkpoint)
        model.encoder.layer[1].output.dropout = Moody()
        return model

    monkeypatch.setattr(_trace, "build_model", moody)
    with pytest.raises(EdgeError) as error:
        edge.export(tiny_any_model("BertModel", tmp_path / "source"), tmp_path / "bundle")
    assert error.value.code == "export.trace"
    assert "encoder.layer.1.output.dropout" in error.value.message and ".py:" in error.value.message
    assert "\n" not in error.value.message and error.value.hint


def test_what_has_no_cache_refuses_its_option(tmp_path):
    source = tiny_any_model("ViTForImageClassification", tmp_path / "source")
    with pytest.raises(UsageError, match="no cache"):
        edge.export(source, tmp_path / "bundle", kv_cache="int8")


def test_an_encoding_that_a_stock_runtime_lacks_is_refused(tmp_path):
    recipe = tmp_path / "three.toml"
    recipe.write_text('schema = 1\nname = "three"\n[[steps]]\nmethod = "rtn"\noptions = {bits = 3, group_size = 32}\n')
    small = edge.compress(tiny_any_model("BertModel", tmp_path / "source"), recipe, tmp_path / "small")
    with pytest.raises(EdgeError, match="builtin kernels don't serve") as error:
        edge.export(small, tmp_path / "bundle", kernels="builtin")
    assert "--kernels edge" in error.value.hint
