"""A study of a tiny model: its cells, what stays of those that fail, going on, the files that come out."""

import os
from pathlib import Path

import msgspec
import numpy as np
import pytest

from edge.core.errors import EdgeError, UsageError
from edge.core.files import read_json, write_json
from edge.core.recipe import Calibration
from edge.evaluate import recorded
from edge.evaluate.recorded import RecordedOriginal
from edge.models.checkpoint import open_checkpoint
from edge.models.testing import tiny_model
from edge.runtimes.torch import open_folder
from edge.study import page, peers, run, table, worker
from edge.study.cell import Cell, Job, Settings, cells_of, digest, folder_of
from edge.study.pareto import front
from edge.study.plots import sections
from edge.study.result import FAILED, Failure, Failures, Row, Study, failures_of, missing_stages, row_of

SENTENCE = "The harbour lay quiet in the early light, and three men were mending nets. "
SETTINGS = Settings(model="m", model_sha256="1", text="t", text_sha256="2")
QUICK = {"samples": 2, "sequence_length": 16, "group_size": 32, "speed": False}
ATTACK = "<script>boom()</script>"


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("study")
    tiny_model("llama", folder / "model", intermediate_size=128)  # of odd numbers of blocks onnxruntime makes nothing
    (folder / "text.txt").write_text(5 * SENTENCE)
    return folder


@pytest.fixture
def in_this_process(monkeypatch):
    """Cells without the seconds that a process of their own takes to begin. Returns the labels of those that ran."""
    ran = []

    def quick(folder):
        job = read_json(folder / "cell.json", Job)
        ran.append(job.cell.label)
        failures = worker.run(worker.CellRun(folder, job), missing_stages(folder, job.settings))
        if failures:
            write_json(folder / FAILED, Failures(failures))
        return int(bool(failures))

    monkeypatch.setattr(run, "_run", quick)
    return ran


def small_study(place, output, **changes):
    options = {"text": place / "text.txt", "calibration_text": place / "text.txt", **QUICK, **changes}
    return run.study(place / "model", output, **options)


def test_a_study_measures_what_was_asked_for_and_goes_on(place, tmp_path, in_this_process):
    found = small_study(place, tmp_path / "out", methods=["rtn", "gptq"], bits=[4, 1])
    original, four, one, gptq, _ = found.rows
    assert [row.label for row in found.rows] == ["float32", "rtn 4 bits", "rtn 1 bits", "gptq 4 bits", "gptq 1 bits"]
    assert original.bits_per_weight == 32 and original.perplexity > 1 and original.kl_divergence is None
    assert four.status == gptq.status == "done" and one.status == "failed"
    assert one.failures[0].stage == "compress" and "1 bits can't be stored" in one.failures[0].message
    assert four.layer_bits_per_weight == pytest.approx(4.5) and 0 < four.kl_divergence < 1 and four.compress_s > 0
    assert 4.5 < four.bits_per_weight < 6 and four.stored_bytes < original.stored_bytes / 5
    assert four.compress_peak_bytes > 1e8 and 0 < four.top1_agreement <= 1
    assert read_json(tmp_path / "out" / "study.json", Study) == found

    before = list(in_this_process)
    again = small_study(place, tmp_path / "out", methods=["rtn", "gptq"], bits=[4, 1])
    assert in_this_process[len(before) :] == ["rtn 1 bits", "gptq 1 bits"]  # only what failed is tried again
    assert again.rows[:2] == found.rows[:2]


def test_a_cell_runs_in_a_process_of_its_own(place, tmp_path):
    checkpoint, options = open_checkpoint(place / "model"), {"speed": False, "max_bytes": 120, "group_size": 32}
    settings = run._settings(checkpoint, place / "model", place / "text.txt", options)
    _, cell = cells_of(["rtn"], [4], [], [], settings)
    run._measure(cell, settings, tmp_path)
    row = row_of(cell, folder_of(cell, settings, tmp_path), settings)
    assert row.status == "done" and row.perplexity > 1 and row.compress_peak_bytes > 1e8
    assert not list(tmp_path.glob("cells/*/model"))  # deleted when it had been measured


def test_a_cell_that_was_killed_says_so_and_is_tried_again(place, tmp_path, monkeypatch):
    monkeypatch.setattr(run, "_run", lambda folder: -9)
    (found,) = small_study(place, tmp_path).rows
    assert found.status == "failed"
    assert "signal 9" in found.failures[0].message and "memory" in found.failures[0].hint
    assert "signal 9" in (tmp_path / "study.html").read_text() and "signal 9" in (tmp_path / "study.md").read_text()


