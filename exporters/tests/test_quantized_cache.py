"""A model that was compressed for a quantized cache: the exported graph keeps it, and says so."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from safetensors.numpy import save_file

from edge.compress.run import compress
from edge.core.bundle import Bundle
from edge.core.cache import CacheFormat
from edge.core.errors import UsageError
from edge.core.recipe import Recipe, Step
from edge.core.session import SessionOptions
from edge.exporters.onnx.export import write
from edge.models.checkpoint import Checkpoint, open_checkpoint
from edge.models.spec import cache_shapes
from edge.models.testing import tiny_model
from edge.runtimes.onnx import open as open_session
from edge.runtimes.torch import open_folder

CONTEXT = 48
FORMATS = [CacheFormat(3, 4, 1), CacheFormat(8, 2, 0)]
TOKENS = np.random.default_rng(1).integers(3, 160, 44).tolist()


def constants(checkpoint: Checkpoint) -> dict[str, np.ndarray]:
    """Levels for keys and values of about one, the middles between them; of 8 bits scale and offset."""
    made = {}
    for name, shape in cache_shapes(checkpoint.spec, FORMATS).items():
        if name.endswith("key_levels") and shape[-1] == 2:
            made[name] = np.broadcast_to([3 / 127, 0.1], shape)
        elif name.endswith("levels"):
            made[name] = np.broadcast_to(np.linspace(-1, 1, shape[-1]) * (2 if "key" in name else 1), shape)
        else:
            levels = made[name.replace("bounds", "levels")]
            made[name] = (levels[..., 1:] + levels[..., :-1])[..., : shape[-1]] / 2
    return {name: np.ascontiguousarray(array, np.float32) for name, array in made.items()}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    """A tiny Qwen3 (norms of heads) at 8 bits, with a cache of other bits in each layer."""
    folder = tmp_path_factory.mktemp("cache")
    recipe = Recipe([Step("rtn", {"search": False, "bits": 8, "group_size": 32}, [])], activations="f32")
    small = compress(tiny_model("qwen3", folder / "model"), recipe, folder / "small")
    added = constants(open_checkpoint(small))
    save_file(added, small / "cache.safetensors")
    _edit(
        small / "model.safetensors.index.json",
        lambda index: index["weight_map"].update(dict.fromkeys(added, "cache.safetensors")),
    )
    formats = msgspec.to_builtins(FORMATS)
    _edit(small / "config.json", lambda config: config["quantization_config"].update(kv_cache=formats))
    return open_checkpoint(small)


def _edit(path: Path, change: Any) -> None:
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def logits_of(session: Any) -> np.ndarray:
    """A prefill past the fp16 tile, then steps into the next one."""
    steps = [session.decode(token) for token in TOKENS[20:]]
    return np.concatenate([session.prefill(TOKENS[:20], all_logits=True), *steps])


def test_the_exported_cache_is_that_of_pytorch(checkpoint, tmp_path):
    """Far closer to the model with this cache than that is to the one without."""
    manifest = write(checkpoint, tmp_path, kernels="edge", context_length=CONTEXT)
    found = logits_of(open_session(Bundle(tmp_path, manifest), SessionOptions(threads=1)))
    expected = logits_of(open_folder(checkpoint, CONTEXT))
    checkpoint.cache_formats, formats = None, checkpoint.cache_formats
    plain = logits_of(open_folder(checkpoint, CONTEXT))
    checkpoint.cache_formats = formats
    assert np.abs(found - expected).max() < 0.02
    assert np.abs(plain - expected).max() > 0.2


def test_the_manifest_says_the_bits(checkpoint, tmp_path):
    cache = write(checkpoint, tmp_path, kernels="edge", context_length=CONTEXT, kv_cache="quantized").kv_cache
    assert (cache.dtype, cache.formats) == ("quantized", FORMATS)
    coded = (3 + 4 + 32 / 32 + 2 * 24 / 32 + 8 + 2 + 32 / 32) / 4  # scales, and outliers of the first layer
    assert cache.bits_per_element == pytest.approx((16 * 16 + 32 * coded) / 48)


@pytest.mark.parametrize("options", [{"kernels": "edge", "kv_cache": "float16"}, {"kernels": "builtin"}], ids=str)
def test_another_cache_is_refused(checkpoint, tmp_path, options):
    with pytest.raises(UsageError, match="compressed for a quantized cache"):
        write(checkpoint, tmp_path, context_length=CONTEXT, **options)


def test_a_model_without_one_is_refused(tmp_path):
    plain = open_checkpoint(tiny_model("llama", tmp_path / "model"))
    with pytest.raises(UsageError, match="nothing of a quantized cache"):
        write(plain, tmp_path, kernels="edge", context_length=CONTEXT, kv_cache="quantized")
