"""A quantized KV cache from recipe to evaluation: constants are found, written, loaded, and used as a device would."""

from itertools import pairwise

import numpy as np
import pytest
import torch

from edge.compress.methods import _cache_walk, kv_cache
from edge.compress.run import compress
from edge.core.cache import CacheFormat
from edge.core.errors import EdgeError, UsageError
from edge.core.recipe import parse_recipe
from edge.models.checkpoint import open_checkpoint
from edge.models.testing import tiny_model
from edge.models.torch_model import build_model
from edge.runtimes.torch import open_folder

RECIPE = """
schema = 1
name = "cache"
activations = "f32"
[calibration]
samples = 3
sequence_length = 48
[[steps]]
method = "kv_cache"
options = {OPTIONS}
"""
TEXT = "".join(f"Line {i}: the quick brown fox jumps over {i * i} lazy dogs.\n" for i in range(40))
TOKENS = [3 + (7 * i * i + i) % 90 for i in range(48)]
FAMILIES = ["llama", "qwen3", "gemma3_text", "phi3", "gpt2"]


@pytest.fixture
def text(tmp_path):
    path = tmp_path / "calibration.txt"
    path.write_text(TEXT)
    return path


def recipe(options="bits = 3"):
    return parse_recipe(RECIPE.replace("OPTIONS", options), "test")


def logits(folder, tokens=TOKENS):
    return open_folder(open_checkpoint(folder), 64).prefill(tokens, all_logits=True)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_text_at_once_equals_token_by_token(family, tmp_path, text):
    folder = compress(tiny_model(family, tmp_path / "model"), recipe(), tmp_path / "out", calibration_text=text)
    session = open_folder(open_checkpoint(folder), 64)
    at_once = session.prefill(TOKENS, all_logits=True)
    stepwise = [session.prefill(TOKENS[:4])] + [session.decode(token) for token in TOKENS[4:]]
    difference = np.abs(np.concatenate(stepwise) - at_once[3:]).max(-1)
    # Matrix products of other shapes round differently, which may take an element over the edge between two codes.
    assert np.median(difference) < 1e-4 and difference.max() < 0.2
    exact = logits(tmp_path / "model")
    assert np.abs(at_once - exact)[:16].max() < 0.02  # the first tokens stay in half precision
    assert np.abs(at_once - exact)[16:].max() > 0.02


def test_more_bits_come_nearer_to_the_original_and_eight_are_next_to_it(tmp_path, text):
    model = tiny_model("llama", tmp_path / "model", num_hidden_layers=1)
    exact = logits(model)
    errors = []
    for bits in (2, 3, 4, 8):
        folder = compress(model, recipe(f"bits = {bits}"), tmp_path / str(bits), calibration_text=text)
        checkpoint = open_checkpoint(folder)
        assert checkpoint.cache_formats == [CacheFormat(bits, bits, 1)]
        errors.append(np.square(logits(folder) - exact).mean())
    assert all(more < less / 2 for less, more in pairwise(errors))
    assert errors[-1] < errors[0] / 100


def test_transformers_loads_the_folder_with_its_cache(tmp_path, text):
    from transformers import AutoModelForCausalLM

    steps = 'bits = 4, key_bits = 8}\n[[steps]]\nmethod = "rtn"\noptions = {'
    with pytest.raises(UsageError, match="put it last"):
        parsed = parse_recipe(RECIPE.replace("OPTIONS", steps), "test")
        compress(tiny_model("llama", tmp_path / "m"), parsed, tmp_path / "out", calibration_text=text)
    two = RECIPE.replace('method = "kv_cache"', 'method = "rtn"\n[[steps]]\nmethod = "kv_cache"')
    parsed = parse_recipe(two.replace("OPTIONS", "bits = 4, key_bits = 8"), "test")
    folder = compress(tmp_path / "m", parsed, tmp_path / "out", calibration_text=text)
    ours = build_model(open_checkpoint(folder))
    theirs = AutoModelForCausalLM.from_pretrained(folder)
    ids = torch.tensor([TOKENS])
    with torch.no_grad():
        torch.testing.assert_close(theirs(ids).logits, ours(ids).logits)


