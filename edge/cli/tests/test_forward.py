"""Encoders and vision models as a user types them: run, evaluate, profile, report, and what goes wrong on the way."""

import json
import shutil

import numpy as np
import pytest
from PIL import Image

from edge.cli.tests.test_cli import assert_fails, edge
from edge.models.testing import COMMON, tiny_any_model, tiny_tokenizer

TEXT = "The ferry left the pier at noon. Nobody saw the old man wave.\nIt rained on the hills for three days.\n" * 3


def bundle_of(class_name, folder, *, mask=False, runtime="onnx", **changes):
    source = tiny_any_model(class_name, folder / "model", **changes)
    if mask:
        tokenizer = tiny_tokenizer(COMMON["vocab_size"])
        tokenizer.mask_token = "~"
        tokenizer.save_pretrained(source)
    assert edge("compress", source, "-r", "int8", "-o", folder / "small").returncode == 0
    exported = edge("export", folder / "small", "-o", folder / "bundle", "--runtime", runtime)
    assert exported.returncode == 0, exported.stderr
    (folder / "text.txt").write_text(TEXT)
    return folder


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    return bundle_of("BertModel", tmp_path_factory.mktemp("encoder"))


@pytest.fixture(scope="module")
def words(tmp_path_factory):
    return bundle_of("BertForMaskedLM", tmp_path_factory.mktemp("words"), mask=True)


@pytest.fixture(scope="module")
def vision(tmp_path_factory):
    folder = tmp_path_factory.mktemp("vision")
    names = {index: f"animal {index}" for index in range(7)}
    bundle_of("ViTForImageClassification", folder, id2label=names, label2id={n: i for i, n in names.items()})
    pixels = np.random.default_rng(0).integers(0, 255, (40, 50, 3), np.uint8)
    (folder / "images").mkdir()
    for index in range(3):
        Image.fromarray(np.roll(pixels, 7 * index, axis=0)).save(folder / "images" / f"{index}.png")
    return folder


def test_an_encoder_gives_a_vector(encoder):
    found = json.loads(edge("run", encoder / "bundle", "--prompt", "hello there", "--json").stdout)
    assert found["dimension"] == len(found["vector"]) == 64 and found["tokens"] == len("hello there")
    assert found["norm"] == pytest.approx(np.linalg.norm(found["vector"]))
    shown = edge("run", encoder / "bundle", "--prompt", "hello there").stdout
    assert "64 values" in shown and f"{found['vector'][0]:.4f}" in shown


def test_a_masked_model_fills_its_mask(words):
    found = json.loads(edge("run", words / "bundle", "--prompt", "hel~o", "--json").stdout)
    assert len(found["labels"]) == 5
    chances = [label["probability"] for label in found["labels"]]
    assert chances == sorted(chances, reverse=True) and sum(chances) <= 1
    assert_fails(edge("run", words / "bundle", "--prompt", "hello"), 2, "write ~")


def test_a_vision_model_names_what_it_sees(vision):
    image = vision / "images" / "0.png"
    found = json.loads(edge("run", vision / "bundle", "--image", image, "--json").stdout)
    assert all(label["label"].startswith("animal ") for label in found["labels"]) and len(found["labels"]) == 5
    shown = edge("run", vision / "bundle", "--image", image)
    assert found["labels"][0]["label"] in shown.stdout and "ImageNet" in shown.stderr


def test_the_wrong_input_for_a_model_is_refused(encoder, vision, tmp_path):
    broken = tmp_path / "broken.png"
    broken.write_bytes((vision / "images" / "0.png").read_bytes()[:200])
    (tmp_path / "note.png").write_text("not an image")
    assert_fails(edge("run", encoder / "bundle", "--image", broken), 2, "--prompt")
    assert_fails(edge("run", encoder / "bundle", "--prompt", " "), 2, "no tokens")
    assert_fails(edge("run", encoder / "bundle", "--prompt", "x", "--raw"), 2, "--raw")
    assert_fails(edge("run", vision / "bundle", "--prompt", "x"), 2, "--image")
    assert_fails(edge("run", vision / "bundle", "--image", tmp_path / "none.png"), 2, "No such file")
    assert_fails(edge("run", vision / "bundle", "--image", tmp_path / "note.png"), 2, "not an image")
    assert_fails(edge("run", vision / "bundle", "--image", broken), 2, "broken.png")


