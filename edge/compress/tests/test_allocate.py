"""Allocation: the solver against brute force, predictions against measurements, and what comes out of a recipe."""

import itertools
import json

import msgspec
import numpy as np
import pytest
import torch

from edge.compress import layerwise
from edge.compress.calibrate import token_windows
from edge.compress.methods import allocate
from edge.compress.methods._divergence import MeasuredWalk
from edge.compress.methods._fisher import FisherWalk
from edge.compress.methods._knapsack import Class, solve
from edge.compress.methods._latency import kernel_times
from edge.compress.run import compress
from edge.core.errors import EdgeError, UsageError
from edge.core.recipe import Calibration, Recipe, Resolved, parse_recipe
from edge.core.weight import Affine
from edge.models.checkpoint import open_checkpoint
from edge.models.testing import tiny_model
from edge.models.torch_model import build_model

TEXT = "".join(f"Line {i}: the quick brown fox jumps over {i * i} lazy dogs.\n" for i in range(40))
CHOICES = """choices = [
  {method = "rtn", options = {bits = 2, group_size = 32}},
  {method = "rtn", options = {bits = 4, group_size = 32}},
  {method = "rtn", options = {bits = 3, group_size = 32}},
  {method = "rtn", options = {bits = 8, group_size = 32}},
]"""
CALIBRATED = CHOICES.replace("rtn", "gptq", 2)
TOML = """
schema = 1
name = "test"
calibration = {samples = 4, sequence_length = 32}
[[steps]]
method = "allocate"
"""


def recipe(options, rules="", choices=CHOICES):
    return parse_recipe(f"{TOML}rules = [{rules}]\n[steps.options]\n{options}\n{choices}\n", "test")


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return tiny_model("llama", tmp_path_factory.mktemp("models") / "llama", num_hidden_layers=3)


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    path = tmp_path_factory.mktemp("text") / "calibration.txt"
    path.write_text(TEXT)
    return path


@pytest.fixture(scope="module")
def allocated(model, text, tmp_path_factory):
    asked = recipe("bits_per_weight = 5.0", choices=CALIBRATED)
    return compress(model, asked, tmp_path_factory.mktemp("allocated") / "out", calibration_text=text)


def refused(code, *args, **kwargs):
    with pytest.raises(EdgeError) as caught:
        compress(*args, **kwargs)
    assert caught.value.code == code and caught.value.hint
    return caught.value


def section(folder):
    return json.loads((folder / "config.json").read_text())["edge"]


def random_classes(generator, count, choices, whole):
    for _ in range(count):
        size = generator.integers(1, choices + 1)
        costs = generator.integers(0, 50, size) if whole else generator.random(size)
        yield Class(generator.integers(0, 30, size), costs.astype(float))


@pytest.mark.parametrize("whole", [True, False])
def test_the_best_of_all_selections_is_found(whole):
    generator = np.random.default_rng(0)
    for _ in range(150):
        classes = list(random_classes(generator, generator.integers(1, 6), 4, whole))
        budget = int(sum(one.weights.min() for one in classes) + generator.integers(0, 40))
        picks = solve(classes, budget)

        def total(selection, of, classes=classes):
            return sum(getattr(one, of)[pick] for one, pick in zip(classes, selection, strict=True))

        every = itertools.product(*(range(len(one.costs)) for one in classes))
        best = min(total(selection, "costs") for selection in every if total(selection, "weights") <= budget)
        assert total(picks, "weights") <= budget and total(picks, "costs") == pytest.approx(best, abs=1e-9)


def test_a_large_model_is_solved_exactly():
    """Against the textbook's table over every weight."""
    generator = np.random.default_rng(1)
    classes = [
        Class(size * np.arange(2, 9), np.exp(generator.normal() * 2) * size * 4.0 ** -np.arange(2, 9))
        for size in generator.choice([4, 12, 32], 120)
    ]
    budget = int(3.3 * sum(one.weights[0] / 2 for one in classes))
    table = np.zeros(budget + 1)
    for one in classes:
        options = [
            np.concatenate((np.full(w, np.inf), table[: budget + 1 - w])) + c
            for w, c in zip(one.weights, one.costs, strict=True)
        ]
        table = np.min(options, axis=0)
    picks = solve(classes, budget)
    assert sum(one.costs[pick] for one, pick in zip(classes, picks, strict=True)) == pytest.approx(table.min())
    with pytest.raises(ValueError, match="too small"):
        solve(classes, sum(int(one.weights[0]) for one in classes) - 1)