def test_an_interrupt_ends_the_process_and_leaves_the_table(place, tmp_path, monkeypatch):
    class Process(run.subprocess.Popen):
        def wait(self, timeout=None):
            if self.stdin.closed:
                return super().wait(timeout)
            raise KeyboardInterrupt

    monkeypatch.setattr(run.subprocess, "Popen", Process)
    monkeypatch.setattr(run.sys, "executable", "cat")  # it, too, ends with its stdin
    monkeypatch.setattr(run, "environment", lambda: dict(os.environ))
    with pytest.raises(KeyboardInterrupt):
        small_study(place, tmp_path)
    assert read_json(tmp_path / "study.json", Study).rows[0].status == "not_run"


def test_cells_say_what_they_are():
    cells = cells_of(["rtn", "smoothquant+gptq"], [3], ["int8"], ["llama.cpp:Q4_*"], SETTINGS)
    labels = [cell.label for cell in cells]
    assert labels[:4] == ["float32", "rtn 3 bits", "smoothquant+gptq 3 bits", "recipe int8"]
    assert labels[4:] == ["llama.cpp Q4_K_M", "llama.cpp Q4_0"]
    steps = cells[2].recipe.steps
    assert [step.method for step in steps] == ["smoothquant", "gptq", "rtn"]
    assert steps[1].options == {"bits": 3, "group_size": 64} and steps[2].options == {"bits": 8, "group_size": 64}
    assert {rule.module for rule in steps[1].rules if rule.exclude} == {"embedding", "head"}
    same = cells_of(["rtn", "gptq"], [3], [], [], msgspec.structs.replace(SETTINGS, head_bits="same"))
    assert [step.method for step in same[1].recipe.steps] == ["rtn"] and same[1].recipe.steps[0].rules == []
    assert [step.options["bits"] for step in same[2].recipe.steps] == [3, 3]


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ((["gtpq"], [4], [], []), "gptq"),
        (([], [4], [], ["llama.cp"]), "llama.cpp"),
        (([], [4], [], ["llama.cpp:Q4_K"]), "Q4_K_M"),
        ((["rtn", "rtn"], [4], [], []), "once"),
        ((["smoothquant"], [4], [], []), "smoothquant+gptq"),
    ],
)
def test_wrong_names_are_refused_with_the_right_one(asked, said):
    with pytest.raises(UsageError) as error:
        cells_of(*asked, SETTINGS)
    assert said in str(error.value)


def test_a_digest_follows_the_inputs_and_not_where_they_lie():
    _, cell = cells_of(["rtn"], [4], [], [], SETTINGS)
    changed = msgspec.structs.replace
    same = changed(SETTINGS, model="elsewhere", text="there", speed=False, keep_models=True, tasks=["arc_easy"])
    assert digest(cell, SETTINGS) == digest(cell, same)
    others = [changed(SETTINGS, text_sha256="3"), changed(SETTINGS, calibration=Calibration(samples=3))]
    others += [changed(SETTINGS, max_bytes=9), changed(SETTINGS, versions={"torch": "1"})]
    assert digest(cell, SETTINGS) not in [digest(cell, other) for other in others]


def test_what_needs_text_to_calibrate_on_is_refused_before_anything_runs(place, tmp_path, in_this_process):
    with pytest.raises(UsageError, match="needs text to calibrate on"):
        small_study(place, tmp_path, methods=["gptq"], bits=[4], calibration_text=None)
    assert in_this_process == []


def test_the_front_is_what_nothing_beats():
    assert front([(4, 30), (3, 33), (3, 32), (2, 90), (5, 30), (4.5, 29), (2.5, 90)]) == [3, 2, 0, 5]
    assert front([(1, 1), (1, 1)]) == [0, 1]
    assert front([]) == []


def made_up():
    rows = [
        Row(label="float32", kind="original", status="done", perplexity=30.0, bits_per_weight=32.0),
        Row(label="rtn 4 bits", kind="method", method="rtn", bits=4, status="done", perplexity=40.0, kl_divergence=0.2,
            top1_agreement=0.7, bits_per_weight=4.3, decode_tokens_per_s=50.0, decode_p10=49.0, decode_p90=51.0),
        Row(label="gptq 4 bits", kind="method", method="gptq", bits=4, status="done", perplexity=35.0,
            bits_per_weight=4.3, decode_tokens_per_s=49.0, decode_p10=48.0, decode_p90=50.0),
        Row(label=ATTACK, kind="recipe", status="failed", failures=[Failure("compress", "x", f"no room {ATTACK}")]),
    ]  # fmt: skip
    return Study(model=ATTACK, parameters=10, settings=SETTINGS, device={"cpu": "made up"}, rows=rows)


