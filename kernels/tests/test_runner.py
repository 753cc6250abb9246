"""The native runner on this machine: what it computes, what it writes, and how it goes on after it was stopped."""

from __future__ import annotations

import platform
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from edge.core.bundle import Bundle, seal
from edge.core.encoding import Affine
from edge.core.session import SessionOptions
from edge.exporters.onnx.export import write
from edge.kernels import library_path, runner
from edge.models.checkpoint import open_checkpoint
from edge.models.testing import encoded_model
from edge.profiles import journal
from edge.profiles.journal import Begin, End, Entry, ParityChecked, Peak, Repeated, Span
from edge.runtimes import onnx
from edge.runtimes._onnxruntime_library import library_for

PLATFORM = f"linux-{platform.machine()}".replace("aarch64", "arm64")
CONTEXT, VOCABULARY = 700, 160
DRAWN = np.random.default_rng(3).integers(3, VOCABULARY, 1000)
PROMPT, SECOND, SAMPLE = DRAWN[:600], DRAWN[600:620], DRAWN[700:716]
PEOPLE = "a run on this machine needs Linux on x86-64 or arm64"
pytestmark = pytest.mark.skipif(sys.platform != "linux" or PLATFORM not in runner.PLATFORMS, reason=PEOPLE)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """A tiny model at 4 bits with edge's operators. A prompt of 600 tokens goes through in two pieces."""
    folder, source = tmp_path_factory.mktemp("bundle"), tmp_path_factory.mktemp("model")
    encoded_model("llama", source, Affine(bits=4, group_size=32), max_position_embeddings=1024)
    manifest = write(open_checkpoint(source), folder, kernels="edge", context_length=CONTEXT)
    seal(folder, manifest)
    return Bundle(folder, manifest)


@pytest.fixture(scope="module")
def session(bundle: Bundle) -> onnx.OnnxSession:
    return onnx.open(bundle, SessionOptions(threads=1))


@pytest.fixture(scope="module")
def tools() -> runner.Tools:
    return runner.build(PLATFORM, library_path())


class Run:
    """A plan and the files it names, in a folder of its own. `plan` holds its lines, by key."""

    def __init__(self, folder: Path, bundle: Bundle, expected: np.ndarray, program: Path) -> None:
        self.folder, self.program, self.journal = folder, program, folder / "journal"
        sizes = np.array([len(SAMPLE), VOCABULARY], "<i8")
        samples = sizes.tobytes() + SAMPLE.astype("<i8").tobytes() + expected.astype("<f4").tobytes()
        files = {"samples": samples, "turn0": PROMPT.astype("<i8").tobytes(), "turn1": SECOND.astype("<i8").tobytes()}
        for name, content in files.items():
            (folder / name).write_bytes(content)
        self.turns = [f"{folder}/turn0 8"]
        self.plan: dict[str, object] = {
            **{"digest": "c0ffee", "model": bundle.artefact, "onnxruntime": library_for(PLATFORM)},
            **{"kernels": library_path(), "samples": folder / "samples", "kl_limit": 1e-6, "vocab": VOCABULARY},
            **{"context": CONTEXT, "threads": 1, "warm_ups": 1, "repetitions": 3, "cv_gate": 100},
        }

    def write(self) -> Path:
        lines = ["edge-plan 1", *(f"{key} {value}" for key, value in self.plan.items())]
        path = self.folder / "plan"
        path.write_text("\n".join([*lines, *(f"turn {turn}" for turn in self.turns)]) + "\n")
        return path

    def start(self, to: Path | None = None) -> subprocess.Popen[str]:
        command = [str(self.program), str(self.write()), str(to or self.journal)]
        return subprocess.Popen(command, stderr=subprocess.PIPE, text=True)

    def __call__(self, to: Path | None = None) -> tuple[int, str]:
        process = self.start(to)
        _, said = process.communicate(timeout=100)
        return process.returncode, said

    def watched(self, name: str, value: int) -> Path:
        path = self.folder / name
        path.write_text(f"{value}\n")
        return path

    def entries(self) -> list[Entry]:
        entries = journal.read(self.journal)
        assert [entry.seq for entry in entries] == list(range(len(entries)))
        return entries

    def of(self, kind: type) -> list:
        return [entry for entry in self.entries() if isinstance(entry, kind)]

    def spans(self, name: str) -> list[Span]:
        return [span for span in self.of(Span) if span.name == name]

    def wait_for(self, done: Callable[[], bool]) -> None:
        until = time.monotonic() + 30
        while not done():
            assert time.monotonic() < until
            time.sleep(0.005)

    def repetitions_so_far(self) -> int:
        return self.journal.read_bytes().count(b'"repetition"') if self.journal.exists() else 0