def trials_of(checkpoint, *choices):
    return {
        name: [allocate.Choice(method, {"bits": bits, "group_size": 32}).task(Resolved(0, method, {}, kind))]
        for name, kind in checkpoint.spec.matrices()
        for method, bits in choices
    }


def spearman(a, b):
    return np.corrcoef(np.argsort(np.argsort(a)), np.argsort(np.argsort(b)))[0, 1]


@pytest.mark.parametrize("family", ["llama", "llama-rope", "gemma2", "gpt2", "phi3"])
def test_predictions_are_near_the_measured_divergence(family, tmp_path):
    """Every matrix changed by itself, tied and untied heads, scores and logits capped, fused and turned matrices."""
    checkpoint = open_checkpoint(tiny_model(family, tmp_path / "model", num_hidden_layers=3))
    text = TEXT * 3
    windows = token_windows(text, tmp_path / "model", Calibration(samples=16, sequence_length=64), 128)
    trials = trials_of(checkpoint, ("rtn", 4))
    tick = lambda *_: None  # noqa: E731
    predicted = FisherWalk(checkpoint, trials, windows, "rounding", scratch=tmp_path, seed=0).run(tick)
    measured = MeasuredWalk(checkpoint, trials, windows[::4], "rounding").run(tick)
    pairs = np.array([(predicted[name][0].divergence, measured[name][0].divergence) for name in trials])
    assert spearman(*pairs.T) > 0.75
    assert pairs.sum(0)[0] == pytest.approx(pairs.sum(0)[1], rel=0.25)
    assert not list(tmp_path.glob("*.npy"))


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_a_measured_divergence_is_that_of_the_whole_model(family, tmp_path):
    checkpoint = open_checkpoint(tiny_model(family, tmp_path / "model"))
    windows = torch.arange(3, 67).reshape(2, 32)
    trials = trials_of(checkpoint, ("rtn", 3))
    measured = MeasuredWalk(checkpoint, trials, windows, "rounding").run(lambda *_: None)
    model = build_model(checkpoint)
    with torch.no_grad():
        original = model(windows).logits.log_softmax(-1)
        for name in (f"{checkpoint.spec.embedding}.weight", checkpoint.spec.layers[1].mlp.down.weight):
            parameter = model.get_parameter(name)
            kept = parameter.clone()
            changed = torch.from_numpy(
                trials[name][0].run(name, torch.from_numpy(checkpoint.matrix(name).dequantize()), None).dequantize()
            )
            parameter.copy_(changed.T if name in checkpoint.spec.transposed else changed)
            logits = model(windows).logits.log_softmax(-1)
            expected = (original.exp() * (original - logits)).sum(-1).mean()
            assert measured[name][0].divergence == pytest.approx(float(expected), rel=1e-3)
            parameter.copy_(kept)


def test_what_is_written_keeps_the_budget_and_can_be_repeated(allocated, model, text, tmp_path):
    compressed = open_checkpoint(allocated)
    bits = 8 * compressed.stored_bytes / compressed.parameters
    assert 4.8 < bits <= 5.0
    about = section(allocated)
    assert set(about["resolved"]) == set(compressed.encodings) == {name for name, _ in compressed.spec.matrices()}
    assert len({(entry["method"], entry["options"]["bits"]) for entry in about["resolved"].values()}) > 2
    summary = about["planning"]["summary"]
    assert summary["used"]["bits_per_weight"] == pytest.approx(bits, abs=1e-3)
    assert about["planning"]["recipe"]["steps"][0]["method"] == "allocate"
    again = compress(model, msgspec.convert(about["recipe"], Recipe), tmp_path / "again", calibration_text=text)
    for path in allocated.glob("*.safetensors"):
        assert path.read_bytes() == (again / path.name).read_bytes()
    assert not [path.name for path in allocated.iterdir() if path.name.startswith(".")]


