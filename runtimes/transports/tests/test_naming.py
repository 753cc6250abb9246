"""Names of devices, lists of them, and why one can't be used."""

from __future__ import annotations

import socketserver
import threading
import time
from pathlib import Path

import pytest

from edge.core.errors import DeviceUnavailable, EdgeError, UsageError
from edge.runtimes.transports import adb, connect, devices, ssh

SERIAL = "8ADX0QUH3"
LISTING = """* daemon not running; starting now at tcp:5037
* daemon started successfully
List of devices attached
8ADX0QUH3              device usb:1-1 product:oriole model:Pixel_6 device:oriole transport_id:5
emulator-5554          offline transport_id:1
0A1B2C3D               unauthorized usb:1-2 transport_id:3
R58M                   recovery usb:1-3 product:x model:Galaxy device:y transport_id:7
192.168.1.5:5555       device product:oriole model:Pixel_6 device:oriole transport_id:9
adb-14151F-abc (2)._adb-tls-connect._tcp device product:p model:M_1 device:d transport_id:2
deadbeef               no permissions (missing udev rules? user is in the plugdev group); see [http://x.y] usb:1-4

"""


def test_what_adb_lists():
    found = {device.name: device for device in adb.parse(LISTING)}
    ready = ["adb:8ADX0QUH3", "adb:192.168.1.5:5555", "adb:adb-14151F-abc (2)._adb-tls-connect._tcp"]
    assert [name for name, device in found.items() if not device.problem] == ready
    assert found["adb:8ADX0QUH3"].model == "Pixel 6"
    problems = {name: device.problem for name, device in found.items() if device.problem}
    assert problems["adb:0A1B2C3D"] == "unauthorized (unlock it and accept the dialog about USB debugging)"
    assert "offline" in problems["adb:emulator-5554"] and "udev" in problems["adb:deadbeef"]
    assert problems["adb:R58M"] == "recovery (start Android on it)"
    assert len(found) == 7 and adb.parse("") == []


@pytest.mark.parametrize(
    ("address", "arguments"),
    [
        ("jetson", ["jetson"]),
        ("nano@10.0.0.7", ["-l", "nano", "10.0.0.7"]),
        ("nano@jetson.local:2222", ["-p", "2222", "-l", "nano", "jetson.local"]),
        ("[fe80::1%eth0]:22", ["-p", "22", "fe80::1%eth0"]),
    ],
)
def test_where_ssh_goes(address, arguments):
    assert ssh.destination(address) == arguments


@pytest.mark.parametrize(
    "name", ["ssh:", "ssh:-oProxyCommand=x", "ssh:a b", "ssh:host:", "ssh:a@-b", "adb:-s", "cpu:1"]
)
def test_what_is_no_address(name):
    with pytest.raises(UsageError):
        connect(name)


def test_a_name_of_no_kind_has_a_nearest_one():
    with pytest.raises(UsageError, match="did you mean 'cpu'"):
        connect("gpu")


def test_the_only_phone_needs_no_serial(fake_adb):
    assert connect("adb").device.name == connect("adb:").device.name == f"adb:{SERIAL}"


def test_a_phone_that_is_not_ready_says_why(fake_adb):
    (fake_adb / "state").write_text("unauthorized")
    with pytest.raises(DeviceUnavailable, match="accept the dialog"):
        connect(f"adb:{SERIAL}")
    with pytest.raises(DeviceUnavailable, match="no adb:other"):
        connect("adb:other")
    (listed,) = adb.devices()
    assert listed.name == f"adb:{SERIAL}" and "accept the dialog" in listed.problem


def test_without_adb_there_is_a_hint(monkeypatch, tmp_path):
    monkeypatch.setattr(adb, "SDKS", ())
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setitem(__import__("sys").modules, "adbutils", None)
    with pytest.raises(DeviceUnavailable, match=r"edge-deploy\[adb\]"):
        connect("adb:x")
    assert adb.devices() == []


