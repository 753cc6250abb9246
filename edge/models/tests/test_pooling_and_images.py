"""Vectors as sentence-transformers makes them, pixels as transformers' image processors make them."""

import json

import numpy as np
import pytest
from PIL import Image
from transformers import ViTConfig
from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

from edge.core.errors import EdgeError, UsageError
from edge.models.images import image_reader, image_shape
from edge.models.pooling import Pooling, pooling_of

HIDDEN = np.array([[1, 2], [3, 6], [5, 1]], np.float32)


def write(folder, modules, pooling, most=None):
    (folder / "1_Pooling").mkdir()
    kinds = [{"path": "1_Pooling" if kind == "Pooling" else "", "type": f"models.{kind}"} for kind in modules]
    (folder / "modules.json").write_text(json.dumps(kinds))
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(pooling))
    if most:
        (folder / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": most}))
    return pooling_of(folder)


@pytest.mark.parametrize(
    ("field", "expected"),
    [
        ("cls_token", [1, 2]),
        ("mean_tokens", [3, 3]),
        ("max_tokens", [5, 6]),
        ("lasttoken", [5, 1]),
        ("mean_sqrt_len_tokens", [9 / 3**0.5, 9 / 3**0.5]),
    ],
)
def test_every_pooling(field, expected, tmp_path):
    pooling = write(tmp_path, ["Transformer", "Pooling"], {f"pooling_mode_{field}": True})
    np.testing.assert_allclose(pooling(HIDDEN), expected, rtol=1e-6)


def test_settings_beside_a_model(tmp_path):
    modes = {"pooling_mode_mean_tokens": True, "pooling_mode_cls_token": False}
    assert write(tmp_path, ["Transformer", "Pooling", "Normalize"], modes, 17) == Pooling(("mean",), True, 17)
    assert np.linalg.norm(pooling_of(tmp_path)(HIDDEN)) == pytest.approx(1)


def test_no_settings_mean_the_mean(tmp_path):
    assert pooling_of(tmp_path) == Pooling(("mean",), False, 0)


def test_settings_that_make_no_sense_are_named(tmp_path):
    with pytest.raises(EdgeError, match="can't be used"):
        write(tmp_path, ["Transformer", "Pooling"], {"pooling_mode_dreams": True})


def test_a_layer_that_is_left_out_is_said(tmp_path, capsys):
    write(tmp_path, ["Transformer", "Pooling", "Dense"], {"pooling_mode": "cls"})
    assert "Dense" in capsys.readouterr().err


def picture(folder, size=(50, 40)):
    pixels = np.random.default_rng(0).integers(0, 255, (size[1], size[0], 3), np.uint8)
    Image.fromarray(pixels).save(folder / "a.png")
    return folder / "a.png"


def test_pixels_are_those_of_the_processor_beside_the_model(tmp_path):
    processor = ViTImageProcessorPil(size={"height": 32, "width": 32}, image_mean=[0.1, 0.2, 0.3])
    processor.save_pretrained(tmp_path)
    path = picture(tmp_path)
    expected = processor(Image.open(path), return_tensors="np")["pixel_values"]
    found = image_reader(tmp_path, ViTConfig(image_size=32))(path)
    np.testing.assert_array_equal(found, expected)


def test_without_one_pixels_are_normalized_as_for_imagenet(tmp_path, capsys):
    found = image_reader(tmp_path, ViTConfig(image_size=[24, 32]))(picture(tmp_path, (32, 24)))
    assert "ImageNet" in capsys.readouterr().err and found.shape == (1, 3, 24, 32) and found.dtype == np.float32
    raw = np.asarray(Image.open(tmp_path / "a.png"), np.float32)[3, 5]
    np.testing.assert_allclose(
        found[0, :, 3, 5], (raw / 255 - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225], rtol=1e-5
    )


def test_grey_images_in_colour_and_colour_in_grey(tmp_path):
    Image.new("L", (8, 8), 128).save(tmp_path / "grey.png")
    assert image_reader(tmp_path, ViTConfig(image_size=8))(tmp_path / "grey.png").shape == (1, 3, 8, 8)
    assert image_reader(tmp_path, ViTConfig(image_size=8, num_channels=1))(picture(tmp_path)).shape == (1, 1, 8, 8)


def test_a_processor_that_cannot_be_used_is_named(tmp_path):
    (tmp_path / "preprocessor_config.json").write_text("{")
    with pytest.raises(EdgeError, match="preprocessor_config"):
        image_reader(tmp_path, ViTConfig())


def test_an_image_too_large_to_be_one(tmp_path, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(UsageError, match="not an image"):
        image_reader(tmp_path, ViTConfig())(picture(tmp_path))


def test_shapes_of_configurations():
    assert image_shape(ViTConfig(image_size=48)) == (3, 48, 48)
    assert image_shape(type("Config", (), {})()) == (3, 224, 224)
