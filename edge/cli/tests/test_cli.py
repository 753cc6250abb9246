"""The commands as a user types them, on a tiny random model: the whole way, and everything that can go wrong on it."""

import contextlib
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import pytest

from edge.cli import main
from edge.models.testing import tiny_model

TEXT = "The quick brown fox jumps over the lazy dog. " * 200
COMMAND = [sys.executable, "-c", "from edge.cli import main; main()"]


def edge(*arguments):
    """Run the command in this process, where torch is imported already."""
    out, err = io.StringIO(), io.StringIO()
    argv = ["edge", *map(str, arguments)]
    with contextlib.ExitStack() as stack:
        stack.enter_context(mock.patch.object(sys, "argv", argv))
        stack.enter_context(mock.patch.dict(os.environ, {"COLUMNS": "200"}))
        stack.enter_context(contextlib.redirect_stdout(out))
        stack.enter_context(contextlib.redirect_stderr(err))
        ended = stack.enter_context(pytest.raises(SystemExit))
        main()
    return SimpleNamespace(returncode=ended.value.code or 0, stdout=out.getvalue(), stderr=err.getvalue())


def assert_fails(result, exit_code, *words):
    """A failure is one line with the reason and one with a hint, no traceback, and the right exit code."""
    assert result.returncode == exit_code, result.stderr
    assert "Traceback" not in result.stderr
    assert "error:" in result.stderr
    assert "hint:" in result.stderr
    for word in words:
        assert word in result.stderr


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    """A tiny checkpoint taken all the way: compressed, exported, with a text beside it."""
    folder = tmp_path_factory.mktemp("work")
    tiny_model("llama", folder / "model")
    (folder / "text.txt").write_text(TEXT)
    compressed = edge("compress", folder / "model", "-r", "int4", "-o", folder / "small", "--json")
    assert compressed.returncode == 0
    (row,) = json.loads(compressed.stdout)["encodings"]
    assert row["encoding"] == "affine4g32z"
    assert 4.5 < 8 * row["stored_bytes"] / row["weights"] < 4.7
    exported = edge("export", folder / "small", "-o", folder / "bundle", "--json")
    assert exported.returncode == 0, exported.stderr
    assert json.loads(exported.stdout)["manifest"]["gates"]["codes_equal"] is True
    return folder


def test_help_is_quick_and_imports_no_framework():
    heavy = "any(m in sys.modules for m in ('torch', 'transformers', 'onnx', 'onnxruntime'))"
    code = f"import sys; from edge.cli import app; sys.exit({heavy})"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
    times = []
    for _ in range(3):
        start = time.perf_counter()
        subprocess.run([*COMMAND, "--help"], check=True, capture_output=True)
        times.append(time.perf_counter() - start)
    assert min(times) < 1.0  # 0.3 s on an idle machine; CI shares its cores


@pytest.mark.parametrize("command", ["recipes", "methods", "targets", "devices"])
def test_lists_are_tables_for_people_and_json_for_programs(command):
    assert json.loads(edge(command, "--json").stdout)
    assert edge(command).stdout.strip()


def test_doctor_finds_this_installation_whole():
    result = edge("doctor", "--json")
    states = {check["name"]: check["state"] for check in json.loads(result.stdout)}
    assert states["kernels"] == states["torch"] == states["onnxruntime"] == "ok"
    assert states["kernels in ONNX Runtime"] == states["kernels in torch"] == "ok"
    assert states["kernels in ExecuTorch"] == ("ok" if find_spec("executorch") else "optional")


def test_run_streams_text_to_stdout_and_speed_to_stderr(work):
    result = edge("run", work / "bundle", "-p", "The quick", "--raw", "-n", "8")
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip()
    assert "tokens/s" in result.stderr
    again = edge("run", work / "bundle", "-p", "The quick", "--raw", "-n", "8", "--json")
    assert json.loads(again.stdout)["text"].strip() == result.stdout.strip()


def test_evaluate_profile_and_report(work):
    text = work / "text.txt"
    flags = ("-t", text, "--against", work / "model", "--max-bytes", "3000", "--context", "64", "--json")
    torch = json.loads(edge("evaluate", work / "small", *flags).stdout)
    bundle = json.loads(edge("evaluate", work / "bundle", *flags, "-o", work / "evaluation.json").stdout)
    assert (torch["kind"], bundle["kind"]) == ("torch", "artefact")
    assert bundle["perplexity"] == pytest.approx(torch["perplexity"], rel=1e-3)
    assert 0 < bundle["kl_divergence"] < 1
    flags = ("--prompt-tokens", "16", "--generated-tokens", "8", "-o", work / "measurement.json", "--json")
    profile = json.loads(edge("profile", work / "bundle", *flags).stdout)
    assert len(profile["repetitions"]) >= 5
    assert any(row["layer"].startswith("model.layers.0") for row in profile["operators"])
    report = edge("report", work / "evaluation.json", work / "measurement.json", "-o", work / "report.html")
    assert Path(report.stdout.strip()).stat().st_size > 10_000
    assert "|" in (work / "report.md").read_text()


