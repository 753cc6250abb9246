"""`edge run`, `evaluate` and `profile` with a model that reads text and with one that hears."""

import json
import shutil
import subprocess
import wave

import numpy as np
import pytest

import edge as edge_package
from edge.cli.tests.test_cli import assert_fails, edge
from edge.models import samples
from edge.models.testing import tiny_any_model

TEXT = "The harbour lay quiet in the early light. A ferry had just left the pier."


@pytest.fixture(scope="module")
def text_bundle(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bart")
    changes = {"encoder_layers": 1, "decoder_layers": 1, "max_position_embeddings": 256}
    source = tiny_any_model("BartForConditionalGeneration", folder / "source", **changes)
    (folder / "text.txt").write_text(TEXT)
    edge_package.export(source, folder / "bundle")
    return folder


def test_text_in_text_out_and_what_it_cost(text_bundle, tmp_path):
    bundle = text_bundle / "bundle"
    ran = edge("run", bundle, "--prompt", "hello", "-n", 5, "--json")
    assert ran.returncode == 0, ran.stderr
    assert json.loads(ran.stdout)["generated_tokens"] == 4  # its fifth is the forced last one, which ends the answer
    options = ["--against", text_bundle / "source", "--text", text_bundle / "text.txt", "--json"]
    evaluated = edge("evaluate", bundle, *options)
    assert evaluated.returncode == 0, evaluated.stderr
    found = json.loads(evaluated.stdout)
    assert (found["samples"], found["equal_answers"], found["top1_agreement"]) == (2, 2, 1.0)
    profiled = edge("profile", bundle, "--prompt-tokens", 8, "--generated-tokens", 4, "--json")
    assert profiled.returncode == 0, profiled.stderr
    repetition = json.loads(profiled.stdout)["repetitions"][0]
    assert 0 < repetition["encode_ns"] < repetition["prefill_ns"]


def test_options_of_another_kind_of_model_are_refused(text_bundle, tmp_path):
    bundle = text_bundle / "bundle"
    assert_fails(edge("run", bundle, "--audio", tmp_path / "a.wav"), 2, "reads text, not sound")
    assert_fails(edge("run", bundle, "--prompt", "a", "--raw"), 2, "--raw")
    assert_fails(edge("run", bundle, "--prompt", "x" * 300), 2, "tokens")
    assert_fails(edge("evaluate", bundle, "--text", text_bundle / "text.txt"), 2, "--against")
    options = ["--against", text_bundle / "source", "--audio", tmp_path]
    assert_fails(edge("evaluate", bundle, *options), 2, "reads text")


@pytest.mark.skipif(shutil.which("espeak-ng") is None, reason="espeak-ng is not installed (apt install espeak-ng)")
@pytest.mark.skipif(not samples.whisper_folder().is_dir(), reason="the sample whisper-tiny.en was never fetched")
def test_whisper_writes_down_what_was_said(tmp_path):
    spoken = "Please remember to bring your umbrella, because it will rain this afternoon."
    subprocess.run(["espeak-ng", "-s", "140", "-w", str(tmp_path / "a.wav"), spoken], check=True)
    edge_package.export(samples.whisper_folder(), tmp_path / "bundle")
    ran = edge("run", tmp_path / "bundle", "--audio", tmp_path / "a.wav", "--json")
    assert ran.returncode == 0, ran.stderr
    said = "".join(letter for letter in json.loads(ran.stdout)["text"].lower() if letter.isalpha() or letter == " ")
    assert said.split() == "".join(letter for letter in spoken.lower() if letter not in ",.").split()
    assert_fails(edge("run", tmp_path / "bundle", "--prompt", "hello"), 2, "reads sound, not text")
    with wave.open(str(tmp_path / "empty.wav"), "wb") as file:
        file.setparams((1, 2, 16000, 0, "NONE", ""))
        file.writeframes(np.zeros(0, np.int16).tobytes())
    assert_fails(edge("run", tmp_path / "bundle", "--audio", tmp_path / "empty.wav"), 2, "no samples")
    assert_fails(edge("run", tmp_path / "bundle", "--audio", tmp_path / "none.wav"), 2, "none.wav")
