"""`edge profile` on this machine as processes: who dies, what is kept, and what is handed over in the end."""

import json
import os
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import numpy as np
import pytest

from edge.core.errors import EdgeError, GateFailed, UsageError
from edge.core.files import read_json
from edge.core.measurement import Measurement
from edge.profiles import journal, local
from edge.profiles.run import profile
from edge.profiles.tests.bigram import Bigram, make_bundle

SIZES = {"prompt_tokens": 6, "generated_tokens": 4, "min_seconds": 0}
PLUGIN = """
    import os, sys
    sys.path.insert(0, {tests!r})
    from bigram import Bigram

    def versions():
        return {{"bigram": {version!r}}}

    def open(bundle, options):
        {body}
"""
FULL = """
        import errno
        def write(file, data, real=os.write):
            if os.fstat(file).st_size > 2000:
                raise OSError(errno.ENOSPC, "no space")
            return real(file, data)
        os.write = write
        return Bigram(options, (0.001,))
"""
SLOW = "return Bigram(options, (0.05,))"


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("EDGE_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def bundle(tmp_path):
    return make_bundle(tmp_path / "bundle")


def plug_in(tmp_path, monkeypatch, body="return Bigram(options)", version="1"):
    """A runtime from another package, which the fresh process finds by its entry point."""
    site = tmp_path / "site"
    (site / "bigram-1.dist-info").mkdir(parents=True, exist_ok=True)
    (site / "bigram-1.dist-info/METADATA").write_text("Metadata-Version: 2.1\nName: bigram\nVersion: 1\n")
    (site / "bigram-1.dist-info/entry_points.txt").write_text("[edge.runtimes]\nbigram = bigram_runtime\n")
    tests = os.path.dirname(os.path.abspath(__file__))
    plugin = textwrap.dedent(PLUGIN).format(tests=tests, body=body, version=version)
    (site / "bigram_runtime.py").write_text(plugin)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(site), *sys.path]))


def journals(tmp_path):
    return list((tmp_path / "cache/runs").glob("*/journal.jsonl"))


def start(bundle, output, repetitions=8):
    code = f"""
from pathlib import Path
from edge.core.bundle import open_bundle
from edge.profiles.run import profile
profile(open_bundle(Path({str(bundle.path)!r})), output=Path({str(output)!r}), repetitions={repetitions}, **{SIZES!r})
"""
    return subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.PIPE, text=True)


def wait_for_repetitions(tmp_path, count):
    """The finished ones, as soon as there are so many."""
    for _ in range(600):
        done = journal.finished(journal.read(journals(tmp_path)[0])) if journals(tmp_path) else []
        if len(done) >= count:
            return [turns[0].prefill_ns for turns in done], journal.read(journals(tmp_path)[0])
        time.sleep(0.02)
    raise AssertionError("the run doesn't come forward")


def test_a_fresh_process_measures(bundle, tmp_path, monkeypatch):
    plug_in(tmp_path, monkeypatch)
    ballast = np.ones(400 << 20, np.uint8)  # memory of this process must not be in the result
    result = profile(bundle, output=tmp_path / "results/r.json", **SIZES)
    assert result.name == "bigram" and len(result.repetitions) >= 5 and result.engine == "python"
    assert result.peak_bytes < ballast.nbytes
    assert read_json(tmp_path / "results/r.json", Measurement) == result
    assert journals(tmp_path) == []  # the result was delivered


def test_errors_come_back_from_the_fresh_process(bundle, tmp_path, monkeypatch):
    with pytest.raises(UsageError, match="bigram"):  # no such runtime without the plug-in
        profile(bundle, output=tmp_path / "r.json", **SIZES)
    assert not (tmp_path / "r.json").exists() and not journals(tmp_path)
    plug_in(tmp_path, monkeypatch, "os.kill(os.getpid(), 9)")
    with pytest.raises(EdgeError, match="signal 9") as error:
        profile(bundle, output=tmp_path / "r.json", **SIZES)
    assert error.value.code == "profile.died"
    assert "signal 9" in read_json(tmp_path / "r.json", Measurement).problem