@pytest.fixture
def run(tmp_path: Path, bundle: Bundle, session: onnx.OnnxSession, tools: runner.Tools) -> Run:
    return Run(tmp_path, bundle, session.prefill(SAMPLE.tolist())[-1], tools.runner)


def greedy(session: onnx.OnnxSession, logits: np.ndarray, count: int) -> Iterator[int]:
    for step in range(count):
        token = int(np.argmax(logits[-1]))
        yield token
        logits = session.decode(token) if step < count - 1 else logits


def test_it_computes_what_a_python_session_computes(run: Run, session: onnx.OnnxSession) -> None:
    """Over two turns, the first in two pieces; the later one reads the last token of the one before."""
    run.turns.append(f"{run.folder}/turn1 12")
    run.plan |= {"generated": run.folder / "made"}
    assert run()[0] == 0
    expected = list(greedy(session, session.prefill(PROMPT.tolist()), 8))
    expected += greedy(session, session.extend([expected[-1], *SECOND.tolist()]), 12)
    assert np.fromfile(run.folder / "made", "<i8").tolist() == expected
    (parity,) = run.of(ParityChecked)
    assert parity.top1_equal
    assert parity.kl_divergence < 1e-9  # of a prefill by the same engine
    for first, second in journal.finished(run.entries(), turns=2):
        assert [first.prompt_tokens, len(first.decode_ns)] == [600, 7]
        assert [second.turn, second.prompt_tokens, len(second.decode_ns)] == [1, 21, 11]
        assert second.start_ns >= first.start_ns + first.prefill_ns + sum(first.decode_ns)


def test_the_journal_tells_everything_in_order(run: Run) -> None:
    before = time.monotonic_ns()
    run.plan |= {"idle_ns": 20_000_000, "cool_down_ns": 10_000_000, "frequency": run.watched("frequency", 1_900_000)}
    run.plan |= {"cap": run.watched("cap", 2_000_000), "temperature": run.watched("temperature", 41_000)}
    code, said = run()
    assert code == 0
    assert "telemetry off" in said
    entries = run.entries()
    told = [entry.name if isinstance(entry, Span) else type(entry) for entry in entries]
    once = ["prefill", "decode", Repeated]
    repeated = [*once, "cool-down", *once, "cool-down", *once]
    assert told == [
        *(Begin, "load", ParityChecked, "warm-up", "idle before"),
        *(*repeated, "idle after", Peak, End),
    ]
    begin, end = entries[0], entries[-1]
    assert isinstance(begin, Begin)
    assert isinstance(end, End)
    assert (begin.plan, begin.engine, begin.boot) == ("c0ffee", "runner", journal.boot_id())
    assert begin.versions == onnx.versions()
    assert (end.code, end.message) == ("ok", "")
    assert before < begin.at_ns < end.at_ns < time.monotonic_ns()
    assert [repetition.index for repetition in run.of(Repeated)] == [0, 1, 2]
    for one in run.of(Repeated):
        assert (one.frequency_khz, one.caps_khz, one.temperature_mc) == ([1_900_000], [2_000_000], 41_000)
        assert not one.throttled
        assert 0 < one.cpu_ns < 4 * (one.prefill_ns + sum(one.decode_ns))
    assert [(span.tokens, span.start_ns) for span in run.spans("prefill")] == [
        (600, one.start_ns) for one in run.of(Repeated)
    ]
    assert all(span.end_ns - span.start_ns >= 20_000_000 for span in run.spans("idle before"))
    assert run.of(Peak)[0].peak_bytes > 10_000_000