def test_the_same_inputs_give_the_same_bytes_and_a_killed_run_goes_on(tmp_path, text, monkeypatch):
    model = tiny_model("llama", tmp_path / "model", num_hidden_layers=3)
    whole = compress(model, recipe("bits = 2"), tmp_path / "whole", calibration_text=text)
    fitted = []

    def killed_in_the_second(layer, samples, options, fit=kv_cache._fit):
        if len(fitted) == 1:
            raise KeyboardInterrupt
        fitted.append(layer.name)
        return fit(layer, samples, options)

    with monkeypatch.context() as patched:
        patched.setattr(kv_cache, "_fit", killed_in_the_second)
        with pytest.raises(KeyboardInterrupt):
            compress(model, recipe("bits = 2"), tmp_path / "resumed", calibration_text=text)
    monkeypatch.setattr(_cache_walk.CacheWalk, "_forwards", lambda *_: pytest.fail("walked forwards again"))
    resumed = compress(model, recipe("bits = 2"), tmp_path / "resumed", calibration_text=text)
    names = sorted(path.name for path in whole.iterdir())
    assert names == sorted(path.name for path in resumed.iterdir()) and "kv_cache.safetensors" in names
    assert all((whole / name).read_bytes() == (resumed / name).read_bytes() for name in names)


def test_mixed_bits_keep_the_mean_and_go_where_they_help(tmp_path, text):
    model = tiny_model("llama", tmp_path / "model", num_hidden_layers=3)
    folder = compress(model, recipe("bits = 3, mixed = true"), tmp_path / "out", calibration_text=text)
    formats = open_checkpoint(folder).cache_formats
    assert sum(f.key_bits + f.value_bits for f in formats) == 3 * 6
    found = [
        {
            f"{side}.{bits}.damage": torch.tensor(weight * 4.0**-bits)
            for side in ("keys", "values")
            for bits in (2, 3, 4)
        }
        for weight in (1.0, 100.0)
    ]
    assert kv_cache._chosen_bits(found, kv_cache.Options(mixed=True)) == [(2, 2), (4, 4)]


def test_q_norm_restores_mean_and_deviation():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(4000, 1, 8, generator=generator) * 3 + 2
    samples = _cache_walk.Samples(x, torch.ones_like(x), x, torch.ones_like(x))
    for normed in (False, True):
        options = kv_cache.Options(bits=2, outliers=0, q_norm=normed)
        side = kv_cache.fit_keys(samples, CacheFormat(2, 2, 0), options)
        codes = (x[..., None] > side.bounds).sum(-1)
        decoded = side.levels.expand(4000, 1, 8, 4).gather(-1, codes[..., None])[..., 0]
        loss = (x.std(0) - decoded.std(0)).abs().max()
        assert (loss < 1e-3) == normed
        torch.testing.assert_close(decoded.mean(0), x.mean(0), atol=5e-3, rtol=0)


def test_fisher_weights_decide_where_levels_lie():
    """Two clusters far from zero matter, all others don't: a level goes to each."""
    x = torch.cat([torch.linspace(-1, 1, 900), torch.full((50,), 3.0), torch.full((50,), 4.0)])[:, None, None]
    x = x.expand(-1, 1, 8).contiguous()
    gradients = torch.where(x > 2, 1.0, 1e-6)
    samples = _cache_walk.Samples(x, gradients, x, gradients)
    side = kv_cache.fit_keys(samples, CacheFormat(2, 2, 0), kv_cache.Options(bits=2, outliers=0, q_norm=False))
    assert (side.levels[0, 0, -2:] - torch.tensor([3.0, 4.0])).abs().max() < 0.01


def test_what_is_refused(tmp_path, text):
    for options in ("bits = 5", "outliers = 0.5", "mixed = true, key_bits = 2"):
        with pytest.raises(UsageError):
            compress(tiny_model("llama", tmp_path / "m"), recipe(options), tmp_path / "out", calibration_text=text)
    folder = compress(tmp_path / "m", recipe(), tmp_path / "out", calibration_text=text)
    (folder / "kv_cache.safetensors").write_bytes((folder / "model-00001-of-00004.safetensors").read_bytes())
    with pytest.raises(EdgeError, match="KV cache"):
        open_checkpoint(folder)
