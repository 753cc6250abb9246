"""The pipeline end to end on tiny models: what is written, resumed, refused."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import msgspec
import numpy as np
import pytest
import torch

from edge.compress import layerwise
from edge.compress.methods import gptq
from edge.compress.run import compress
from edge.core.errors import EdgeError, UsageError
from edge.core.files import sha256
from edge.core.recipe import parse_recipe, presets
from edge.models.checkpoint import open_checkpoint
from edge.models.testing import FAMILIES, tiny_model
from edge.models.tokenizer import tokenizer_of
from edge.models.torch_model import build_model

GPTQ = """
schema = 1
name = "test"
[calibration]
samples = 4
sequence_length = 32
[[steps]]
method = "gptq"
options = {bits = 3, group_size = 32}
rules = [
  {module = "embedding", exclude = true},
  {module = "head", exclude = true},
  {name = "*.1.*down_proj*", options = {bits = 8}},
]
[[steps]]
method = "rtn"
options = {bits = 4, group_size = 32}
"""
EVERYTHING = GPTQ.replace('{module = "embedding", exclude = true},', "").replace(
    '{module = "head", exclude = true},', ""
)
TEXT = "".join(f"Line {i}: the quick brown fox jumps over {i * i} lazy dogs.\n" for i in range(40))


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return tiny_model("llama", tmp_path_factory.mktemp("models") / "llama", num_hidden_layers=4)


@pytest.fixture
def text(tmp_path):
    path = tmp_path / "calibration.txt"
    path.write_text(TEXT)
    return path


def recipe(toml=GPTQ):
    return parse_recipe(toml, "test")


def digests(folder):
    return {path.name: sha256(path) for path in folder.iterdir()}


def logits(source):
    """On the beginning of the text that calibrates."""
    ids = torch.tensor([tokenizer_of(source)(TEXT[:100])["input_ids"]])
    with torch.no_grad():
        return build_model(open_checkpoint(source))(ids).logits


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_compresses_with_calibration(family, tmp_path, text):
    source = tiny_model(family, tmp_path / "model")
    folder = compress(source, recipe(GPTQ.replace("bits = 3", "bits = 8")), tmp_path / "out", calibration_text=text)
    original, compressed = logits(source), logits(folder)
    assert (original - compressed).abs().mean() < 0.3 * original.std()  # 8 bits with a 4-bit embedding
    checkpoint = open_checkpoint(folder)
    assert checkpoint.compressed and set(checkpoint.encodings) == {name for name, _ in checkpoint.spec.matrices()}


@pytest.mark.parametrize("family", ["llama-rope", "gpt2", "phi3", "gemma2"])
@pytest.mark.parametrize("method", ["awq", "autoround"])
def test_methods_that_work_on_layers_serve_every_kind_of_layer(method, family, tmp_path, text):
    source = tiny_model(family, tmp_path / "model")
    steps = "steps = 20, batch = 2, " if method == "autoround" else ""
    toml = GPTQ.replace('"gptq"', f'"{method}"').replace("bits = 3", f"{steps}bits = 4")
    errors, original = [], logits(source)
    for index, chosen in enumerate((toml, GPTQ.replace('"gptq"', '"rtn"').replace("bits = 3", "bits = 4"))):
        folder = compress(source, recipe(chosen), tmp_path / f"out{index}", calibration_text=text)
        errors.append((logits(folder) - original).square().mean())
    assert errors[0] < errors[1]


@pytest.mark.parametrize("name", presets())
def test_presets(name, model, tmp_path, text):
    source = open_checkpoint(model)
    checkpoint = open_checkpoint(compress(model, name, tmp_path / "out", calibration_text=text))
    assert set(checkpoint.encodings) == {name for name, _ in source.spec.matrices()}
    assert checkpoint.recipe["name"] == name and checkpoint.recipe["description"]
    assert torch.isfinite(logits(tmp_path / "out")).all()


def test_folder_says_what_was_done(model, tmp_path, text):
    folder = compress(model, recipe(), tmp_path / "out", calibration_text=text)
    config = json.loads((folder / "config.json").read_text())
    section, encodings = config["edge"], config["quantization_config"]["encodings"]
    down = [encodings[f"model.layers.{i}.mlp.down_proj.weight"] for i in range(2)]
    assert [encoding["bits"] for encoding in down] == [3, 8]
    assert encodings["model.embed_tokens.weight"] == {
        "kind": "affine",
        "bits": 4,
        "group_size": 32,
        "grid": "symmetric",
    }
    assert section["resolved"]["model.layers.1.mlp.down_proj.weight"]["options"]["bits"] == 8
    assert section["source"] == "llama" and section["source_sha256"] == open_checkpoint(model).sha256
    assert str(tmp_path.parent) not in json.dumps({k: v for k, v in config.items() if k != "recipe"})
    checkpoint = open_checkpoint(folder)
    on_disk = sum(path.stat().st_size for path in folder.glob("*.safetensors"))
    assert checkpoint.stored_bytes < on_disk < checkpoint.stored_bytes + 4096 * 6
    assert all(checkpoint.matrix(name).encoding == checkpoint.encodings[name] for name in encodings)
    assert np.array_equal(checkpoint.vector("model.norm.weight"), open_checkpoint(model).vector("model.norm.weight"))


def test_same_inputs_give_the_same_bytes(model, tmp_path, text):
    first = compress(model, recipe(), tmp_path / "a", calibration_text=text)
    second = compress(model, recipe(), tmp_path / "b", calibration_text=text)
    assert digests(first) == digests(second)


def test_gptq_is_nearer_to_the_original_than_rtn(model, tmp_path, text):
    nearest = compress(model, recipe(GPTQ.replace('"gptq"', '"rtn"')), tmp_path / "rtn")
    calibrated = compress(model, recipe(), tmp_path / "gptq", calibration_text=text)
    original = logits(model)
    assert (logits(calibrated) - original).square().mean() < (logits(nearest) - original).square().mean()


@pytest.mark.parametrize("tied", [True, False])
def test_a_calibrated_head_is_nearer_to_the_original(tied, tmp_path, text):
    """By the logits that it makes of the original's states; all else is at 8 bits."""
    source = open_checkpoint(tiny_model("llama", tmp_path / "model", tie_word_embeddings=tied))
    kind, name = ("embedding", source.spec.embedding) if tied else ("head", source.spec.head)
    at_8_bits = GPTQ.replace("bits = 3", "bits = 8").replace("bits = 4", "bits = 8")
    rounded = f'{at_8_bits}rules = [{{module = "{kind}", options = {{bits = 3}}}}]'
    calibrated = at_8_bits.replace(f'"{kind}", exclude = true', f'"{kind}", options = {{bits = 3}}')
    ids = torch.tensor([tokenizer_of(source.source)(TEXT[:100])["input_ids"]])
    states = build_model(source).model(ids).last_hidden_state[0].numpy()
    errors = []
    for index, toml in enumerate((rounded, calibrated)):
        folder = compress(source.source, recipe(toml), tmp_path / f"out{index}", calibration_text=text)
        compressed = open_checkpoint(folder)
        assert set(compressed.encodings) == {matrix for matrix, _ in source.spec.matrices()}
        weights = [c.matrix(f"{name}.weight").dequantize() for c in (compressed, source)]
        errors.append(np.square(states @ (weights[0] - weights[1]).T).mean())
    assert errors[1] < 0.8 * errors[0]