def test_a_wrong_model_is_not_timed(run: Run) -> None:
    samples = bytearray((run.folder / "samples").read_bytes())
    samples[-4 * VOCABULARY :] = np.flip(np.frombuffer(samples[-4 * VOCABULARY :], "<f4")).tobytes()
    (run.folder / "samples").write_bytes(samples)
    code, said = run()
    assert code == 4
    assert "KL divergence" in said
    assert run.of(End)[0].code == "parity"
    assert run.of(ParityChecked)[0].kl_divergence > 1e-3
    assert not run.of(Repeated)


@pytest.mark.parametrize("damage", ["cut", "weights", "missing"])
def test_a_damaged_model_is_told(damage: str, run: Run, bundle: Bundle) -> None:
    for file in (bundle.artefact, bundle.artefact.with_name("model.onnx.data")):
        copy = run.folder / file.name
        copy.write_bytes(file.read_bytes())
    model = run.folder / bundle.artefact.name
    run.plan |= {"model": model}
    if damage == "cut":
        model.write_bytes(model.read_bytes()[:-500])
    elif damage == "weights":
        weights = model.with_name("model.onnx.data")
        weights.write_bytes(bytes(reversed(weights.read_bytes())))
    else:
        model.unlink()
    code, said = run()
    (end,) = run.of(End)
    assert code == 1
    assert end.code in ("model", "engine")
    assert end.message in said
    assert damage != "missing" or "No such file" in said
    assert not run.of(Repeated)


def test_it_goes_on_after_kill_9(run: Run) -> None:
    run.plan |= {"repetitions": 6, "cool_down_ns": 30_000_000}
    process = run.start()
    run.wait_for(lambda: run.repetitions_so_far() >= 2)
    process.send_signal(signal.SIGKILL)
    process.wait()
    done = run.of(Repeated)
    assert 2 <= len(done) < 6
    with run.journal.open("a") as file:
        file.write('{"type":"repetition","seq":99,"ind')  # a line that was never finished
    assert run()[0] == 0
    assert run.of(Repeated)[: len(done)] == done
    assert [repetition.index for repetition in run.of(Repeated)] == list(range(6))
    assert [begin.plan for begin in run.of(Begin)] == ["c0ffee"] * 2
    assert len(run.of(ParityChecked)) == 2
    finished = run.journal.read_bytes()
    assert run()[0] == 0
    assert run.journal.read_bytes() == finished


def test_a_repetition_that_was_cut_off_is_done_again_under_its_number(run: Run) -> None:
    run.turns.append(f"{run.folder}/turn1 2")
    assert run()[0] == 0
    lines = run.journal.read_text().splitlines(keepends=True)
    second_turn = [at for at, line in enumerate(lines) if '"repetition"' in line][3]  # of the second repetition
    run.journal.write_text("".join(lines[:second_turn]))
    assert run()[0] == 0
    turns = [(entry.index, entry.turn) for entry in run.of(Repeated)]
    assert turns == [(0, 0), (0, 1), (1, 0), (1, 0), (1, 1), (2, 0), (2, 1)]
    assert len(journal.finished(run.entries(), turns=2)) == 3


def test_the_journal_of_another_plan_stays_as_it_is(run: Run) -> None:
    assert run()[0] == 0
    before = run.journal.read_bytes()
    run.plan["digest"] = "c0ffe"  # the beginning of the other
    code, said = run()
    assert code == 2
    assert "another plan" in said
    assert run.journal.read_bytes() == before


def test_two_runs_don_t_write_one_journal(run: Run) -> None:
    run.plan |= {"repetitions": 1000}
    process = run.start()
    run.wait_for(lambda: run.repetitions_so_far() > 0)
    code, said = run()
    process.kill()
    process.wait()
    assert code == 2
    assert "being written" in said


def test_a_full_disk_is_told(run: Run) -> None:
    code, said = run(Path("/dev/full"))
    assert code == 1
    assert "No space left" in said


