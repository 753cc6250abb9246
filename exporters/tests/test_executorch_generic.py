"""Encoders and vision models through ExecuTorch compute what transformers computes."""

import numpy as np
import pytest
import torch

from edge.core.bundle import open_bundle, seal
from edge.core.errors import EdgeError, UsageError
from edge.core.session import SessionOptions
from edge.evaluate.forward_gates import image_noise
from edge.models.any_model import model_class
from edge.models.checkpoint import open_checkpoint
from edge.models.testing import tiny_any_model

pytest.importorskip("executorch")


def exported(source, folder):
    from edge.exporters.executorch.generic import write
    from edge.runtimes.executorch import open as open_session

    folder.mkdir()
    checkpoint = open_checkpoint(source)
    seal(folder, write(checkpoint, folder, kernels="edge", context_length=checkpoint.spec.context_length))
    return open_session(open_bundle(folder), SessionOptions())


@pytest.mark.parametrize(
    "class_name",
    [
        "RobertaModel",
        "ViTForImageClassification",
        "SwinForImageClassification",
        "EfficientNetForImageClassification",
    ],
)
def test_a_float_program_computes_what_transformers_computes(class_name, tmp_path):
    source = tiny_any_model(class_name, tmp_path / "source")
    session = exported(source, tmp_path / "bundle")
    model = model_class(open_checkpoint(source).config).from_pretrained(source, dtype=torch.float32).eval()
    samples = [{"pixel_values": image_noise((3, 32, 32))}]
    if class_name == "RobertaModel":
        tokens = [np.random.default_rng(n).integers(3, 150, (1, n)) for n in (1, 2, 9, 64)]
        samples = [{"input_ids": ids, "attention_mask": np.ones_like(ids)} for ids in tokens]
    for inputs in samples:
        with torch.inference_mode():
            expected = model(**{name: torch.from_numpy(array) for name, array in inputs.items()})[0].numpy()
        np.testing.assert_allclose(session.run(inputs), expected, atol=1e-4)
    with pytest.raises(UsageError):
        session.run({"nothing": np.zeros((1, 1), np.int64)})
    session.close()


def test_what_cannot_be_lowered_is_one_line(tmp_path, monkeypatch):
    from executorch import exir

    def fail(*_, **__):
        raise RuntimeError("no such\noperator")

    monkeypatch.setattr(exir, "to_edge_transform_and_lower", fail)
    with pytest.raises(EdgeError) as error:
        exported(tiny_any_model("BertModel", tmp_path / "source"), tmp_path / "bundle")
    assert error.value.code == "export.lower" and "\n" not in error.value.message and "onnx" in error.value.hint
