"""The system that both stand-ins boot: Debian trixie for arm64, unpacked but never configured, and QEMU to run it.

Made once by mmdebstrap and kept in the cache. Nothing in it is changed while it is used.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import platform
import re
import shutil
import subprocess
from pathlib import Path
from typing import NamedTuple

import pytest

from edge.core.files import atomic_folder, cache_folder

SUITE = "trixie"
PACKAGES = (
    "base-files",
    "adbd",
    "toybox",
    "mksh",
    "openssh-server",
    "bash",
    "coreutils",
    "dash",
    "grep",
    "sed",
    "findutils",
    "util-linux",
    "procps",
    "musl",
)
QEMU = "qemu-aarch64"
QEMU_PREFIX = "/usr/gnemul/qemu-aarch64"
MOUNT_POINTS = ("proc", "sys", "dev", "data", "run", "tmp", "home/nvidia", "system", QEMU_PREFIX[1:])
PASSWD = """\
root:x:0:0:root:/root:/bin/sh
sshd:x:100:65534:sshd:/run/sshd:/usr/sbin/nologin
nvidia:x:1000:1000:nvidia:/home/nvidia:/bin/bash
nobody:x:65534:65534:nobody:/nonexistent:/usr/sbin/nologin
"""
GROUP = "root:x:0:\nnvidia:x:1000:\nnogroup:x:65534:\n"
SHADOW = "root:*:20000::::::\nsshd:!*:20000::::::\nnvidia:*:20000::::::\n"


class System(NamedTuple):
    root: Path
    qemu: Path


def missing() -> str:
    """What this machine lacks for the stand-ins; empty if it can run them."""
    if platform.system() != "Linux" or platform.machine() != "x86_64":
        return "the stand-ins need an x86-64 Linux machine"
    if os.geteuid() != 0:
        return "the stand-ins need root, for namespaces of their own"
    if tuple(int(n) for n in re.findall(r"\d+", platform.release())[:2]) < (6, 7):
        return f"the stand-ins need Linux 6.7 for binfmt_misc in a user namespace; this is {platform.release()}"
    if "binfmt_misc" not in Path("/proc/filesystems").read_text():
        return "the stand-ins need a kernel with binfmt_misc"
    tools = [tool for tool in ("mmdebstrap", "ssh", "ssh-keygen", "apt-get") if not shutil.which(tool)]
    return f"the stand-ins need {', '.join(tools)}" if tools else ""


def system() -> System:
    """The unpacked system, made if it isn't there. Skips the test where its packages can't be had."""
    if lack := missing():
        pytest.skip(lack)
    folder = cache_folder() / "standin" / _version()
    folder.parent.mkdir(parents=True, exist_ok=True)
    with (folder.parent / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not folder.exists():
            with atomic_folder(folder) as new:
                _unpack(new)
    return System(folder / "root", folder / QEMU)


def _version() -> str:
    return hashlib.sha256(Path(__file__).read_bytes()).hexdigest()[:12]


def _unpack(folder: Path) -> None:
    root = folder / "root"
    command = ["mmdebstrap", "--quiet", "--variant=extract", "--architectures=arm64,amd64"]
    command += [f"--include={','.join((*PACKAGES, 'qemu-user:amd64'))}", SUITE, str(root)]
    done = subprocess.run([*command, f"deb {_mirror()} {SUITE} main"], capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"mmdebstrap can't get the stand-ins' packages: {done.stderr.strip().splitlines()[-1]}")
    (root / "usr/bin" / QEMU).rename(folder / QEMU)
    for other in (root / "usr/bin").glob("qemu-*"):
        other.unlink()
    for name in MOUNT_POINTS:
        (root / name).mkdir(parents=True, exist_ok=True)
    for name, text in (("passwd", PASSWD), ("group", GROUP), ("shadow", SHADOW), ("hostname", "standin\n")):
        (root / "etc" / name).write_text(text)


def _mirror() -> str:
    """Where this machine gets its Debian packages from."""
    command = ["apt-get", "indextargets", "--format", "$(COMPONENT) $(ORIGIN) $(SITE)", "Created-By: Packages"]
    targets = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    sites = [line.split()[2] for line in targets if line.startswith("main Debian ") and "security" not in line]
    if not sites:
        pytest.skip("the stand-ins are unpacked from Debian's packages, and apt has no source of those")
    return sites[0]
