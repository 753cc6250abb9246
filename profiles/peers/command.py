"""The `edge` command as a user types it: each step a process of its own, whose peak memory the kernel reports."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from edge.core.errors import EdgeError


def edge_command() -> Path:
    """The script beside the interpreter that runs."""
    return Path(sys.executable).with_name("edge")


def run_edge(*arguments: str) -> tuple[Any, int]:
    """Run `edge ... --json`; give its object and the peak resident bytes of its process."""
    read_end, write_end = os.pipe()
    process = subprocess.Popen([str(edge_command()), *arguments, "--json"], stdout=write_end)
    os.close(write_end)
    with os.fdopen(read_end) as stream:
        printed = stream.read()
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode != 0:
        message = f"edge {arguments[0]} ended with {process.returncode}"
        raise EdgeError("bench.step", message, "see its message above")
    return json.loads(printed.strip().splitlines()[-1]), usage.ru_maxrss * 1024
