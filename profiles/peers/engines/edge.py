"""edge's own bundles: round to nearest in symmetric groups of 64, or clusters with scales for as many weights, so that
both take the same bytes; embedding and head at 4 bits; in ONNX Runtime unless the format says ExecuTorch.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

import edge.exporters
from edge.core.bundle import open_bundle
from edge.core.plugins import RUNTIMES
from edge.core.session import Session, SessionOptions
from edge.kernels import library_path
from edge.profiles.peers.command import run_edge
from edge.profiles.peers.engines import Conversation, Model

FORMATS = ("4 bits", "3 bits", "2 bits", "4 bits executorch", "3 bits executorch", "2 bits executorch")
FORMATS += ("3 bits clusters", "3 bits clusters executorch")


RECIPE = """
schema = 1
name = "{method}{bits}"
[[steps]]
method = "{method}"
options = {{{options}bits = {bits}, group_size = 64}}
rules = [{{module = "embedding", exclude = true}}, {{module = "head", exclude = true}}]
[[steps]]
method = "rtn"
options = {{bits = 4, group_size = 64}}
"""


def prepare(model: Model, format: str) -> Path:
    """The bundle with our kernels."""
    runtime = "executorch" if "executorch" in format else "onnx"
    return bundle(model, format[0], runtime, "edge", clusters="clusters" in format)


def bundle(model: Model, bits: str, runtime: str, kernels: str, *, clusters: bool = False) -> Path:
    """A bundle of the model at these bits, exported again where the exporters or the kernels have changed since."""
    small = model.work / "edge" / f"{bits}-bits{'-clusters' if clusters else ''}"
    if not small.exists():
        small.parent.mkdir(parents=True, exist_ok=True)
        recipe = small.with_suffix(".toml")
        method, options = ("kmeans", 'scale = "group", rounds = 0, ') if clusters else ("rtn", "")
        recipe.write_text(RECIPE.format(bits=bits, method=method, options=options))
        run_edge("compress", str(model.folder), "-r", str(recipe), "-o", str(small))
    kind = "bundle" if (runtime, kernels) == ("onnx", "edge") else f"{runtime}-{kernels}-bundle"
    path = small.with_name(f"{small.name}-{kind}")
    code = [file for folder in edge.exporters.__path__ for file in Path(folder).rglob("*.py")]
    changed = max(file.stat().st_mtime for file in (*code, library_path()))
    manifest = path / "manifest.json"
    if not manifest.exists() or manifest.stat().st_mtime < changed:
        run_edge("export", str(small), "-o", str(path), "--runtime", runtime, "--kernels", kernels, "--force")
    return path


def start(path: Path, format: str, threads: int, context: int) -> Conversation:
    """A session on the bundle."""
    bundle = open_bundle(path, verify=False)
    runtime = RUNTIMES.load(bundle.manifest.runtime)
    return _Edge(runtime.open(bundle, SessionOptions(threads=threads)))


class _Edge:
    def __init__(self, session: Session) -> None:
        self._session = session

    def prefill(self, tokens: Sequence[int]) -> None:
        self._logits = self._session.prefill(tokens)

    def decode(self) -> None:
        self._logits = self._session.decode(int(np.argmax(self._logits[-1])))
