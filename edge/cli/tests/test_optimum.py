"""`optimum-cli export edge`, by the executable that optimum installs."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from edge.core.bundle import open_bundle
from edge.models.testing import tiny_model

EXECUTABLE = Path(sys.executable).with_name("optimum-cli")
if not EXECUTABLE.exists():
    pytest.skip("optimum is not installed: pip install 'optimum>=2.3'", allow_module_level=True)
if find_spec("optimum.commands.register") is None:
    pytest.skip("edge was installed before it had a command for optimum: pip install it again", allow_module_level=True)


def optimum(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [str(EXECUTABLE), "export", "edge", *map(str, arguments)]
    environment = {**os.environ, "OMP_NUM_THREADS": "2", "HF_HUB_OFFLINE": "1", "COLUMNS": "200"}
    return subprocess.run(command, capture_output=True, text=True, check=False, env=environment)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model("llama", tmp_path_factory.mktemp("work") / "tiny")


def test_a_recipe_and_an_export_in_one(model: Path, tmp_path: Path) -> None:
    done = optimum("-m", model, "--recipe", "int4", "--context", 64, tmp_path / "new" / "bundle")
    assert done.returncode == 0, done.stderr
    manifest = open_bundle(tmp_path / "new" / "bundle").manifest
    assert (manifest.name, manifest.recipe["name"], manifest.runtime) == ("tiny", "int4", "onnx")
    assert manifest.context_length == 64
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["bundle"]  # what lay between is gone
    assert "bits per weight" in done.stdout


def test_without_a_recipe_the_weights_stay(model: Path, tmp_path: Path) -> None:
    done = optimum("--model", model, "--kernels", "builtin", "-o", tmp_path / "bundle")
    assert done.returncode == 0, done.stderr
    manifest = open_bundle(tmp_path / "bundle").manifest
    assert (manifest.recipe, manifest.kernels) == ({}, "builtin")


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["--recipe", "int5"], 2, "no recipe"),
        (["--runtime", "onxn"], 2, "did you mean 'onnx'?"),
        (["--target", "ipod"], 2, "ipod"),
        (["--kernels", "egde"], 2, "did you mean 'edge'?"),
    ],
)
def test_what_is_wrong_is_said_as_edge_says_it(
    model: Path, tmp_path: Path, arguments: list[str], code: int, words: str
) -> None:
    done = optimum("-m", model, tmp_path / "bundle", *arguments)
    assert done.returncode == code, done.stderr
    assert words in done.stderr
    assert "hint:" in done.stderr
    assert "Traceback" not in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_an_existing_output_is_kept(model: Path, tmp_path: Path) -> None:
    (tmp_path / "kept").write_text("mine")
    done = optimum("-m", model, "--recipe", "int4", tmp_path)
    assert done.returncode == 2
    assert "--force" in done.stderr
    assert (tmp_path / "kept").read_text() == "mine"
