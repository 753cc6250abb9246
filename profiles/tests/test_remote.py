"""A run by the native runner, from the host's side: this machine as the device, and a link that breaks."""

import itertools
import shutil

import msgspec
import pytest
from safetensors.numpy import load_file, save_file

from edge import api
from edge.core.bundle import Bundle, open_bundle
from edge.core.errors import GateFailed, UsageError
from edge.core.transport import DeviceLost
from edge.models.testing import tiny_model
from edge.profiles import deploy, journal, remote
from edge.profiles.plan import Plan
from edge.runtimes.transports import local

PLAN = Plan(prompt_tokens=6, generated_tokens=4, repetitions=5, min_seconds=0, threads=1, engine="runner")


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    folder = tmp_path_factory.mktemp("remote")
    model = tiny_model("llama", folder / "model")
    compressed = api.compress(model, "int4", folder / "int4")
    return api.export(compressed, folder / "bundle", context_length=64)


@pytest.fixture(autouse=True)
def folders(tmp_path, monkeypatch):
    """Runs and what is deployed go into the test's own folder; built tools stay in the cache."""
    monkeypatch.setattr(journal, "cache_folder", lambda: tmp_path / "host")
    look = local.LocalConnection.look
    monkeypatch.setattr(local.LocalConnection, "look", lambda self, folder: look(self, str(tmp_path / "device")))


def loses_every(count, monkeypatch):
    """A link that breaks at every `count`-th command; how often it did."""
    lost, calls = [], itertools.count(1)
    running = local.LocalConnection.running

    def breaking(self, wrapper, command):
        if next(calls) % count == 0:
            lost.append(command)
            raise DeviceLost("device.lost", "pulled", "plug it in")
        return running(self, wrapper, command)

    monkeypatch.setattr(local.LocalConnection, "running", breaking)
    return lost


def test_a_run_by_the_native_runner(bundle, tmp_path):
    outcome = remote.profile_on("cpu", bundle, PLAN)
    found = outcome.measurement
    assert outcome.error is None and found.engine == "runner" and found.problem == ""
    assert len(found.repetitions) >= 5 and all(len(r.decode_ns) == 3 for r in found.repetitions)
    assert found.parity.kl_divergence <= found.parity.kl_divergence_limit
    assert {row.operator for row in found.operators} >= {"Linear", "Attention"}
    assert found.peak_bytes > 1e6 and found.load_ns > 0 and found.device["libraries"]["onnxruntime"]
    assert found.sampler is not None and not found.emulated
    assert [phase.name for phase in found.phases][:2] == ["load", "warm-up"]
    assert not list((tmp_path / "device" / "runs").iterdir())  # nothing but tools and bundles stays there


def test_a_link_that_breaks_again_and_again_loses_nothing_and_counts_nothing_twice(bundle, monkeypatch):
    lost = loses_every(7, monkeypatch)
    monkeypatch.setattr(deploy, "RECONNECT_S", 5)
    outcome = remote.profile_on("cpu", bundle, PLAN)
    repetitions = journal.finished(journal.read(outcome.folder / journal.NAME))
    assert len(lost) > 3 and outcome.error is None
    assert [r.index for (r,) in repetitions] == list(range(len(outcome.measurement.repetitions)))


def test_a_finished_run_whose_host_died_is_not_run_again(bundle):
    first = remote.profile_on("cpu", bundle, PLAN)  # nobody has delivered it
    again = remote.profile_on("cpu", bundle, PLAN)
    fresh = remote.profile_on("cpu", bundle, PLAN, fresh=True)
    assert again.measurement.repetitions == first.measurement.repetitions != fresh.measurement.repetitions


def test_a_device_that_lost_its_files_goes_on_from_the_hosts_journal(bundle, tmp_path):
    first = remote.profile_on("cpu", bundle, PLAN)
    path = first.folder / journal.NAME
    lines = path.read_bytes().splitlines(keepends=True)
    third = [i for i, line in enumerate(lines) if b'"repetition"' in line][2]
    path.write_bytes(b"".join(lines[: third + 1]) + b'{"type":"repet')  # torn, and nothing is left on the device
    again = remote.profile_on("cpu", bundle, PLAN)
    assert again.error is None
    assert again.measurement.repetitions[:3] == first.measurement.repetitions[:3]
    assert sum(isinstance(entry, journal.Begin) for entry in journal.read(path)) == 2


def test_a_model_that_says_something_else_there_is_not_timed(bundle, tmp_path):
    folder = tmp_path / "other"
    shutil.copytree(bundle.path, folder)
    samples = load_file(folder / "samples.safetensors")
    save_file({"tokens": samples["tokens"], "logits": -samples["logits"]}, folder / "samples.safetensors")
    outcome = remote.profile_on("cpu", open_bundle(folder, verify=False), PLAN)
    assert not outcome.measurement.repetitions and outcome.measurement.problem
    with pytest.raises(GateFailed, match="KL divergence"):
        raise outcome.error


def test_what_the_runner_does_not_run_is_said_in_a_line(bundle):
    other = Bundle(bundle.path, msgspec.structs.replace(bundle.manifest, runtime="executorch"))
    with pytest.raises(UsageError, match="runs ONNX Runtime, not executorch"):
        remote.profile_on("cpu", other, PLAN)


def test_bytes_are_shown_as_megabytes():
    seen = []
    deploy.megabytes(lambda steps, note: seen.append((steps, note)), "model.onnx")(5_000_000)
    assert seen == [(5.0, "model.onnx")]
