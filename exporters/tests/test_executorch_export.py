"""ExecuTorch programs: what is written is what was compressed, and computes what the other engines compute."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from edge.compress.run import compress
from edge.core.bundle import Bundle
from edge.core.recipe import Recipe, Step
from edge.core.session import SessionOptions
from edge.exporters.onnx import export as onnx
from edge.models.checkpoint import Checkpoint, open_checkpoint
from edge.models.testing import tiny_model
from edge.runtimes.onnx import open as open_onnx
from edge.runtimes.torch import open_folder

pytest.importorskip("executorch", reason='pip install "edge-deploy[executorch]"')
from edge.exporters.executorch import export as executorch
from edge.runtimes.executorch import open as open_session

CONTEXT = 100
TOKENS = np.random.default_rng(1).integers(3, 160, 90).tolist()
ONE_THREAD = SessionOptions(threads=1)
INT4 = {"bits": 4, "group_size": 32}


def quantized(
    folder: Path, family: str, options: dict[str, Any], activations: Any = "a8", rules: Any = ()
) -> Checkpoint:
    model = tiny_model(family, folder / "model")
    step = Step("rtn", {"search": False, **options}, list(rules))
    return open_checkpoint(compress(model, Recipe([step], activations=activations), folder / "small"))


def exported(checkpoint: Checkpoint, folder: Path, kernels: Any = "edge", kv_cache: Any = None, module: Any = None):
    folder.mkdir()
    write = (module or executorch).write
    return Bundle(folder, write(checkpoint, folder, kernels=kernels, context_length=CONTEXT, kv_cache=kv_cache))


def logits_of(session: Any) -> NDArray[np.float32]:
    """A prefill of more tokens than a call gives logits for, then decode steps."""
    return np.concatenate([session.prefill(TOKENS[:80], all_logits=True), *map(session.decode, TOKENS[80:])])


@pytest.mark.parametrize("family", ["llama", "qwen3", "gpt2", "gemma2"])
def test_three_engines_agree(family: str, tmp_path: Path) -> None:
    """The same codes everywhere; logits as far apart as sums in another order are."""
    checkpoint = quantized(tmp_path, family, INT4, "f32")
    ours = exported(checkpoint, tmp_path / "pte", kv_cache="float32")
    assert executorch.codes_equal(checkpoint, ours.path, ours.manifest)
    found = logits_of(open_session(ours, ONE_THREAD))
    np.testing.assert_allclose(found, logits_of(open_folder(checkpoint, CONTEXT)), rtol=0, atol=1e-4)
    other = exported(checkpoint, tmp_path / "onnx", kv_cache="float32", module=onnx)
    np.testing.assert_allclose(found, logits_of(open_onnx(other, ONE_THREAD)), rtol=0, atol=1e-5)


@pytest.mark.parametrize("kv_cache", ["float32", "float16", "int8"])
def test_int8_activations_and_caches_give_onnx_runtimes_bits(kv_cache: str, tmp_path: Path) -> None:
    """A llama is edge's operators and nothing else: both engines hand them the same numbers."""
    checkpoint = quantized(tmp_path, "llama", INT4)
    ours = exported(checkpoint, tmp_path / "pte", kv_cache=kv_cache)
    other = exported(checkpoint, tmp_path / "onnx", kv_cache=kv_cache, module=onnx)
    assert ours.manifest.kv_cache == other.manifest.kv_cache
    assert np.array_equal(logits_of(open_session(ours, ONE_THREAD)), logits_of(open_onnx(other, ONE_THREAD)))
