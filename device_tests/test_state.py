"""State, small files and the native sampler on the stand-ins: what is read there, set there and given back."""

from __future__ import annotations

import pytest

from edge.core.transport import Connection
from edge.profiles import sampled, telemetry
from edge.profiles.mirror import mirror
from edge.profiles.state import SCRIPT, prepared
from edge.runtimes.transports import connect

NAMES = ("screen_brightness", "screen_brightness_mode", "screen_off_timeout")


@pytest.fixture(params=["phone", "jetson"])
def connection(request, bench) -> Connection:
    return connect(request.getfixturevalue(request.param).name)


def test_a_devices_files_and_what_the_sampler_reads_of_them(connection, tmp_path):
    from edge.kernels.runner import build

    tree = mirror(connection, tmp_path / "tree")
    source, reason = telemetry.source_of(tree)
    assert source is not None, reason
    columns = telemetry.columns(tree)
    (tmp_path / "columns").write_text(telemetry.text(columns))
    folder = f"{connection.folder}/sampled"
    connection.push(build(connection.device.platform).sampler, f"{folder}/sampler")
    connection.push(tmp_path / "columns", f"{folder}/columns")
    connection.run(["chmod", "755", f"{folder}/sampler"])
    options = ["--interval-ms", "100", "--columns", f"{folder}/columns", "--out", f"{folder}/samples"]
    done = connection.run([f"{folder}/sampler", *options, "--", "sh", "-c", "sleep 2; exit 7"])
    assert done.code == 7, done.stderr
    connection.pull(f"{folder}/samples", tmp_path / "samples")
    (found,) = sampled.parse((tmp_path / "samples").read_bytes())
    assert found.end["code"] == 7 and sampled.cost([found]).rate_hz == pytest.approx(10, rel=0.3)
    read = {column.name for column in columns if found.column(column.name)[0] == found.column(column.name)[0]}
    assert {"frequency/cpu0", "cap/cpu0", "memory/resident", telemetry.rail(source.channels[0].name, 0)} <= read


def test_a_phones_state_is_set_and_given_back(bench, phone):
    connection = connect(phone.name)

    def settings() -> list[str]:
        script = 'for name; do settings get system "$name"; done; settings get global low_power'
        return connection.run(["sh", "-c", script, "sh", *NAMES]).stdout.decode().split()

    before = settings()
    with prepared(connection, True) as state:
        assert state["thermal status"] == "0" and state["brightness set"] == "1"
        assert state["fixed performance set"] == "on" and settings() == ["1", "0", "2147483647", "0"]
    assert settings() == before
    folder = f"{connection.folder}/state"
    assert connection.run(["sh", "-c", SCRIPT, "edge", "beat", folder, "", "1"]).stdout == b"gone\n"