def test_matrices_of_a_layer_that_do_not_see_each_other(model, tmp_path, text):
    """Without true_sequential, o sees what q, k and v of the original make; q sees the same either way."""
    apart = GPTQ.replace("group_size = 32}\nrules", "group_size = 32, true_sequential = false}\nrules")
    folders = [
        compress(model, recipe(toml), tmp_path / str(i), calibration_text=text) for i, toml in enumerate((GPTQ, apart))
    ]
    first, second = (open_checkpoint(folder) for folder in folders)
    names = [f"model.layers.0.self_attn.{part}_proj.weight" for part in "qo"]
    same = [np.array_equal(first.matrix(name).parts["codes"], second.matrix(name).parts["codes"]) for name in names]
    assert same == [True, False]


class Killed(BaseException):
    """Stands for whatever ends the process."""


LAYERWISE = {
    "gptq": GPTQ,
    "gptq-head": EVERYTHING,
    "awq": GPTQ.replace('"gptq"', '"awq"'),
    "autoround": GPTQ.replace('"gptq"', '"autoround"').replace("bits = 3,", "bits = 3, steps = 5, batch = 2,"),
    "rotate": GPTQ.replace("[[steps]]", '[[steps]]\nmethod = "rotate"\noptions = {untie = true}\n[[steps]]', 1),
    "smoothquant": GPTQ.replace("[[steps]]", '[[steps]]\nmethod = "smoothquant"\n[[steps]]', 1),
}