def test_several_profiles_in_one_command(work, tmp_path):
    flags = ("-p", "8,16", "-n", 4, "-t", "1", "-o", tmp_path / "r.json")
    found = json.loads(edge("profile", work / "bundle", *flags, "--json").stdout)
    assert [(m["protocol"]["prompt_tokens"], m["protocol"]["threads"]) for m in found] == [(8, 1), (16, 1)]
    assert sorted(file.name for file in tmp_path.iterdir()) == ["r-p16.json", "r-p8.json"]
    assert all(m["parity"]["kl_divergence"] <= m["parity"]["kl_divergence_limit"] for m in found)
    table = edge("profile", work / "bundle", "-p", "8,16", "-n", 4).stdout
    assert "first token" in table and len(table.strip().splitlines()) >= 3
    assert_fails(edge("profile", work / "bundle", "-p", "8,x"), 2, "8,x")
    assert_fails(edge("profile", work / "bundle", "--cores", "b"), 2, "names no cores")


def test_conversations_and_sustained_runs(work):
    turns = edge("profile", work / "bundle", "--turns", "8:4,4:4")
    assert turns.returncode == 0, turns.stderr
    assert "8 tokens" in turns.stdout and "5 tokens" in turns.stdout  # a later turn also reads what was made last
    hot = edge("profile", work / "bundle", "--sustained", "-p", 8, "-n", 8, "--max-seconds", 1)
    assert hot.returncode == 0, hot.stderr
    assert "of warm" in hot.stdout
    assert_fails(edge("profile", work / "bundle", "--sustained", "--turns", "8:4"), 2, "at once")
    assert_fails(edge("profile", work / "bundle", "--mode", "sustained", "-p", 999), 2, "context")


def test_what_is_wrong_with_a_recipe_is_said(work, tmp_path):
    recipe = tmp_path / "mine.toml"
    recipe.write_text("[[steps]]\nmethod = 'rtn'\noptions = {bitz = 4}\n")
    out = tmp_path / "out"
    assert_fails(edge("compress", work / "model", "-r", recipe, "-o", out), 2, "bitz", "bits")
    recipe.write_text("[[steps]]\nmethod = 'rtn'\noptions = {bits = 4, group_size = 48}\n")
    assert_fails(edge("compress", work / "model", "-r", recipe, "-o", out), 2, "48")
    recipe.write_text("[[steps]]\nmethod = 'gtpq'\n")
    assert_fails(edge("compress", work / "model", "-r", recipe, "-o", out), 2, "gptq")
    assert_fails(edge("compress", work / "model", "-r", "int5", "-o", out), 2, "int")
    assert not out.exists()


def test_a_calibrated_recipe_without_text_says_so(work, tmp_path):
    assert_fails(edge("compress", work / "model", "-r", "int4-gptq", "-o", tmp_path / "out"), 2, "--calibration-text")


def test_an_existing_output_is_kept(work):
    assert_fails(edge("compress", work / "model", "-r", "int4", "-o", work / "small"), 2, "exists", "--force")
    assert_fails(edge("export", work / "small", "-o", work / "bundle"), 2, "exists", "--force")


def cut(name):
    return lambda bundle: os.truncate(bundle / name, (bundle / name).stat().st_size // 2)


def write_over(name, old, new):
    return lambda bundle: (bundle / name).write_text((bundle / name).read_text().replace(old, new))


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (cut("model.onnx"), ("model.onnx is not the file", "export the model again")),
        (cut("model.onnx.data"), ("model.onnx.data is not the file", "export the model again")),
        (lambda bundle: (bundle / "model.onnx.data").unlink(), ("model.onnx.data is missing", "copy the whole folder")),
        (cut("manifest.json"), ("manifest.json", "damaged")),
        (write_over("manifest.json", '"onnxruntime": "', '"onnxruntime": "99.'), ("ONNX Runtime 99", "pip install")),
        (write_over("manifest.json", '"runtime": "onnx"', '"runtime": "onxn"'), ("'onxn'", "did you mean 'onnx'?")),
    ],
)
def test_a_damaged_bundle_is_one_line_and_a_hint(work, tmp_path, damage, words):
    bundle = shutil.copytree(work / "bundle", tmp_path / "bundle")
    damage(bundle)
    profile = ("profile", bundle, "--prompt-tokens", 8, "--generated-tokens", 4)
    for command in (("run", bundle, "-p", "x"), profile, ("evaluate", bundle, "-t", work / "text.txt")):
        result = edge(*command)
        assert_fails(result, result.returncode, *words)
        assert result.returncode in (1, 2)
        assert len(result.stderr.strip().splitlines()) == 2, result.stderr