def test_the_sdk_s_own_adb_comes_first(monkeypatch, tmp_path, fake_adb):
    own = tmp_path / "sdk" / "platform-tools" / "adb"
    own.parent.mkdir(parents=True)
    own.touch(0o755)
    assert adb.find_adb() == str(fake_adb / "adb")
    monkeypatch.setenv("ANDROID_HOME", str(tmp_path / "sdk"))
    monkeypatch.setattr(adb, "SDKS", ("$ANDROID_HOME",))
    assert adb.find_adb() == str(own)


def test_all_devices_are_asked_at_once(fake_adb, sshd, free_port, monkeypatch, tmp_path):
    monkeypatch.setenv("EDGE_CACHE", str(tmp_path))
    monkeypatch.setenv("EDGE_SSH_CONFIG", str(sshd.config))
    nobody = f"ssh:127.0.0.1:{free_port}"
    found = {device.name: device for device in devices([f"ssh:{sshd.host}", nobody, "cpu", "gpu:0"])}
    assert list(found) == ["cpu", f"adb:{SERIAL}", f"ssh:{sshd.host}", nobody, "gpu:0"]
    assert [name for name, device in found.items() if device.problem] == [nobody, "gpu:0"]
    assert "Connection refused" in found[nobody].problem


def test_a_stranger_s_key_is_refused_with_a_hint(sshd, monkeypatch):
    monkeypatch.delenv("EDGE_SSH_CONFIG", raising=False)
    port = sshd.config.read_text().split("Port ")[1].split()[0]
    with pytest.raises(EdgeError, match="connect once by hand"):
        connect(f"ssh:127.0.0.1:{port}")


def test_hosts_are_remembered_until_they_are_forgotten(monkeypatch, tmp_path):
    monkeypatch.setenv("EDGE_CACHE", str(tmp_path))
    monkeypatch.delenv("EDGE_SSH_CONFIG", raising=False)
    assert ssh.remembered() == []
    ssh.remember(["ssh:b", "ssh:a"])
    ssh.remember(["ssh:a", "ssh:c"])
    ssh.forget("ssh:a")
    assert ssh.remembered() == ["ssh:b", "ssh:c"]
    with pytest.raises(UsageError, match="ssh:b, ssh:c"):
        ssh.forget("ssh:a")


class Server(socketserver.StreamRequestHandler):
    """What adb's server says to `track-devices`: the phone comes back after a while."""

    def handle(self) -> None:
        if self.rfile.read(4) and self.rfile.read(18) == b"host:track-devices":
            self.wfile.write(b"OKAY")
            for state in ("offline", "device"):
                line = f"{SERIAL}\t{state}\n".encode()
                self.wfile.write(b"%04x%s" % (len(line), line))
                time.sleep(0.3)


def test_a_phone_that_comes_back_is_noticed(monkeypatch):
    pytest.importorskip("adbutils")
    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Server) as server:
        monkeypatch.setenv("ANDROID_ADB_SERVER_PORT", str(server.server_address[1]))
        threading.Thread(target=server.serve_forever, daemon=True).start()
        start = time.monotonic()
        adb.wait_for(SERIAL, 10)
        assert 0.2 < time.monotonic() - start < 5
        start = time.monotonic()
        adb.wait_for("another", 0.5)
        assert time.monotonic() - start < 5
        server.shutdown()


def test_two_connections_do_not_know_each_other(fake_adb, tmp_path: Path):
    phone, here = connect(f"adb:{SERIAL}"), connect("cpu")
    (tmp_path / "file").write_bytes(bytes(1 << 20))
    jobs = [
        threading.Thread(target=connection.push, args=(tmp_path / "file", str(tmp_path / connection.device.name)))
        for connection in (phone, here)
    ]
    for job in jobs:
        job.start()
    for job in jobs:
        job.join()
    assert (tmp_path / f"adb:{SERIAL}").read_bytes() == (tmp_path / "cpu").read_bytes() == bytes(1 << 20)