@pytest.mark.parametrize("victim", ["host", "worker"])
def test_a_killed_run_goes_on_where_it_was(bundle, tmp_path, monkeypatch, victim):
    plug_in(tmp_path, monkeypatch, SLOW)
    host = start(bundle, tmp_path / "r.json")
    done, entries = wait_for_repetitions(tmp_path, 2)
    worker = entries[0].pid
    os.kill(host.pid if victim == "host" else worker, 9)
    host.wait()
    while Path(f"/proc/{worker}").exists():  # it goes with its host
        time.sleep(0.01)
    if victim == "worker":
        assert "signal 9" in host.stderr.read()
        failed = read_json(tmp_path / "r.json", Measurement)
        assert "signal 9" in failed.problem and [r.prefill_ns for r in failed.repetitions][: len(done)] == done
    else:
        assert not (tmp_path / "r.json").exists()
    last = start(bundle, tmp_path / "r.json")
    assert last.wait() == 0 and f"cut off after {len(done)}" in last.stderr.read()
    result = read_json(tmp_path / "r.json", Measurement)
    assert [r.prefill_ns for r in result.repetitions][: len(done)] == done and result.problem == ""
    assert [p.name for p in result.phases] == ["load", "warm-up", "measured"] * 2
    assert all(a.end_ns <= b.start_ns for a, b in zip(result.phases, result.phases[1:], strict=False))
    assert journals(tmp_path) == []


def test_fresh_begins_anew_and_so_does_another_version(bundle, tmp_path, monkeypatch):
    plug_in(tmp_path, monkeypatch, SLOW)
    host = start(bundle, tmp_path / "r.json", repetitions=5)
    done, entries = wait_for_repetitions(tmp_path, 1)
    host.kill()
    host.wait()
    kept = journals(tmp_path)[0].read_bytes()
    plug_in(tmp_path, monkeypatch, version="2")
    result = profile(bundle, repetitions=5, **SIZES)
    assert done[0] not in [r.prefill_ns for r in result.repetitions]
    plug_in(tmp_path, monkeypatch)
    folder = journal.run_folder("cpu", entries[0].plan)
    folder.mkdir()
    (folder / journal.NAME).write_bytes(kept)
    assert done[0] not in [r.prefill_ns for r in profile(bundle, repetitions=5, fresh=True, **SIZES).repetitions]


def test_a_result_that_could_not_be_written_is_not_measured_again(bundle, tmp_path, monkeypatch, capsys):
    plug_in(tmp_path, monkeypatch)
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError):
        profile(bundle, output=tmp_path / "file/r.json", **SIZES)
    done = [turns[0].prefill_ns for turns in journal.finished(journal.read(journals(tmp_path)[0]))]
    monkeypatch.setattr(local, "_ask", None)  # nothing is left to do
    result = profile(bundle, output=tmp_path / "r.json", **SIZES)
    assert [r.prefill_ns for r in result.repetitions] == done and result.operators and result.memory
    assert "finished before" in capsys.readouterr().err and journals(tmp_path) == []


def test_a_wrong_model_ends_with_code_4_and_stays_in_the_table(tmp_path, monkeypatch):
    plug_in(tmp_path, monkeypatch)
    table = Bigram().table
    bundle = make_bundle(tmp_path / "bundle", samples={"tokens": np.array([3, 1]), "logits": table[[7]]})
    with pytest.raises(GateFailed) as error:
        profile(bundle, output=tmp_path / "r.json", **SIZES)
    assert error.value.exit_code == 4
    found = read_json(tmp_path / "r.json", Measurement)
    assert "KL divergence" in found.problem and not found.repetitions and not found.parity.top1_equal
    assert journal.read(journals(tmp_path)[0])[-1].code == "parity"


def test_a_run_is_kept_on_its_cores(bundle, tmp_path, monkeypatch):
    core = sorted(os.sched_getaffinity(0))[-1]
    body = f"assert os.sched_getaffinity(0) == {{{{{core}}}}} and options.threads == 1; return Bigram(options)"
    plug_in(tmp_path, monkeypatch, body.replace("{{", "{").replace("}}", "}"))
    assert profile(bundle, cores=[core], **SIZES).protocol.cores == [core]
    with pytest.raises(UsageError, match="no core 4095"):
        profile(bundle, cores=[4095], **SIZES)


def test_a_full_disk_keeps_what_was_finished(bundle, tmp_path, monkeypatch):
    plug_in(tmp_path, monkeypatch, FULL)
    with pytest.raises(EdgeError) as error:
        profile(bundle, repetitions=20, output=tmp_path / "r.json", **SIZES)
    assert error.value.code == "disk.full"
    path = journals(tmp_path)[0]
    assert path.stat().st_size < 2500 and path.read_bytes().endswith(b"}\n")
    done = [turns[0].prefill_ns for turns in journal.finished(journal.read(path))]
    failed = json.loads((tmp_path / "r.json").read_text())
    assert len(done) >= 2 and len(failed["repetitions"]) == len(done) and "no space left" in failed["problem"]
    plug_in(tmp_path, monkeypatch)
    result = profile(bundle, repetitions=20, **SIZES)
    assert [r.prefill_ns for r in result.repetitions][: len(done)] == done