def test_a_better_choice_than_the_same_for_all(model, text, tmp_path):
    """At no more bytes than 4 bits everywhere take."""
    same = parse_recipe('schema = 1\n[[steps]]\nmethod = "rtn"\noptions = {bits = 4, group_size = 32}', "test")
    uniform = compress(model, same, tmp_path / "uniform")
    size = open_checkpoint(uniform).stored_bytes / 1e6
    each = ", ".join(f'{{method = "rtn", options = {{bits = {bits}, group_size = 32}}}}' for bits in (3, 4, 5, 6))
    mixed = compress(
        model, recipe(f"size_mb = {size}", choices=f"choices = [{each}]"), tmp_path / "mixed", calibration_text=text
    )
    assert open_checkpoint(mixed).stored_bytes <= open_checkpoint(uniform).stored_bytes
    ids = torch.arange(3, 103).reshape(2, 50)
    original, *found = (build_model(open_checkpoint(f))(ids).logits.log_softmax(-1) for f in (model, uniform, mixed))
    divergences = [float((original.exp() * (original - logits)).sum(-1).mean()) for logits in found]
    assert divergences[1] < 0.9 * divergences[0]


def test_a_run_that_goes_on_does_not_plan_again(allocated, model, text, tmp_path, monkeypatch):
    class Killed(BaseException):
        pass

    def die(*_):
        raise Killed

    asked = recipe("bits_per_weight = 5.0", choices=CALIBRATED)
    with monkeypatch.context() as patched:
        patched.setattr(layerwise.LayerwiseRun, "_layer", die)
        with pytest.raises(Killed):
            compress(model, asked, tmp_path / "out", calibration_text=text)
    monkeypatch.setattr(FisherWalk, "run", die)
    folder = compress(model, asked, tmp_path / "out", calibration_text=text)
    assert {p.name: p.read_bytes() for p in folder.iterdir()} == {p.name: p.read_bytes() for p in allocated.iterdir()}


def test_a_choice_for_every_layer_and_rules(model, text, tmp_path):
    rules = '{module = "embedding", options = {choices = [{method = "rtn", options = {bits = 5}}]}},'
    rules += '{name = "*.0.*", exclude = true}'
    asked = recipe('size_mb = 0.1625\ngroup = "layer"\nsensitivity = "kl"\nestimate = "method"', rules, CALIBRATED)
    folder = compress(model, asked, tmp_path / "out", calibration_text=text)
    resolved = section(folder)["resolved"]
    assert resolved["model.embed_tokens.weight"]["options"] == {"bits": 5}
    assert not any(".0." in name for name in resolved)
    bits = [{e["options"]["bits"] for n, e in resolved.items() if f"layers.{i}." in n} for i in (1, 2)]
    assert [len(given) for given in bits] == [1, 1] and bits[0] != bits[1]


def test_more_than_enough_gives_the_best_of_all(model, text, tmp_path, capsys):
    folder = compress(model, recipe("size_mb = 5"), tmp_path / "out", calibration_text=text)
    assert {entry["options"]["bits"] for entry in section(folder)["resolved"].values()} == {8}
    said = capsys.readouterr().err
    assert "room for the best choice of every matrix" in said
    assert "down_proj" in said and "Predicted: KL divergence" in said


def kernel_row(encoding, k, n, us, threads=1, m=1):
    name = f"{encoding}_{k}x{n}_m{m}_t{threads}"
    shape = {"m": m, "k": k, "n": n, "threads": threads}
    return {"name": name, "activations": "a8", **shape, "median_us": us, "gb_per_s": 10.0}


