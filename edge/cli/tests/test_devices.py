"""What `edge devices` shows of what the transports find."""

from __future__ import annotations

import json

import pytest
from typer.testing import CliRunner

from edge.cli import app
from edge.core.target import Device
from edge.runtimes import transports

FOUND = [
    Device("cpu", "local", "Some CPU", 8, 16 << 30, free_bytes=5 * 10**9),
    Device("adb:1", "adb", "Pixel 6", 8, 8 << 30, soc="Tensor", battery_percent=76, emulated=True),
    Device("ssh:jetson", "ssh", "", 0, 0, problem="can't reach ssh:jetson: Connection refused (is sshd there?)"),
]


@pytest.fixture
def edge(monkeypatch, tmp_path):
    monkeypatch.setenv("EDGE_CACHE", str(tmp_path))
    monkeypatch.setattr(transports, "devices", lambda names: FOUND)
    return lambda *arguments: CliRunner().invoke(app, ["devices", *arguments])


def test_the_table_has_what_is_known_and_why_a_device_cannot_be_used(edge):
    result = edge()
    lines = {line.split()[0]: line for line in result.stdout.splitlines()}
    assert result.exit_code == 0
    assert "ready" in lines["cpu"]
    assert "76 %" in lines["adb:1"] and "Tensor" in result.stdout and "emulated" in result.stdout
    assert FOUND[2].problem in result.stdout


def test_a_named_device_that_cannot_be_used_is_a_failure_for_scripts(edge):
    result = edge("ssh:jetson", "--json")
    assert result.exit_code == 3
    assert [device["name"] for device in json.loads(result.stdout)] == ["cpu", "adb:1", "ssh:jetson"]
    assert edge("adb:1").exit_code == 0