@pytest.mark.parametrize("method", LAYERWISE)
def test_interrupted_run_resumes_at_its_layer(method, model, tmp_path, text, monkeypatch):
    toml = LAYERWISE[method]
    whole = compress(model, recipe(toml), tmp_path / "whole", calibration_text=text)
    compressed = []
    real = layerwise.LayerwiseRun._compress

    def until_third(self, block):
        if block.index == 2:
            raise Killed
        compressed.append(block.index)
        return real(self, block)

    monkeypatch.setattr(layerwise.LayerwiseRun, "_compress", until_third)
    with pytest.raises(Killed):
        compress(model, recipe(toml), tmp_path / "out", calibration_text=text)
    assert not (tmp_path / "out").exists() and (tmp_path / ".out.partial").is_dir()

    def note(self, block):
        compressed.append(block.index)
        return real(self, block)

    monkeypatch.setattr(layerwise.LayerwiseRun, "_compress", note)
    folder = compress(model, recipe(toml), tmp_path / "out", calibration_text=text)
    assert compressed == [0, 1, 2, 3]
    assert digests(folder) == digests(whole)
    assert not (tmp_path / ".out.partial").exists()


def test_a_method_may_choose_the_encoding_by_the_matrix(model, tmp_path, text, monkeypatch):
    """What it chose is in the config, and a run that was killed after the choice knows it too."""
    real = gptq.compress

    def choosing(name, weight, options, inputs):
        wider = {"bits": 6, "group_size": 0} if "o_proj" in name else {}
        return real(name, weight, msgspec.structs.replace(options, **wider), inputs)

    def killed(name, weight, options, inputs):
        if "layers.2" in name:
            raise Killed
        return choosing(name, weight, options, inputs)

    monkeypatch.setattr(gptq, "compress", choosing)
    whole = compress(model, recipe(), tmp_path / "whole", calibration_text=text)
    monkeypatch.setattr(gptq, "compress", killed)
    with pytest.raises(Killed):
        compress(model, recipe(), tmp_path / "out", calibration_text=text)
    monkeypatch.setattr(gptq, "compress", choosing)
    folder = compress(model, recipe(), tmp_path / "out", calibration_text=text)
    assert digests(folder) == digests(whole)
    chosen = {name: encoding for name, encoding in open_checkpoint(folder).encodings.items() if ".1." in name}
    assert {str(encoding) for name, encoding in chosen.items() if "o_proj" in name} == {"affine6row"}
    assert len(set(map(str, chosen.values()))) == 3
    assert torch.isfinite(logits(folder)).all()


def test_partial_folder_of_another_job_is_discarded(model, tmp_path, text):
    fresh = digests(compress(model, "int4", tmp_path / "fresh"))
    partial = tmp_path / ".out.partial"
    partial.mkdir()
    (partial / ".resume.json").write_text('{"schema": 1, "key": "another"}')
    (partial / "model-00001-of-00006.safetensors").write_bytes(b"stale")
    assert digests(compress(model, "int4", tmp_path / "out")) == fresh


def test_run_killed_by_the_system_resumes(model, tmp_path, text):
    whole = compress(model, recipe(), tmp_path / "whole", calibration_text=text)
    program = (
        "import sys, pathlib; from edge.compress.run import compress; from edge.core.recipe import load_recipe\n"
        "compress(sys.argv[1], load_recipe(sys.argv[2]), pathlib.Path(sys.argv[3]), "
        "calibration_text=pathlib.Path(sys.argv[4]))"
    )
    (tmp_path / "test.toml").write_text(GPTQ)
    out, second = tmp_path / "out", tmp_path / ".out.partial" / "model-00002-of-00006.safetensors"
    arguments = [sys.executable, "-c", program, str(model), str(tmp_path / "test.toml"), str(out), str(text)]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[3])}
    process = subprocess.Popen(arguments, env=environment, stderr=subprocess.DEVNULL)
    while not second.exists() and process.poll() is None:
        time.sleep(0.001)
    process.send_signal(signal.SIGKILL)
    process.wait()
    folder = compress(model, recipe(), out, calibration_text=text, force=True)
    assert digests(folder) == digests(whole)