def test_an_encoder_is_held_against_its_original(encoder, tmp_path):
    options = ("--text", encoder / "text.txt", "--against", encoder / "model", "--json")
    bundle = json.loads(edge("evaluate", encoder / "bundle", *options).stdout)
    folder = json.loads(edge("evaluate", encoder / "small", *options).stdout)
    same = json.loads(edge("evaluate", encoder / "model", *options).stdout)
    assert bundle["samples"] == 9 and bundle["kind"] == "artefact" and folder["kind"] == "torch"
    assert 0.98 < bundle["cosine_min"] <= bundle["cosine_mean"] < 1 - 1e-7
    assert bundle["cosine_mean"] == pytest.approx(folder["cosine_mean"], abs=1e-3)
    assert same["cosine_min"] == pytest.approx(1) and same["relative_error"] < 1e-6


def test_words_are_compared_token_by_token(words):
    options = ("--text", words / "text.txt", "--against", words / "model", "--json")
    found = json.loads(edge("evaluate", words / "bundle", *options).stdout)
    assert 0.8 < found["top1_agreement"] <= found["top5_agreement"] <= 1 and 0 < found["kl_divergence"] < 0.1
    assert found["cosine_mean"] is None


def test_a_vision_model_is_compared_on_images_or_says_that_it_had_none(vision):
    against = ("--against", vision / "model", "--json")
    found = json.loads(edge("evaluate", vision / "bundle", "--images", vision / "images", *against).stdout)
    assert found["data"] == "images, 3 images" and found["kl_divergence"] < 0.1
    assert "synthetic" in json.loads(edge("evaluate", vision / "bundle", *against).stdout)["data"]
    assert_fails(
        edge("evaluate", vision / "bundle", "--images", vision / "model", *against), 2, "no folder with images"
    )


def test_a_comparison_that_makes_no_sense_is_refused(encoder, vision):
    text = ("--text", encoder / "text.txt")
    assert_fails(edge("evaluate", encoder / "bundle", *text), 2, "--against")
    assert_fails(edge("evaluate", encoder / "bundle", *text, "--against", vision / "model"), 2, "another kind")
    images = ("--images", vision / "images", "--against", encoder / "model")
    assert_fails(edge("evaluate", encoder / "bundle", *text, *images), 2, "not images")
    assert_fails(edge("evaluate", encoder / "bundle", "--against", encoder / "model"), 2, "--text")


def test_calls_are_profiled_and_reported(encoder, vision, tmp_path):
    for name, folder, tokens in (("encoder", encoder, 16), ("vision", vision, 0)):
        result = tmp_path / f"{name}.json"
        ended = edge("profile", folder / "bundle", "--prompt-tokens", 16, "-o", result)
        assert ended.returncode == 0 and "time per call" in ended.stdout and "decode" not in ended.stdout
        found = json.loads(result.read_bytes())
        assert found["protocol"]["prompt_tokens"] == tokens and found["protocol"]["generated_tokens"] == 0
        assert len(found["repetitions"]) >= 50 and all(not r["decode_ns"] for r in found["repetitions"])
        layers = {row["layer"] for row in found["operators"]}
        assert any(".layer" in layer for layer in layers)
    quality = ("evaluate", vision / "bundle", "--against", vision / "model", "-o", tmp_path / "quality.json")
    assert edge(*quality).returncode == 0
    ended = edge("report", *sorted(tmp_path.glob("*.json")), "-o", tmp_path / "report.html")
    assert ended.returncode == 0, ended.stderr
    card = (tmp_path / "report.md").read_text()
    assert "Time per call" in card and "Agreement with the original" in card and "Decode" not in card
    assert_fails(edge("profile", encoder / "bundle", "--prompt-tokens", 999), 2, "context of 64")


def test_executorch_says_the_same(encoder, tmp_path):
    pytest.importorskip("executorch")
    exported = edge("export", encoder / "small", "-o", tmp_path / "bundle", "--runtime", "executorch")
    assert exported.returncode == 0, exported.stderr
    answers = [
        json.loads(edge("run", bundle, "--prompt", "hello there", "--json").stdout)["vector"]
        for bundle in (encoder / "bundle", tmp_path / "bundle")
    ]
    np.testing.assert_allclose(*answers, atol=0.02)
    refused = edge("export", encoder / "small", "-o", tmp_path / "b", "--runtime", "executorch", "--kernels", "builtin")
    assert_fails(refused, 1, "--kernels edge")
    shutil.copytree(tmp_path / "bundle", tmp_path / "cut")
    data = (tmp_path / "cut" / "model.pte").read_bytes()
    (tmp_path / "cut" / "model.pte").write_bytes(data[: len(data) // 2])
    assert_fails(edge("run", tmp_path / "cut", "--prompt", "x"), 1, "model.pte")
