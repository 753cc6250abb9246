"""A phone: Debian's adbd, Android's shell and its tools as far as toybox has them, and scripts for its services."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

from . import trees
from .device import HERE, StandIn
from .root import System

ADBD = "/usr/lib/android-sdk/platform-tools/adbd"
PROPERTIES = {
    "ro.product.manufacturer": "QEMU",
    "ro.product.brand": "qemu",
    "ro.product.model": "Stand-in phone",
    "ro.product.device": "standin",
    "ro.product.cpu.abi": "arm64-v8a",
    "ro.soc.manufacturer": "QEMU",
    "ro.soc.model": "qemu-user",
    "ro.build.version.release": "15",
    "ro.build.version.sdk": "35",
    "ro.build.fingerprint": "qemu/standin/standin:15/AP3A/1:user/test-keys",
    "ro.kernel.qemu": "1",
    "ro.boot.qemu": "1",
}


BIONIC = HERE / "fixtures/bionic"
COMPILER = "aarch64-linux-gnu-gcc"
FREESTANDING = ("-O1", "-ffreestanding", "-fno-builtin", "-fno-stack-protector", "-nostdlib")


class Phone(StandIn):
    """`serial` is what adb calls it, `name` what edge does.

    android: it also runs what was built for Android, by musl and a shim in the place of Android's C library.
    """

    disk = "/data/local/tmp"

    def __init__(self, system: System, folder: Path, port: int, *, android: bool = False) -> None:
        super().__init__(system, folder, port)
        self.android = android

    @property
    def serial(self) -> str:
        return f"127.0.0.1:{self.port}"

    @property
    def name(self) -> str:  # type: ignore[override]
        return f"adb:{self.serial}"

    @property
    def edge_folder(self) -> Path:
        return self.data / "local/tmp/edge"

    def describe(self) -> dict[str, Any]:
        self._make_system()
        (self.data / "local/tmp").mkdir(parents=True)
        environment = ["PATH=/system/bin", "HOME=/", "ANDROID_DATA=/data", f"ADBD_PORT={self.port}"]
        return {
            "server": [ADBD],
            "environment": environment,
            "match": "adbd",
            "disk": self.disk,
            # adbd starts /bin/sh, which is dash there and mksh on a phone
            "binds": {"/system": str(self.folder / "system"), "/usr/bin/dash": "SYSTEM/usr/bin/mksh"},
        }

    def tree(self) -> trees.Tree:
        return trees.phone()

    def _make_system(self) -> None:
        tools = self.folder / "system/bin"
        shutil.copytree(HERE / "fixtures/phone", tools)
        for name in self._toybox():
            if not (tools / name).exists():
                (tools / name).symlink_to("/usr/bin/toybox")
        (tools / "sh").symlink_to("/usr/bin/mksh")
        properties = {**PROPERTIES, "ro.serialno": self.serial}
        if self.android:
            self._make_bionic()
        lines = [f"{name}={value}\n" for name, value in properties.items()]
        (self.folder / "system/build.prop").write_text("".join(lines))

    def _make_bionic(self) -> None:
        libraries, linker = self.folder / "system/lib64", self.folder / "system/bin/linker64"
        libraries.mkdir()
        shutil.copy(self.system.root / "usr/lib/aarch64-linux-musl/libc.so", libraries / "ld-musl-aarch64.so.1")
        shared = ("-fPIC", "-shared", "-Wl,-soname,liblog.so", "-o", libraries / "liblog.so", BIONIC / "shim.c")
        alone = ("-fPIE", "-static-pie", "-Wl,--no-dynamic-linker", "-o", linker, BIONIC / "linker64.c")
        for how in (shared, alone):
            subprocess.run([COMPILER, *FREESTANDING, *how], check=True)
        (libraries / "libandroid.so").symlink_to("liblog.so")

    def _toybox(self) -> list[str]:
        """The names of the tools in toybox."""
        root = self.system.root
        command = [str(self.system.qemu), "-L", str(root), str(root / "usr/bin/toybox")]
        return subprocess.run(command, capture_output=True, text=True, check=True, env={**os.environ}).stdout.split()
