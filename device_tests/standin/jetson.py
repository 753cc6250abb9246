"""A Jetson: Debian's OpenSSH server with keys made for the occasion, a user without rights, an INA3221."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

from . import trees
from .device import StandIn

USER, USER_ID = "nvidia", 1000
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
Host {alias} 127.0.0.1
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
    """`alias` is its name in ssh's configuration, `name` what edge calls it. `bin` has an ssh that reads that one."""

    alias = "standin-jetson"
    name = f"ssh:{alias}"
    disk = f"/home/{USER}"

    def describe(self) -> dict[str, Any]:
        etc, home = self.folder / "etc", self.folder / "home"
        shutil.copytree(self.system.root / "etc", etc, symlinks=True)
        home.mkdir()
        os.chown(home, USER_ID, USER_ID)
        (etc / "nv_tegra_release").write_text("# R36 (release), REVISION: 4.3, BOARD: generic, EABI: aarch64\n")
        self._keys(etc / "ssh")
        server = ["/usr/sbin/sshd", "-D", "-e", "-p", str(self.port), "-o", "ListenAddress=127.0.0.1"]
        return {
            "server": server,
            "environment": ["PATH=/usr/sbin:/usr/bin:/sbin:/bin"],
            "match": "sshd",
            "disk": self.disk,
            "binds": {"/etc": str(etc), f"/home/{USER}": str(home)},
        }

    def tree(self) -> trees.Tree:
        return trees.jetson()

    @property
    def home(self) -> Path:
        return self.folder / "home"

    @property
    def config(self) -> Path:
        """For `ssh -F`."""
        return self.folder / "ssh/config"

    @property
    def bin(self) -> Path:
        return self.folder / "bin"

    def _keys(self, server: Path) -> None:
        client = self.folder / "ssh"
        client.mkdir(mode=0o700)
        for key in (client / "key", server / "host_key"):
            subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "standin", "-f", key], check=True)
        shutil.copy(client / "key.pub", server / "authorized_keys")
        (server / "sshd_config").write_text(SERVER)
        known = (server / "host_key.pub").read_text()
        (client / "known_hosts").write_text(f"[127.0.0.1]:{self.port} {known}")
        self.config.write_text(CLIENT.format(alias=self.alias, port=self.port, user=USER, folder=client))
        self.bin.mkdir()
        for tool in ("ssh", "scp", "sftp"):
            if real := shutil.which(tool):
                (self.bin / tool).write_text(f'#!/bin/sh\nexec {real} -F {self.config} "$@"\n')
                (self.bin / tool).chmod(0o755)