@pytest.mark.parametrize(
    ("change", "code", "message"),
    [
        ({"colour": "red"}, "usage", "unknown key 'colour'"),
        ({"threads": "two"}, "usage", "threads is 'two'"),
        ({"repetitions": 0}, "usage", "repetitions is '0'"),
        ({"mode": "forever"}, "usage", "mode is 'forever'"),
        ({"cores": "0,x"}, "usage", "cores is 'x'"),
        ({"cores": "1023"}, "usage", "can't be kept on the cores"),
        ({"kl_limit": ""}, "usage", "kl_limit is ''"),
        ({"vocab": 20}, "usage", "outside 0..19"),
        ({"vocab": 161}, "model", "no logits of 161 tokens"),
        ({"context": 500}, "context", "608 tokens don't fit in a context of 500"),
        ({"samples": "/absent"}, "usage", "samples /absent: No such file"),
        ({"onnxruntime": "/absent.so"}, "library", "/absent.so: No such file"),
        ({"onnxruntime": library_path()}, "library", "is not ONNX Runtime"),
        ({"onnxruntime": Path(__file__)}, "library", "can't be loaded"),
        ({"kernels": "/absent.so"}, "library", "/absent.so: No such file"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_what_is_wrong_is_said_on_both_ends(change: dict[str, object], code: str, message: str, run: Run) -> None:
    run.plan |= change
    exit_code, said = run()
    (end,) = run.of(End)
    assert end.code == code
    assert message in end.message
    assert end.message in said
    assert exit_code == (2 if code == "usage" else 1)


@pytest.mark.parametrize("text", ["", "edge-plan 2\n", "something else"])
def test_what_is_no_plan_is_refused(text: str, run: Run) -> None:
    plan = run.folder / "plan"
    plan.write_text(text)
    done = subprocess.run([run.program, plan, run.journal], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert str(plan) in done.stderr
    assert not run.journal.exists()


def test_throttled_repetitions_are_repeated(run: Run) -> None:
    cap = run.watched("cap", 2_000_000)
    run.plan |= {"cap": cap, "cool_down_ns": 50_000_000, "wait_ns": 100_000_000, "most_repetitions": 5}
    process = run.start()
    run.wait_for(lambda: run.repetitions_so_far() > 0)
    cap.write_text("1000000\n")
    assert process.wait(timeout=60) == 0
    throttled = [one.throttled for one in run.of(Repeated)]
    assert len(throttled) == 5
    assert throttled == sorted(throttled)
    assert throttled[-1]
    assert run.of(Repeated)[-1].caps_khz == [1_000_000]
    assert run.spans("wait")  # for the cap to come back


def test_a_run_that_is_taken_up_knows_how_high_the_caps_were(run: Run) -> None:
    cap = run.watched("cap", 2_000_000)
    run.plan |= {"cap": cap, "repetitions": 1, "most_repetitions": 2}
    assert run()[0] == 0
    lines = run.journal.read_text().splitlines(keepends=True)
    run.journal.write_text("".join(lines[:-1]))
    run.plan |= {"repetitions": 2}
    cap.write_text("1500000\n")
    assert run()[0] == 0
    assert [one.throttled for one in run.of(Repeated)] == [False, True]


def test_it_waits_until_it_is_cool(run: Run) -> None:
    run.plan |= {"temperature": run.watched("temperature", 60_000), "start_below_mc": 50_000, "wait_ns": 200_000_000}
    run.plan |= {"repetitions": 1}
    assert run()[0] == 0
    (wait,) = run.spans("wait")
    assert wait.end_ns - wait.start_ns >= 200_000_000
    assert run.of(Repeated)[0].temperature_mc == 60_000


def test_a_sustained_run_ends_with_its_time(run: Run) -> None:
    run.plan |= {"mode": "sustained", "most_ns": 300_000_000, "cv_gate": 0, "cool_down_ns": 10_000_000_000}
    run.plan |= {"cores": "0"}
    assert run()[0] == 0
    done = run.of(Repeated)
    assert len(done) > 3
    assert sum(one.prefill_ns + sum(one.decode_ns) for one in done[:-1]) < 300_000_000
    assert not run.spans("cool-down")


def test_a_trace_has_single_steps_alone(run: Run, bundle: Bundle) -> None:
    trace = run.folder / "trace.json"
    run.turns = [f"{run.folder}/turn1 5"]
    run.plan |= {"profile": trace}
    assert run()[0] == 0
    rows = onnx.operator_times(trace, bundle.manifest.layer_of_node)
    assert {row.calls for row in rows} == {20 + 4}
    assert {"LinearAffine", "Attention"} & {row.operator for row in rows}
    assert run.of(End)[0].code == "ok"
    assert not run.of(Repeated)
