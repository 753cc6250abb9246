"""A device's own edge as what measures: here another process of this machine."""

import sys

import pytest

from edge import api
from edge.core.errors import DeviceUnavailable, EdgeError
from edge.models.testing import tiny_model
from edge.profiles import journal, python_there
from edge.profiles.plan import Plan
from edge.runtimes.transports import local

PLAN = Plan(prompt_tokens=6, generated_tokens=4, repetitions=5, min_seconds=0, threads=1)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    folder = tmp_path_factory.mktemp("there")
    return api.export(tiny_model("llama", folder / "model"), folder / "bundle", context_length=64, kernels="builtin")


@pytest.fixture
def connection(tmp_path, monkeypatch):
    monkeypatch.setattr(journal, "cache_folder", lambda: tmp_path / "host")
    monkeypatch.setenv("EDGE_CACHE", str(tmp_path / "device"))
    return local.LocalConnection()


def test_a_python_session_there_and_the_result_says_so(bundle, connection, monkeypatch):
    monkeypatch.setenv(python_there.PYTHON, sys.executable)
    outcome = python_there.profile_in_python(connection, bundle, PLAN, "it is a test")
    found = outcome.measurement
    assert outcome.error is None and found.engine == "python" and found.engine_note == "it is a test"
    assert len(found.repetitions) >= 5 and found.bundle == str(bundle.path)


def test_a_run_that_fails_there_fails_here(bundle, connection, monkeypatch):
    monkeypatch.setenv(python_there.PYTHON, sys.executable)
    plan = Plan(prompt_tokens=6, generated_tokens=4, repetitions=5, min_seconds=0, cores=[4000])
    with pytest.raises(EdgeError, match="4000"):
        python_there.profile_in_python(connection, bundle, plan, "it is a test").deliver(None)


def test_no_edge_there(bundle, connection, monkeypatch):
    monkeypatch.setenv(python_there.PYTHON, "/bin/false")
    with pytest.raises(DeviceUnavailable, match="no Python on cpu has edge"):
        python_there.profile_in_python(connection, bundle, PLAN, "it is a test")
