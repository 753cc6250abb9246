"""Process 1 of a stand-in: mounts its system, keeps its server running, moves its sensors, takes orders on stdin.

Run as a program with a JSON description of the device. Orders: `start`, `kill` (the server and its sessions; what
they started lives on), `reboot`; each is answered with a line. The device ends with its stdin.
"""

from __future__ import annotations

import json
import math
import os
import select
import signal
import subprocess
import sys
import time
import uuid
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
import namespaces

# Little-endian ELF for AArch64, an executable or a position-independent one.
MAGIC = r"\x7fELF\x02\x01\x01\x00\x00\x00\x00\x00\x00\x00\x00\x00\x02\x00\xb7\x00"
MASK = r"\xff\xff\xff\xff\xff\xff\xff\x00\xff\xff\xff\xff\xff\xff\xff\xff\xfe\xff\xff\xff"
DEVICES = ("null", "zero", "full", "random", "urandom", "tty")
TICK_S = 0.1


class Init:
    def __init__(self, device: dict) -> None:
        self.device = device
        self.folder = Path(device["folder"])
        self.root = self.folder / "root"
        self.server: subprocess.Popen | None = None
        self.started = time.monotonic()

    def mounts(self) -> None:
        root, folder = str(self.root), self.folder
        namespaces.mount("none", str(folder / "binfmt"), "binfmt_misc")
        (folder / "binfmt/register").write_text(f":aarch64:M::{MAGIC}:{MASK}:{self.device['qemu']}:OCPF")
        namespaces.bind(self.device["system"], root, read_only=True)
        namespaces.mount("proc", f"{root}/proc", "proc")
        namespaces.mount("tmpfs", f"{root}/dev", "tmpfs", data="mode=755")
        for name in DEVICES:
            Path(f"{root}/dev/{name}").touch()
            namespaces.bind(f"/dev/{name}", f"{root}/dev/{name}")
        for name, kind, options in (("pts", "devpts", "newinstance,ptmxmode=0666"), ("shm", "tmpfs", "mode=1777")):
            Path(f"{root}/dev/{name}").mkdir()
            namespaces.mount(kind, f"{root}/dev/{name}", kind, data=options)
        os.symlink("pts/ptmx", f"{root}/dev/ptmx")
        os.symlink("/proc/self/fd", f"{root}/dev/fd")
        for name in ("run", "tmp"):
            namespaces.mount("tmpfs", f"{root}/{name}", "tmpfs", data="mode=1777")
        (self.root / "run/sshd").mkdir(mode=0o755)
        for target, source in self.device["binds"].items():
            namespaces.bind(source.replace("SYSTEM", self.device["system"]), f"{root}{target}")
        if size := self.device["disk_bytes"]:
            namespaces.mount("tmpfs", f"{root}{self.device['disk']}", "tmpfs", data=f"size={size},mode=777")
        self.new_boot()

    def new_boot(self) -> None:
        file = self.folder / "boot_id"
        if not file.exists():
            file.write_text(f"{uuid.uuid4()}\n")
            namespaces.bind(str(file), f"{self.root}/proc/sys/kernel/random/boot_id")
        file.write_text(f"{uuid.uuid4()}\n")

    def start(self) -> None:
        if self.server is None or self.server.poll() is not None:
            log = (self.folder / "server.log").open("ab")
            command = ["/usr/sbin/chroot", str(self.root), "/usr/bin/env", "-i", *self.device["environment"]]
            self.server = subprocess.Popen(
                [*command, *self.device["server"]],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def kill(self) -> None:
        """As if the cable was pulled: the server and what holds its connections, nothing else."""
        for folder in Path("/proc").glob("[0-9]*"):
            pid = int(folder.name)
            try:
                words = (folder / "cmdline").read_bytes().split(b"\0")
            except OSError:
                continue
            if pid != 1 and any(self.device["match"].encode() in word for word in words[:3]):
                os.kill(pid, signal.SIGKILL)
        if self.server:
            self.server.wait()

    def reboot(self) -> None:
        """Everything dies, and the kernel says that it is another boot."""
        os.kill(-1, signal.SIGKILL)
        if self.server:
            self.server.wait()
        self.new_boot()
        self.start()

    def reap(self) -> None:
        """What outlived its parent ends here; the server is waited for by its own object."""
        if self.server:
            self.server.poll()
        try:
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        except ChildProcessError:
            pass

    def tick(self) -> None:
        """Readings that move, each around its middle and with its own period."""
        now = time.monotonic() - self.started
        for file, (middle, swing, period_s) in self.device["moving"].items():
            value = middle + swing * math.sin(2 * math.pi * now / period_s)
            with open(self.folder / file, "r+") as opened:
                opened.write(f"{round(value)}\n")
                opened.truncate()

    def run(self) -> None:
        orders = {"start": self.start, "kill": self.kill, "reboot": self.reboot}
        while True:
            ready, _, _ = select.select([sys.stdin.buffer], [], [], TICK_S)
            if ready:
                order = os.read(0, 4096).decode().split()
                if not order:
                    return
                for name in order:
                    orders[name]()
                    print(name, flush=True)
            self.reap()
            self.tick()


def main() -> None:
    device = json.loads(Path(sys.argv[1]).read_text())
    namespaces.own_user_and_mounts()
    child = os.fork()
    if child:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        os.close(0)
        sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
    namespaces.die_with_parent()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    init = Init(device)
    # This process reads /proc to find others: that of its own process namespace.
    init.mounts()
    namespaces.bind(f"{init.root}/proc", "/proc")
    print("ready", flush=True)
    init.run()


if __name__ == "__main__":
    main()
