"""Tuning of a whole compressed model: it comes closer to the original, can be killed, and stores what it trained."""

import functools
from unittest.mock import Mock

import msgspec
import pytest
import torch

from edge.compress import fine_tuning
from edge.compress.methods import end_to_end
from edge.compress.run import compress
from edge.compress.self_generated import self_generated
from edge.compress.trainable import trainable
from edge.core.errors import UsageError
from edge.core.recipe import parse_recipe
from edge.core.weight import Affine, Codebook
from edge.kernels.testing import random_tensor
from edge.models.checkpoint import open_checkpoint
from edge.models.testing import tiny_model
from edge.models.tokenizer import tokenizer_of
from edge.models.torch_model import build_model

RECIPE = """
schema = 1
name = "test"
[calibration]
samples = 6
sequence_length = 32
[[steps]]
method = "rtn"
options = {bits = 2, group_size = 32}
"""
OPTIONS = "steps = 30, batch = 3, save_minutes = 0.0, rounding_rate = 0.05, learning_rate = 0.01"
TUNED = RECIPE + f'[[steps]]\nmethod = "end-to-end"\noptions = {{{OPTIONS}}}\n'
TEXT = "".join(f"Line {i}: the quick brown fox jumps over {i * i} lazy dogs.\n" for i in range(40))


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return tiny_model("llama", tmp_path_factory.mktemp("models") / "llama")


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    path = tmp_path_factory.mktemp("text") / "calibration.txt"
    path.write_text(TEXT)
    return path


def run(model, text, recipe, output):
    return compress(model, parse_recipe(recipe, "test"), output, calibration_text=text)


def divergence(original, folder):
    tokens = torch.tensor(tokenizer_of(folder)(TEXT)["input_ids"])[None, :200]
    logits = [build_model(open_checkpoint(path))(tokens).logits[0].log_softmax(-1) for path in (original, folder)]
    return torch.nn.functional.kl_div(logits[1], logits[0], log_target=True, reduction="batchmean").item()


def test_tuning_brings_a_model_closer_to_the_original(model, text, tmp_path):
    plain, tuned = run(model, text, RECIPE, tmp_path / "plain"), run(model, text, TUNED, tmp_path / "tuned")
    assert divergence(model, tuned) < 0.7 * divergence(model, plain)
    assert open_checkpoint(tuned).stored_bytes == open_checkpoint(plain).stored_bytes
    assert not [path for path in tuned.iterdir() if path.name.startswith(".")]


def test_scales_alone_keep_the_codes(model, text, tmp_path):
    plain = run(model, text, RECIPE, tmp_path / "plain")
    tuned = run(model, text, TUNED.replace("steps = 30", "steps = 5, rounding = false"), tmp_path / "tuned")
    name = next(iter(open_checkpoint(plain).encodings))
    first, second = (open_checkpoint(path).matrix(name).parts for path in (plain, tuned))
    assert (first["codes"] == second["codes"]).all()
    assert (first["scales"] != second["scales"]).any()


def test_a_killed_tuning_gives_the_same_bytes(model, text, tmp_path, monkeypatch):
    whole = run(model, text, TUNED.replace("steps = 30", "steps = 6"), tmp_path / "whole")
    step = fine_tuning.FineTuning.step

    def dies(self, number):
        if number == 4:
            raise KeyboardInterrupt
        return step(self, number)

    recipe, output = TUNED.replace("steps = 30", "steps = 6"), tmp_path / "killed"
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(fine_tuning.FineTuning, "step", dies)
        run(model, text, recipe, output)
    numbers = []
    monkeypatch.setattr(fine_tuning.FineTuning, "step", lambda self, n: (numbers.append(n), step(self, n))[1])
    killed = run(model, text, recipe, output)
    assert numbers == [4, 5]
    for path in sorted(whole.glob("*.safetensors")):
        assert path.read_bytes() == (killed / path.name).read_bytes()