def test_full_disk_keeps_finished_work(model, tmp_path, monkeypatch):
    from edge.compress import partial

    real, written = partial.write_atomic, []

    def fill_up(path, data):
        if len(written) == 3:
            raise OSError(28, "No space left on device")
        written.append(path)
        real(path, data)

    monkeypatch.setattr(partial, "write_atomic", fill_up)
    with pytest.raises(EdgeError, match="no space") as caught:
        compress(model, "int4", tmp_path / "out")
    assert caught.value.code == "disk.full"
    assert len(list((tmp_path / ".out.partial").glob("*.safetensors"))) == 3
    assert not (tmp_path / "out").exists()


def refused(code, *args, **kwargs):
    with pytest.raises(EdgeError) as caught:
        compress(*args, **kwargs)
    assert caught.value.code == code and caught.value.hint
    return caught.value


def test_requests_that_cannot_be_met(model, tmp_path, text):
    out = tmp_path / "out"
    refused("calibration.missing", model, recipe(), out)
    refused("calibration.unreadable", model, recipe(), out, calibration_text=tmp_path / "none.txt")
    assert not (tmp_path / ".out.partial").exists()
    text.write_text("short")
    refused("calibration.short", model, recipe(), out, calibration_text=text)
    error = refused("method.unknown", model, recipe(GPTQ.replace('"gptq"', '"gptk"')), out)
    assert "gptq" in error.hint and isinstance(error, UsageError)
    refused("encoding.bits", model, recipe(GPTQ.replace("bits = 3", "bits = 1")), out)
    refused("encoding.group", model, recipe(GPTQ.replace("group_size = 32", "group_size = 48")), out)
    refused("recipe.option", model, recipe(GPTQ.replace("bits = 3", "bitz = 3")), out)
    untied = tiny_model("llama-rope", tmp_path / "untied")
    alone = EVERYTHING[: EVERYTHING.rindex("[[steps]]")]
    assert "embedding" in refused("recipe.module", untied, recipe(alone), out).hint


def test_an_embedding_without_inputs_is_left_to_a_later_step(tmp_path, text):
    untied = tiny_model("llama-rope", tmp_path / "untied")
    folder = compress(untied, recipe(EVERYTHING), tmp_path / "out", calibration_text=text)
    resolved = json.loads((folder / "config.json").read_text())["edge"]["resolved"]
    methods = {answer["module"]: answer["method"] for answer in resolved.values()}
    assert methods == {"embedding": "rtn", "linear": "gptq", "head": "gptq"}


def test_existing_output_and_compressed_input(model, tmp_path):
    folder = compress(model, "int4", tmp_path / "out")
    refused("output.exists", model, "int4", folder)
    refused("compress.twice", folder, "int4", tmp_path / "again")
    compress(model, "int8", folder, force=True)
    assert open_checkpoint(folder).recipe["name"] == "int8"


def test_short_text_gives_fewer_windows_and_says_so(model, tmp_path, text, capsys):
    text.write_text(TEXT[:100])
    compress(model, recipe(), tmp_path / "out", calibration_text=text)
    assert "3 windows of 32 tokens, not 4" in capsys.readouterr().err


def test_nan_weights_are_refused(model, tmp_path):
    import shutil

    from safetensors.torch import load_file, save_file

    broken = shutil.copytree(model, tmp_path / "broken")
    tensors = load_file(broken / "model.safetensors")
    tensors["model.layers.2.mlp.up_proj.weight"][0, 0] = float("nan")
    save_file(tensors, broken / "model.safetensors", metadata={"format": "pt"})
    assert "layers.2.mlp.up_proj" in refused("checkpoint.not_finite", broken, "int4", tmp_path / "out").message
