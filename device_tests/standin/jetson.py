"""A Jetson: Debian's OpenSSH server with keys made for the occasion, a user without rights, an INA3221."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

from . import trees
from .device import StandIn
from .root import QEMU_PREFIX

USER, USER_ID = "nvidia", 1000
BOARD = {"model": "NVIDIA Jetson Orin Nano Developer Kit", "compatible": "nvidia,p3767\0nvidia,tegra234"}
SERVER = """\
HostKey /etc/ssh/host_key
PidFile none
UsePAM no
PasswordAuthentication no
KbdInteractiveAuthentication no
AuthorizedKeysFile /etc/ssh/authorized_keys
StrictModes no
Subsystem sftp internal-sftp
"""
CLIENT = """\
Host {alias}
  HostName 127.0.0.1
  Port {port}
  User {user}
  IdentityFile {folder}/key
  IdentitiesOnly yes
  UserKnownHostsFile {folder}/known_hosts
  GlobalKnownHostsFile /dev/null
  StrictHostKeyChecking yes
"""


class Jetson(StandIn):
    """`alias` is its name in ssh's configuration, `name` what edge does."""

    disk = f"/home/{USER}"

    @property
    def alias(self) -> str:
        return f"standin-{self.folder.name}"

    @property
    def name(self) -> str:  # type: ignore[override]
        return f"ssh:{self.alias}"

    @property
    def edge_folder(self) -> Path:
        return self.folder / "home/.cache/edge/device"

    def describe(self) -> dict[str, Any]:
        etc, home = self.folder / "etc", self.folder / "home"
        shutil.copytree(self.system.root / "etc", etc, symlinks=True)
        home.mkdir()
        os.chown(home, USER_ID, USER_ID)
        (etc / "nv_tegra_release").write_text("# R36 (release), REVISION: 4.3, BOARD: generic, EABI: aarch64\n")
        # procfs takes no files, but QEMU looks at its prefix first
        board = self.folder / "prefix/proc/device-tree"
        board.mkdir(parents=True)
        for name, text in BOARD.items():
            (board / name).write_text(f"{text}\0")
        self._keys(etc / "ssh")
        server = ["/usr/sbin/sshd", "-D", "-e", "-p", str(self.port), "-o", "ListenAddress=127.0.0.1"]
        return {
            "server": server,
            "environment": ["PATH=/usr/sbin:/usr/bin:/sbin:/bin"],
            "match": "sshd",
            "disk": self.disk,
            "binds": {"/etc": str(etc), f"/home/{USER}": str(home), QEMU_PREFIX: str(self.folder / "prefix")},
        }

    def tree(self) -> trees.Tree:
        return trees.jetson()

    def _keys(self, server: Path) -> None:
        client = self.folder / "ssh"
        client.mkdir(mode=0o700)
        for key in (client / "key", server / "host_key"):
            subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "standin", "-f", key], check=True)
        shutil.copy(client / "key.pub", server / "authorized_keys")
        (server / "sshd_config").write_text(SERVER)
        known = (server / "host_key.pub").read_text()
        (client / "known_hosts").write_text(f"[127.0.0.1]:{self.port} {known}")
        (client / "config").write_text(CLIENT.format(alias=self.alias, port=self.port, user=USER, folder=client))
