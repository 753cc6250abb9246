"""Partly binarized weights from the checkpoint to ONNX Runtime."""

from collections import Counter
from contextlib import closing

import edge
from edge.core.recipe import parse_recipe
from edge.models.testing import tiny_model

RECIPE = """
schema = 1
[calibration]
samples = 4
sequence_length = 32
[[steps]]
method = "binary_ptq"
options = {salient = 0.5}
rules = [{module = "embedding", exclude = true}, {module = "head", exclude = true}]
[[steps]]
method = "rtn"
options = {bits = 8, group_size = 32}
"""


def test_a_partly_binary_model_runs_in_onnx_runtime(tmp_path):
    """An export is held against PyTorch before it takes its name: codes by bits, logits by divergence."""
    text = tmp_path / "text.txt"
    text.write_text("".join(f"Line {i}: the quick brown fox jumps over {i * i} lazy dogs.\n" for i in range(40)))
    model = tiny_model("llama", tmp_path / "model")
    folder = edge.compress(model, parse_recipe(RECIPE, "test"), tmp_path / "small", calibration_text=text)
    bundle = edge.export(folder, tmp_path / "bundle", context_length=64)
    kinds = Counter(str(encoding)[:6] for encoding in bundle.manifest.encodings.values())
    assert kinds == {"mixed1": 14, "affine": 1}
    assert bundle.manifest.gates.codes_equal
    with closing(edge.load(bundle.path)) as loaded:
        assert "".join(loaded.generate("hello", chat=False, max_tokens=5))
