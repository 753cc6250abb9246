"""NVIDIA's management library: a total-energy counter (Volta and newer) and the board's power.

Through ctypes, so that nothing but the driver's own library is needed. The counter is in mJ since the driver loaded.
`nvmlDeviceGetPowerUsage` is averaged over one second on Ampere (not GA100) and newer; the instantaneous field is not.
Accuracy: NVIDIA states ±5 % for the power reading; the counter integrates the same sensor, so it is taken to have it
too. Some boards sample only a part of the time (Yang et al. 2024, "Part-time Power Measurements"): that is not in it.
"""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from typing import Any

from edge.runtimes.probes.power.series import Accuracy, Channel, PowerUnavailableError, Source

LIBRARY = "libnvidia-ml.so.1"
POWER_INSTANT_FIELD = 186  # NVML_FI_DEV_POWER_INSTANT, mW
NAME_BYTES = 96
STATED_GAIN = 0.05
NOTE = "gain ±5 % as NVIDIA states for the power reading"


class _FieldValue(ctypes.Structure):
    """nvmlFieldValue_t; the value's union is 8 bytes wide, of which power uses the low 4."""

    _fields_ = [
        ("field_id", ctypes.c_uint),
        ("scope_id", ctypes.c_uint),
        ("timestamp_us", ctypes.c_longlong),
        ("latency_us", ctypes.c_longlong),
        ("value_type", ctypes.c_int),
        ("status", ctypes.c_int),
        ("value", ctypes.c_ulonglong),
    ]


@dataclass(frozen=True)
class Gpu:
    """An initialised device. `library` is the C library, or whatever answers like it."""

    library: Any
    handle: ctypes.c_void_p
    name: str

    def energy_mj(self) -> int:
        """Since the driver was loaded. Raises where the board has no counter."""
        value = ctypes.c_ulonglong()
        self._check(
            self.library.nvmlDeviceGetTotalEnergyConsumption(self.handle, ctypes.byref(value)), "energy counter"
        )
        return value.value

    def power_mw(self) -> int:
        """Averaged by the driver, over a second on most boards since Ampere."""
        value = ctypes.c_uint()
        self._check(self.library.nvmlDeviceGetPowerUsage(self.handle, ctypes.byref(value)), "power reading")
        return value.value

    def instant_power_mw(self) -> int:
        field = _FieldValue(field_id=POWER_INSTANT_FIELD)
        self._check(self.library.nvmlDeviceGetFieldValues(self.handle, 1, ctypes.byref(field)), "power field")
        self._check(field.status, "power field")
        return int(field.value) & 0xFFFFFFFF

    def _check(self, status: int, what: str) -> None:
        if status:
            raise PowerUnavailableError(f"NVML gives no {what} for this GPU (status {status})")


def open_gpu(index: int = 0, library: Any = None) -> Gpu:
    """Raises `PowerUnavailableError` without the driver or the device."""
    if library is None:
        try:
            library = ctypes.CDLL(LIBRARY)
        except OSError as error:
            raise PowerUnavailableError(f"no NVIDIA driver: {LIBRARY} can't be loaded") from error
    if status := library.nvmlInit_v2():
        raise PowerUnavailableError(f"NVML does not start (status {status})")
    handle = ctypes.c_void_p()
    if status := library.nvmlDeviceGetHandleByIndex_v2(index, ctypes.byref(handle)):
        raise PowerUnavailableError(f"NVML has no GPU {index} (status {status})")
    name = ctypes.create_string_buffer(NAME_BYTES)
    library.nvmlDeviceGetName(handle, name, NAME_BYTES)
    return Gpu(library, handle, name.value.decode(errors="replace"))


def energy_channel(gpu: Gpu) -> Channel:
    """The counter, read once to see that it is there."""
    gpu.energy_mj()
    accuracy = Accuracy(gain=STATED_GAIN, resolution=1000, note=NOTE)
    return Channel(f"{gpu.name} energy", "energy", "hardware_counter", lambda: 1000.0 * gpu.energy_mj(), accuracy)


def power_channel(gpu: Gpu) -> Channel:
    """The instantaneous power where the driver gives it, else the averaged one, which lags by up to a second."""
    try:
        gpu.instant_power_mw()
    except PowerUnavailableError:
        gpu.power_mw()
        accuracy = Accuracy(gain=STATED_GAIN, resolution=1000, delay_ns=1_000_000_000, note=NOTE)
        return Channel(f"{gpu.name} power", "power", "hardware_counter", lambda: 1000.0 * gpu.power_mw(), accuracy)
    accuracy = Accuracy(gain=STATED_GAIN, resolution=1000, note=NOTE)
    read = gpu.instant_power_mw
    return Channel(f"{gpu.name} power", "power", "hardware_counter", lambda: 1000.0 * read(), accuracy)


def open_source(index: int = 0, library: Any = None) -> Source:
    """What a profile reads: the energy counter, else the power. It is the GPU's board alone, not the processor."""
    gpu = open_gpu(index, library)
    try:
        channel = energy_channel(gpu)
    except PowerUnavailableError:
        channel = power_channel(gpu)
    return Source("NVML, the GPU's board alone", (channel,), (channel.name,))
