"""The machine that a measurement was taken on: what its numbers depend on, and nothing that names it."""

from __future__ import annotations

import os
import platform
import re
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import psutil

from edge.core.target import Device
from edge.runtimes.probes.clock import governor
from edge.runtimes.probes.cpuinfo import model as processor_name

ROOT = Path("/")
LIBRARIES = ("edge-deploy", "onnxruntime", "numpy", "torch", "transformers")
# Instruction sets that decide which kernel runs; names as /proc/cpuinfo has them on x86 and arm64.
ISA_FLAGS = (
    *("sse4_2", "avx", "avx2", "fma", "f16c", "avx_vnni", "avx512f", "avx512bw", "avx512vl", "avx512_vnni"),
    *("avx512vbmi", "avx512_bf16", "amx_int8", "amx_bf16"),
    *("asimd", "asimdhp", "asimddp", "i8mm", "bf16", "sve", "sve2", "sme"),
)


def fingerprint(root: Path = ROOT) -> dict[str, Any]:
    """CPU, memory, operating system and library versions, ready for JSON. Unknown entries are None or empty."""
    cpuinfo = _read(root / "proc/cpuinfo")
    flags = _flags(cpuinfo)
    return {
        "cpu": cpu_model(root),
        "architecture": platform.machine(),
        "cores": psutil.cpu_count(logical=False) or os.cpu_count() or 1,
        "threads": os.cpu_count() or 1,
        "isa": [flag for flag in ISA_FLAGS if flag in flags],
        "virtual_machine": "hypervisor" in flags,
        "caches": caches(root),
        "memory_bytes": psutil.virtual_memory().total,
        "governor": governor(root),
        "os": os_name(root),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "libraries": {name: found for name in LIBRARIES if (found := _version(name))},
    }


def device_fingerprint(device: Device, root: Path, versions: Mapping[str, str]) -> dict[str, Any]:
    """The same of a device, whose small files of /proc and /sys lie in `root`. versions: of what computed there."""
    cpuinfo = _read(root / "proc/cpuinfo")
    flags = _flags(cpuinfo)
    return {
        "cpu": cpu_model(root) if cpuinfo else device.soc or device.model,
        "model": device.model,
        "soc": device.soc,
        "platform": device.platform,
        "architecture": device.platform.rpartition("-")[2],
        "cores": device.cores,
        "threads": device.cores,
        "isa": [flag for flag in ISA_FLAGS if flag in flags],
        "virtual_machine": "hypervisor" in flags,
        "caches": caches(root),
        "memory_bytes": device.memory_bytes,
        "governor": governor(root),
        "os": device.os,
        "kernel": next(iter(_read(root / "proc/version").removeprefix("Linux version ").split()), ""),
        "libraries": dict(versions),
    }


def cpu_model(root: Path = ROOT) -> str:
    """The processor's name; on arm64, where cpuinfo has none, its implementer and part numbers."""
    if found := processor_name(_read(root / "proc/cpuinfo")):
        return found
    return (platform.processor() or platform.machine()) if root == ROOT else ""


def caches(root: Path = ROOT) -> dict[str, str]:
    """Sizes of the first core's caches by level and type: {"L1 data": "48K", "L2": "1024K"}."""
    found = {}
    for folder in sorted((root / "sys/devices/system/cpu/cpu0/cache").glob("index[0-9]*")):
        level, kind, size = (_read(folder / name).strip() for name in ("level", "type", "size"))
        if level and size:
            found[f"L{level}" + ("" if kind == "Unified" else f" {kind.lower()}")] = size
    return found


def os_name(root: Path = ROOT) -> str:
    """The distribution's own name for itself, else the kernel's."""
    found = re.search(r'^PRETTY_NAME="?([^"\n]+)', _read(root / "etc/os-release"), re.MULTILINE)
    return found.group(1) if found else platform.system()


def _flags(cpuinfo: str) -> set[str]:
    found = re.search(r"^(?:flags|Features)\s*:\s*(.+)$", cpuinfo, re.MULTILINE)
    return set(found.group(1).split()) if found else set()


def _read(file: Path) -> str:
    try:
        return file.read_text()
    except OSError:
        return ""


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return ""
