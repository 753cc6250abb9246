"""edge compare and edge import as a user types them."""

import json

import msgspec
import pytest

from edge.cli.tests.test_cli import assert_fails, edge
from edge.core.files import read_json, write_json
from edge.core.measurement import Measurement
from edge.models.testing import tiny_model
from edge.profiles.tests.test_compare import FASTER, result, series
from edge.profiles.tests.test_imports import GENERATION, PROMPT

SHORT = ("--rounds", 2, "--prompt-tokens", 8, "--generated-tokens", 4, "--repetitions", 2, "--min-seconds", 0)


@pytest.fixture
def sides(tmp_path):
    """Folders of eight runs each; B has 0.9 of A's speed."""
    for name, step_ms, seed in (("a", 5.0, 1), ("b", 5.0 * FASTER, 2)):
        (tmp_path / name).mkdir()
        for number, run in enumerate(series(8, step_ms, seed=seed)):
            write_json(tmp_path / name / f"{number}.json", run)
    return tmp_path / "a", tmp_path / "b"


def test_a_regression_ends_with_code_4(sides):
    a, b = sides
    worse = edge("compare", a, b)
    assert_fails(worse, 4, "B is worse", "decode -", "--max-regression")
    assert "slower" in worse.stdout and "floor" in worse.stdout
    assert edge("compare", b, a).returncode == 0
    assert edge("compare", a, b, "--max-regression", "20").returncode == 0
    for_programs = edge("compare", a, b, "--json")
    assert for_programs.returncode == 4
    assert "decode" in json.loads(for_programs.stdout)["regressions"]


def test_what_cant_be_compared_is_said(sides, tmp_path):
    a, _ = sides
    write_json(tmp_path / "emulated.json", result(emulated=True))
    write_json(tmp_path / "other.json", result(device={"cpu": "Another"}))
    assert_fails(edge("compare", a, tmp_path / "emulated.json"), 2, "emulated")
    assert_fails(edge("compare", a, tmp_path / "other.json"), 2, "Another", "--anyway")
    assert "The devices differ" in edge("compare", a, tmp_path / "other.json", "--anyway").stdout
    assert_fails(edge("compare", a, tmp_path / "none.json"), 1, "none.json")


def test_bundles_take_turns(tmp_path, monkeypatch):
    monkeypatch.setenv("EDGE_CACHE", str(tmp_path / "cache"))
    tiny_model("llama", tmp_path / "model")
    assert edge("export", tmp_path / "model", "-o", tmp_path / "bundle").returncode == 0
    found = edge("compare", tmp_path / "bundle", tmp_path / "bundle", *SHORT, "--json", "-o", tmp_path / "c.json")
    assert found.returncode in (0, 4), found.stderr  # a tiny model's steps are all noise
    compared = json.loads(found.stdout)
    assert (compared["floor"], compared["runs_a"], len(compared["runs"])) == ("interleaved runs", 4, 8)
    decode = next(change for change in compared["changes"] if change["metric"] == "decode")
    assert decode["low"] <= decode["ratio"] <= decode["high"] and decode["floor"] > 0
    assert not list((tmp_path / "cache" / "compare").iterdir())
    assert_fails(edge("compare", tmp_path / "bundle", tmp_path / "c.json"), 2, "bundle")


def test_imports_are_written_reported_and_compared(tmp_path):
    bench = tmp_path / "bench.json"
    bench.write_text(json.dumps([PROMPT, GENERATION, {**PROMPT, "n_threads": 4}]))
    found = edge("import", bench, "-o", tmp_path / "out" / "llama.json", "--json")
    assert found.returncode == 0, found.stderr
    said = json.loads(found.stdout)
    assert len(said["results"]) == 2 and said["results"][1].endswith("llama-2.json")
    assert "memory" in said["notes"][0]
    first = read_json(tmp_path / "out" / "llama.json", Measurement)
    assert first.engine == "imported" and msgspec.json.encode(first)
    assert edge("report", *said["results"], "-o", tmp_path / "r.html").returncode == 0
    card = (tmp_path / "r.md").read_text()
    assert "imported" in card and "Peak memory |" not in card and "Load time" not in card
    assert "decode" in edge("compare", said["results"][0], said["results"][0]).stdout
    assert_fails(edge("import", bench, "-o", tmp_path / "out" / "llama.json"), 2, "exists", "--force")
    assert_fails(edge("import", __file__, "-o", tmp_path / "x.json"), 2, "no kind", "llama-bench")
