"""A test bench: phones and Jetsons on a network that ends at this process, and an adb server of its own."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path

import adbutils

from edge.core.files import cache_folder

from . import namespaces
from .device import PATIENCE_S
from .jetson import Jetson
from .phone import Phone
from .root import system

SERVER_PORT, FIRST_PHONE, FIRST_JETSON = 15037, 16557, 16622


PLATFORM, ANDROID = "linux-arm64", "android-arm64"
"""What is built for the stand-ins: their C library is Debian's, on the phone as well."""


def fetch_tools() -> None:
    """Have what edge brings to a device in the cache: on the bench there is no network to fetch it by."""
    from edge.kernels.runner import build
    from edge.runtimes._onnxruntime_library import library_for

    build(PLATFORM)
    library_for(PLATFORM)
    if fetched_for(ANDROID):
        build(ANDROID)


def fetched_for(platform: str) -> bool:
    """Whether ONNX Runtime's library for it is in the cache."""
    from edge.runtimes._onnxruntime_library import LIBRARY, version_for

    return (cache_folder() / f"onnxruntime-{version_for(platform)}-{platform}" / LIBRARY).is_file()


class Bench:
    """`with Bench() as bench: phone = bench.phone(); jetson = bench.jetson()`.

    Inside, this thread and what it starts see only the bench's network: no other program can reach the phones, which
    ask nobody for a password, and they can't reach anything. Programs are to be run with `bench.environment`.
    """

    def __init__(self) -> None:
        self.system = system()
        self.phones: list[Phone] = []
        self.jetsons: list[Jetson] = []
        self._stack = ExitStack()

    def __enter__(self) -> Bench:
        with ExitStack() as stack:
            stack.enter_context(namespaces.own_network())
            self.folder = Path(tempfile.mkdtemp(prefix="edge-standin-"))
            stack.callback(shutil.rmtree, self.folder, ignore_errors=True)
            for name in ("home", "tmp"):
                (self.folder / name).mkdir()
            self.adb = adbutils.adb_path()
            self._configure_ssh()
            self._share_cache()
            self.start_adb()
            stack.callback(self.stop_adb)
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *error: object) -> None:
        self._stack.close()

    @property
    def environment(self) -> dict[str, str]:
        """This process's, so that adb and ssh find the devices, and nothing of the user's is read or written."""
        tools = [self.folder / "bin", Path(self.adb).parent, Path(sys.executable).parent]
        return {
            **os.environ,
            "ANDROID_ADB_SERVER_PORT": str(SERVER_PORT),
            "HOME": str(self.folder / "home"),
            "TMPDIR": str(self.folder / "tmp"),
            "EDGE_CACHE": str(self.folder / "cache"),
            "PATH": ":".join([*map(str, tools), os.environ["PATH"]]),
            "EDGE_SSH_CONFIG": str(self.ssh_config),
            "HF_HUB_OFFLINE": "1",
        }

    def _configure_ssh(self) -> None:
        """Every Jetson brings a piece; who calls ssh by hand gets it as well."""
        self.ssh_config = self.folder / "ssh_config"
        self.ssh_config.write_text(f"Include {self.folder}/jetson*/ssh/config\n")
        (self.folder / "bin").mkdir()
        tool = self.folder / "bin/ssh"
        tool.write_text(f'#!/bin/sh\nexec {shutil.which("ssh")} -F {self.ssh_config} "$@"\n')
        tool.chmod(0o755)

    def _share_cache(self) -> None:
        """Tools are taken from the user's cache; journals and locks of devices with the same names are not."""
        (self.folder / "cache").mkdir()
        for entry in cache_folder().glob("*"):
            if entry.name.startswith(("runner-", "sampler-", "kernels-", "onnxruntime-")):
                (self.folder / "cache" / entry.name).symlink_to(entry)

    def start_adb(self) -> None:
        """The server goes with this process, however that ends."""
        with (self.folder / "adb.log").open("ab") as log:
            self._server = subprocess.Popen(
                ["setpriv", "--pdeathsig", "KILL", self.adb, "server", "nodaemon"],
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )

    def stop_adb(self) -> None:
        """End the server, also one that a client has started in its place."""
        self.run_adb("kill-server")
        self._server.kill()
        self._server.wait()

    def run_adb(self, *arguments: str) -> str:
        done = self._run(self.adb, *arguments)
        return done.stdout + done.stderr

    def _run(self, *command: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            command, env=self.environment, capture_output=True, text=True, check=False, timeout=PATIENCE_S
        )

    def phone(self, disk_bytes: int = 0, *, android: bool = False) -> Phone:
        number = len(self.phones)
        phone = Phone(self.system, self.folder / f"phone{number}", FIRST_PHONE + number, android=android)
        self._boot(phone, disk_bytes)
        self.phones.append(phone)
        deadline = time.monotonic() + PATIENCE_S
        while "connected to" not in (said := self.run_adb("connect", phone.serial)):
            if time.monotonic() > deadline:
                raise RuntimeError(f"adb does not reach the stand-in: {said}")
            time.sleep(0.2)
        self.run_adb("-s", phone.serial, "wait-for-device")
        return phone

    def jetson(self, disk_bytes: int = 0) -> Jetson:
        jetson = Jetson(self.system, self.folder / f"jetson{len(self.jetsons)}", FIRST_JETSON + len(self.jetsons))
        self._boot(jetson, disk_bytes)
        self.jetsons.append(jetson)
        deadline = time.monotonic() + PATIENCE_S
        while self._run("ssh", jetson.alias, "true").returncode:
            if time.monotonic() > deadline:
                raise RuntimeError("ssh does not reach the stand-in")
            time.sleep(0.2)
        return jetson

    def _boot(self, device: Phone | Jetson, disk_bytes: int) -> None:
        self._stack.callback(device.stop)
        device.start(disk_bytes)
