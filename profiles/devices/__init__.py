"""Devices that a profile can run on."""

from __future__ import annotations

import os

import psutil

from edge.core.target import Device
from edge.profiles.fingerprint import cpu_model


def devices() -> list[Device]:
    """What is there now: this machine, as `cpu`."""
    cores = psutil.cpu_count(logical=False) or os.cpu_count() or 1
    return [Device("cpu", "local", cpu_model(), cores, psutil.virtual_memory().total)]