def test_damage_to_checkpoints_and_bundles_is_refused(work, tmp_path):
    assert_fails(edge("compress", tmp_path / "nothing-here", "-o", tmp_path / "out"), 1)
    damaged = shutil.copytree(work / "model", tmp_path / "damaged")
    weights = next(damaged.glob("*.safetensors"))
    weights.write_bytes(weights.read_bytes()[:-100])
    assert_fails(edge("compress", damaged, "-o", tmp_path / "out"), 1, weights.name)
    bundle = shutil.copytree(work / "bundle", tmp_path / "bundle")
    data = bytearray((bundle / "model.onnx").read_bytes())
    data[len(data) // 2] ^= 1
    (bundle / "model.onnx").write_bytes(data)
    assert_fails(edge("run", bundle, "-p", "x"), 1, "model.onnx")
    assert not (tmp_path / "out").exists()


def test_a_prompt_longer_than_the_context_is_refused(work):
    result = edge("run", work / "bundle", "-p", TEXT, "--raw")
    assert_fails(result, 2, "context")


def test_quiet_leaves_nothing_but_the_result(work, tmp_path):
    for place in (("-q", "compress"), ("compress", "-q")):
        result = edge(*place, work / "model", "-r", "int4", "-o", tmp_path / place[0], "--json")
        assert json.loads(result.stdout)["stored_bytes"] > 0
        assert result.stderr == ""


def test_an_interrupted_compression_leaves_no_output_and_goes_on(tmp_path):
    tiny_model("llama", tmp_path / "model", num_hidden_layers=40)
    (tmp_path / "text.txt").write_text(TEXT)
    options = ("-r", "int4-gptq", "-o", tmp_path / "out", "--calibration-text", tmp_path / "text.txt")
    # A shell's background jobs are started with Ctrl-C ignored, and so would be what this test starts in one.
    heard = f"import signal; signal.signal(signal.SIGINT, signal.default_int_handler); {COMMAND[-1]}"
    command = [sys.executable, "-c", heard, "compress", tmp_path / "model", *options]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    partial = tmp_path / ".out.partial"
    while process.poll() is None and len(list(partial.glob("*.safetensors"))) < 3:
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    assert "interrupted" in process.communicate()[1]
    assert process.returncode == 130
    assert not (tmp_path / "out").exists()
    again = edge("compress", tmp_path / "model", *options)
    assert "Going on" in again.stderr
    assert (tmp_path / "out").is_dir()
    assert not partial.exists()


def test_a_process_ends_with_the_errors_exit_code(work):
    done = subprocess.run(
        [*COMMAND, "profile", work / "bundle", "-p", "8", "-n", "4", "--device", "adb:1"],
        capture_output=True,
        check=False,
    )
    assert done.returncode == 3
    assert b"error:" in done.stderr
    assert done.stdout == b""


def test_errors_are_json_where_json_was_asked_for(work):
    result = edge("run", work / "model", "-p", "x", "--json")
    assert json.loads(result.stdout)["error"]["code"] == "bundle.missing"
    assert result.returncode == 1


def test_builtin_kernels_refuse_what_they_cannot_run(work, tmp_path):
    recipe = tmp_path / "three.toml"
    recipe.write_text("[[steps]]\nmethod = 'rtn'\noptions = {bits = 3, group_size = 64}\n")
    assert edge("compress", work / "model", "-r", recipe, "-o", tmp_path / "small").returncode == 0
    result = edge("export", tmp_path / "small", "-o", tmp_path / "bundle", "--kernels", "builtin")
    assert_fails(result, 1, "--kernels edge")
    assert not (tmp_path / "bundle").exists()
    assert_fails(edge("export", tmp_path / "small", "-o", tmp_path / "b", "--kernels", "buildin"), 2, "builtin")
    assert_fails(edge("export", tmp_path / "small", "-o", tmp_path / "b", "--target", "androit"), 2, "android")


def test_unknown_devices_have_their_own_exit_code(work):
    assert_fails(edge("profile", work / "bundle", "-p", 8, "-n", 4, "--device", "adb:123"), 3, "adb:123")
