"""The demo as `make demo MODEL=...` runs it, on a tiny model and a text that lies in the cache already."""

import json
import os
import subprocess
import sys
import time

import pytest

from edge.models.testing import tiny_model

FIELDS = {
    "model", "recipe", "stored_bytes", "bits_per_weight", "perplexity", "perplexity_fp32", "prefill_tokens_per_s",
    "decode_tokens_per_s", "ttft_ms", "peak_bytes", "report",
}  # fmt: skip


@pytest.fixture
def demo(tmp_path):
    tiny_model("llama", tmp_path / "tiny", max_position_embeddings=1024)
    cache = tmp_path / "cache"
    cache.mkdir()
    (cache / "c4.utf8").write_text("Some words that a tiny model has never seen, and never will. \n" * 400)
    environment = {**os.environ, "EDGE_CACHE": str(cache), "HF_HUB_OFFLINE": "1"}
    options = ("--model", str(tmp_path / "tiny"), "--output", str(tmp_path / "out"), "--json")
    command = [sys.executable, "-c", "from edge.cli import main; main()", "demo", *options]

    def run(*more):
        done = subprocess.run([*command, *more], capture_output=True, text=True, env=environment, check=False)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    return run


def test_demo_ends_with_one_object_and_reuses_what_is_there(demo, tmp_path):
    start = time.perf_counter()
    first = demo()
    took = time.perf_counter() - start
    assert set(first) == FIELDS
    assert first["perplexity"] == pytest.approx(first["perplexity_fp32"], rel=0.5)
    assert first["report"].endswith("report.html")
    written = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*.safetensors")}
    start = time.perf_counter()
    assert demo() == first
    assert time.perf_counter() - start < took
    other_threads = demo("--threads", "1")  # measured anew, not compressed anew
    assert other_threads["decode_tokens_per_s"] != first["decode_tokens_per_s"]
    assert written == {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*.safetensors")}
