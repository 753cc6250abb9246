"""What /proc/cpuinfo says of a processor, of this machine's or another's."""

from __future__ import annotations

import re


def model(cpuinfo: str) -> str:
    """The processor's name; on arm64, where cpuinfo has none, its implementer and part numbers. Empty if unknown."""
    if found := re.search(r"^(?:model name|Hardware|Model)[ \t]*:[ \t]*(\S.*)$", cpuinfo, re.MULTILINE):
        return found.group(1).strip()
    parts = [re.search(rf"^CPU {key}\s*:\s*(\S+)", cpuinfo, re.MULTILINE) for key in ("implementer", "part")]
    return "CPU implementer {} part {}".format(*(part.group(1) for part in parts if part)) if all(parts) else ""


def cores(cpuinfo: str) -> int:
    """Physical cores: hardware threads of one core count once. 0 if unknown."""
    blocks = re.split(r"^processor\b", cpuinfo, flags=re.MULTILINE)[1:]
    found = set()
    for index, block in enumerate(blocks):
        ids = re.findall(r"^(?:physical|core) id\s*:\s*(\d+)", block, re.MULTILINE)
        found.add(tuple(ids) or index)
    return len(found)


def emulated(cpuinfo: str) -> bool:
    """Whether the processor is QEMU's software: TCG by name on x86, implementer 0 (`-cpu max`) on arm64."""
    return bool(re.search(r"^model name.*\bTCG\b|^CPU implementer\s*:\s*0x00\b", cpuinfo, re.MULTILINE))
