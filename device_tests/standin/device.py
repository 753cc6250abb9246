"""A stand-in: a system in namespaces of its own, and what can happen to it."""

from __future__ import annotations

import json
import select
import shutil
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil

from . import trees
from .root import System

HERE = Path(__file__).parent
PATIENCE_S = 60


class StandIn:
    """`folder` is the host's view of it: `data` is its disk, `sys` its sysfs."""

    name = ""

    def __init__(self, system: System, folder: Path, port: int) -> None:
        self.system, self.folder, self.port = system, folder, port
        self.data, self.sys = folder / "data", folder / "sys"
        self._init: subprocess.Popen[str] | None = None

    @property
    def edge_folder(self) -> Path:
        """What edge keeps there, seen from here; not where `disk_bytes` were given."""
        raise NotImplementedError

    def describe(self) -> dict[str, Any]:
        """server: the command that is to run there, environment: of it, match: part of the names of its processes,
        disk: where edge writes, binds: path there and folder here."""
        raise NotImplementedError

    def tree(self) -> trees.Tree:
        raise NotImplementedError

    def start(self, disk_bytes: int = 0) -> None:
        """Boot. disk_bytes: how much fits where edge writes; 0 for whatever the host has."""
        for name in ("root", "binfmt", "data"):
            (self.folder / name).mkdir(parents=True)
        tree = self.tree()
        trees.write(tree, self.sys)
        device = self.describe()
        device["binds"] = {"/sys": str(self.sys), "/data": str(self.data), **device["binds"]}
        moving = {f"sys/{name}": how for name, how in tree.moving.items()}
        device |= {
            "folder": str(self.folder),
            "system": str(self.system.root),
            "qemu": str(self.system.qemu),
            "moving": moving,
            "disk_bytes": disk_bytes,
        }
        file = self.folder / "device.json"
        file.write_text(json.dumps(device))
        with (self.folder / "init.log").open("wb") as log:
            self._init = subprocess.Popen(
                [sys.executable, str(HERE / "init.py"), str(file)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                start_new_session=True,
            )
        self._answer("ready")
        self.order("start")

    def order(self, name: str) -> None:
        assert self._init and self._init.stdin
        self._init.stdin.write(f"{name}\n")
        self._init.stdin.flush()
        self._answer(name)

    def _answer(self, wanted: str) -> None:
        assert self._init and self._init.stdout
        ready, _, _ = select.select([self._init.stdout], [], [], PATIENCE_S)
        if not ready or self._init.stdout.readline().strip() != wanted:
            log = (self.folder / "init.log").read_text()
            self.stop()
            raise RuntimeError(f"{self.name} did not answer '{wanted}': {log}")

    def disconnect(self) -> None:
        """The cable is pulled: the server and all its connections die, what they started lives on."""
        self.order("kill")

    def reconnect(self) -> None:
        """The cable is back."""
        self.order("start")

    def reboot(self) -> None:
        """Every process dies; the disk stays."""
        self.order("reboot")

    def kill(self, program: str) -> int:
        """SIGKILL to all that run a file of this name there; how many they were."""
        assert self._init
        found = 0
        for process in psutil.Process(self._init.pid).children(recursive=True):
            with suppress(psutil.Error):
                command = process.cmdline()  # QEMU, the file, its arguments from their 0th on
                if len(command) > 1 and Path(command[1]).name == program:
                    process.kill()
                    found += 1
        return found

    def stop(self) -> None:
        if self._init:
            assert self._init.stdin and self._init.stdout
            self._init.stdin.close()
            self._init.wait(PATIENCE_S)
            self._init.stdout.close()
            self._init = None
        shutil.rmtree(self.folder, ignore_errors=True)