def test_a_latency_is_kept_by_the_times_of_the_kernels(model, text, tmp_path, capsys):
    table = tmp_path / "kernels.json"
    rows = [kernel_row("affine2g32", 64, 64, 1.0), kernel_row("affine4g32", 64, 64, 3.0)]
    rows += [kernel_row("affine3g32", 64, 64, 9.0), kernel_row("affine8g32-avx2", 64, 64, 0.1)]
    table.write_text(json.dumps({"rows": [*rows, kernel_row("affine4g32", 64, 64, 0.1, threads=2)]}))
    # 6 matrices and a half of 64 x 64 to a layer, and the tied head: all at 4 bits take more
    options = f'latency_ms = 0.04\nkernels = "{table}"'
    folder = compress(model, recipe(options), tmp_path / "out", calibration_text=text)
    checkpoint = open_checkpoint(folder)
    said = capsys.readouterr().err
    assert "No kernel was measured for affine8g32: bytes at 10.0 GB/s" in " ".join(said.split())
    times = {2: 1.0, 4: 3.0, 3: 9.0}
    took = 0.0
    for name, encoding in checkpoint.encodings.items():
        rows, columns = checkpoint.matrix_shape(name)
        weights = rows * columns
        by_bytes = checkpoint.matrix(name).stored_bytes / 1e4
        took += by_bytes if encoding.bits == 8 else times[encoding.bits] * weights / 4096
    used = section(folder)["planning"]["summary"]["used"]["latency_ms"]
    assert used == pytest.approx(took / 1e3, abs=2e-4) and used <= 0.04


def test_a_table_of_kernels_as_a_command_prints_it(tmp_path):
    path = tmp_path / "rows.json"
    path.write_text(
        json.dumps([kernel_row("affine4g64", 576, 1536, 10.0), kernel_row("affine4g64", 2048, 8192, 400.0)])
    )
    times = kernel_times(str(path), None, 1, "a8")
    assert times.nanoseconds(Affine(4, 64), 0, (1536, 576)) == 10_000
    assert times.nanoseconds(Affine(4, 64), 0, (4096, 2048)) == 200_000
    assert times.nanoseconds(Affine(3, 64), 400_000, (1000, 1000)) == 40_000 and times.by_bandwidth == {"affine3g64"}
    for wrong in ("nothing.json", "rows.json"):
        with pytest.raises(UsageError) as caught:
            kernel_times(str(tmp_path / wrong), None, 2, "a8")
        assert "edge bench kernels" in caught.value.hint


def test_requests_that_cannot_be_met(model, text, tmp_path, monkeypatch):
    out = tmp_path / "out"

    def fail(*_):
        raise AssertionError("measured before the request was checked")

    monkeypatch.setattr(FisherWalk, "run", fail)
    small = refused("allocate.budget", model, recipe("bits_per_weight = 1.0"), out, calibration_text=text)
    assert "the smallest choices need 2." in small.message and "bits_per_weight = 2." in small.hint
    refused("allocate.budget", model, recipe(""), out, calibration_text=text)
    refused("calibration.missing", model, recipe("size_mb = 1"), out)
    for options in ("size_mb = 1\nbits_per_weight = 3", "size_mb = -1", "latency_ms = 5", "size_mb = 1\nthreads = 0"):
        refused("recipe.option", model, recipe(options), out, calibration_text=text)
    for choice, code in (
        ('method = "smoothquant"', "recipe.option"),
        ('method = "gptk"', "method.unknown"),
        ('method = "rtn", options = {bitz = 3}', "recipe.option"),
        ('method = "rtn", options = {bits = 1}', "encoding.bits"),
    ):
        asked = recipe("size_mb = 1", choices=f"choices = [{{{choice}}}]")
        refused(code, model, asked, out, calibration_text=text)
    budget_by_rule = '{name = "*.0.*", options = {size_mb = 2}}'
    refused("recipe.option", model, recipe("size_mb = 1", budget_by_rule), out, calibration_text=text)
    twice = parse_recipe(f'{TOML}options = {{size_mb = 1}}\n[[steps]]\nmethod = "allocate"', "test")
    refused("recipe.plans", model, twice, out, calibration_text=text)
    untied = tiny_model("llama", tmp_path / "untied", tie_word_embeddings=False)
    only_calibrated = recipe("size_mb = 1", choices='choices = [{method = "gptq"}]')
    assert "rtn" in refused("recipe.module", untied, only_calibrated, out, calibration_text=text).hint