@pytest.mark.parametrize("grid", ["symmetric", "zero_point", "half_integer"])
@pytest.mark.parametrize("rounding", [True, False])
def test_an_untrained_matrix_is_what_it_was(grid, rounding):
    tensor = random_tensor(20, 96, Affine(3, 64, grid))
    matrix = trainable(tensor, rounding=rounding)
    assert torch.equal(matrix().detach(), torch.from_numpy(tensor.dequantize()))
    assert all((matrix.tensor().parts[part] == values).all() for part, values in tensor.parts.items())


@pytest.mark.parametrize("encoding", [Codebook(3), Codebook(4, scale="row", table_rows=4), Codebook(4, dim=2)])
def test_what_is_trained_is_what_is_stored(encoding):
    tensor = random_tensor(24, 128, encoding)
    matrix = trainable(tensor, rounding=True)
    assert torch.equal(matrix().detach(), torch.from_numpy(tensor.dequantize()))
    wanted = torch.randn(24, 128)
    errors = []
    adam = torch.optim.Adam(matrix.parameters(), lr=0.03)
    for _ in range(40):
        loss = (matrix() - wanted).square().mean()
        errors.append(loss.item())
        loss.backward()
        adam.step()
        adam.zero_grad()
    assert errors[-1] < 0.9 * errors[0]
    assert torch.equal(matrix().detach(), torch.from_numpy(matrix.tensor().dequantize()))


def test_wrong_uses_are_refused(model, text, tmp_path):
    swapped = RECIPE.replace("bits = 2, group_size = 32", "steps = 1").replace("rtn", "end-to-end")
    swapped += '[[steps]]\nmethod = "rtn"\n'
    with pytest.raises(UsageError, match="finished model"):
        run(model, text, swapped, tmp_path / "out")
    with pytest.raises(msgspec.ValidationError, match="at least 1"):
        msgspec.convert({"steps": 0}, end_to_end.Options)


def test_tuning_on_text_that_the_model_writes_itself(model, text, tmp_path):
    """It depends on the seed alone, and takes another way than the calibration text."""
    options = "steps = 4, generated = 12"
    first, second = (
        run(model, text, TUNED.replace("steps = 30", options), tmp_path / name) for name in ("first", "second")
    )
    plain = run(model, text, TUNED.replace("steps = 30", "steps = 4"), tmp_path / "plain")
    same, other = zip(*(stored_files(folder) for folder in (first, second)), strict=True), stored_files(plain)
    assert all(a == b for a, b in same)
    assert any(a != b for a, b in zip(stored_files(first), other, strict=True))
    assert not [path for path in first.iterdir() if path.name.startswith(".")]


def stored_files(folder):
    return [path.read_bytes() for path in sorted(folder.glob("*.safetensors"))]


def test_short_windows_leave_room_to_write(model, tmp_path):
    windows = torch.arange(12).view(2, 6)
    found = self_generated(build_model(open_checkpoint(model)), windows, 3, 0, tmp_path / "state")
    assert found.shape == (3, 6)
    beginnings = {tuple(row[i : i + 3].tolist()) for row in windows for i in range(4)}
    assert {tuple(row[:3].tolist()) for row in found} <= beginnings


def test_compiled_layers_learn_the_same(model, text, tmp_path, monkeypatch):
    # What the compiler's back end makes of it is the same code, and takes most of a minute.
    compiler = Mock(side_effect=functools.partial(torch.compile, backend="aot_eager"))
    monkeypatch.setattr(torch, "compile", compiler)
    folders = []
    for compiled in ("false", "true"):
        recipe = TUNED.replace("steps = 30", f"steps = 3, compiled = {compiled}")
        folders.append(run(model, text, recipe, tmp_path / compiled))
    name = next(iter(open_checkpoint(folders[0]).encodings))
    plain, compiled = (open_checkpoint(folder).matrix(name).dequantize() for folder in folders)
    assert abs(plain - compiled).max() < 1e-2 * abs(plain).max()
    assert compiler.call_count == 2 * len(open_checkpoint(model).spec.layers) + 1