def test_the_page_shows_table_fronts_and_failures(tmp_path):
    found = made_up()
    page.write(found, tmp_path / "a.html", tmp_path / "a.md")
    html, card = (tmp_path / "a.html").read_text(), (tmp_path / "a.md").read_text()
    before = html.partition("<script>")[0]
    for words in ("Bits per weight", "+33.3%", "rtn 4 bits", "no room", "Quality by size", "Quality by time"):
        assert words in before
    assert "<button" in before and 'data-order="40.0"' in before and "ariaSort" in html
    assert "boom()</script>" not in before and "src=" not in before and "https:" not in before
    assert "| gptq 4 bits | 4.30 | 35.00 (+16.7%)" in card and "boom()</script>" not in card
    (section,) = sections(found)
    size, latency = section.figures
    line = size.data[0]
    assert (line["name"], line["x"], line["y"]) == ("front", [4.3], [35.0])  # rtn has its bits and more perplexity
    assert latency.data[0]["y"] == [40.0, 35.0] and latency.data[0]["x"][0] == pytest.approx(20.0)
    assert size.layout["shapes"][0]["y0"] == 30.0
    assert any(trace.get("text") == ["gptq 4 bits"] for trace in size.data)
    assert "Time to compress" not in table.build(found).columns  # nothing has it


def test_a_newer_study_is_refused(tmp_path):
    write_json(tmp_path / "study.json", msgspec.structs.replace(made_up(), schema=2))
    with pytest.raises(EdgeError, match="schema 2"):
        read_json(tmp_path / "study.json", Study)


def test_recorded_logits_are_the_models_and_are_computed_once(place, tmp_path, monkeypatch):
    tokens = [5, 9, 30, 7]
    wanted = open_folder(open_checkpoint(place / "model"), 64).prefill(tokens, all_logits=True)
    first = RecordedOriginal(place / "model", tmp_path)
    np.testing.assert_array_equal(first.prefill(tokens, all_logits=True), wanted)
    monkeypatch.setattr(recorded, "open_folder", None)
    again = RecordedOriginal(place / "model", tmp_path)
    np.testing.assert_array_equal(again.prefill(tokens), wanted[-1:])
    with pytest.raises(EdgeError, match="don't go on"):
        again.decode(3)


@pytest.mark.parametrize(("toolkit", "format"), [("llama.cpp", "Q4_0"), ("onnxruntime", "k_quant_mixed")])
def test_a_peer_is_quantized_and_measured_as_ours_are(place, tmp_path, in_this_process, toolkit, format):
    if toolkit == "llama.cpp":
        pytest.importorskip("llama_cpp")
    _, row = small_study(place, tmp_path, peers=[f"{toolkit}:{format}"]).rows
    assert row.failures == [] and row.status == "done"
    assert 4.5 < row.bits_per_weight < 11 and 0 < row.kl_divergence < 0.5
    assert not (tmp_path / "shared").exists()  # nothing is left that could need it


def test_importance_is_the_mean_square_of_what_a_matrix_sees(place):
    pytest.importorskip("llama_cpp")
    import torch

    from edge.models.torch_model import build_model
    from edge.study.peers.llama_cpp import importance_matrix

    checkpoint = open_checkpoint(place / "model")
    windows = torch.randint(3, 100, (2, 8))
    found = importance_matrix(checkpoint, windows)
    model = build_model(checkpoint)
    states = model.get_submodule("model.embed_tokens")(windows)
    seen = model.get_submodule("model.layers.0.input_layernorm")(states)
    query = found["model.layers.0.self_attn.q_proj.weight"]
    np.testing.assert_allclose(query, seen.square().mean((0, 1)).numpy(), rtol=1e-5)
    assert len(found) == 14 and not any("embed" in name for name in found)


def test_peers_are_listed_with_all_they_make():
    assert ("llama.cpp", "Q2_K") in peers.chosen(["llama.cpp"])
    assert peers.chosen(["onnxruntime", "onnxruntime:rtn"]) == peers.chosen(["onnxruntime"])


def test_failures_are_kept_where_they_were(tmp_path):
    assert failures_of(tmp_path) == []
    write_json(tmp_path / FAILED, Failures([Failure("speed", "a.b", "too slow")]))
    assert failures_of(Path(tmp_path))[0].message == "too slow"
    assert Cell(label="x", kind="peer").recipe is None
