"""A device from what `_scripts.FACTS` prints there."""

from __future__ import annotations

from edge.core.target import Device
from edge.runtimes.probes import cpuinfo
from edge.runtimes.transports._push import free_bytes

LITTLE = 64 << 20
"""Free bytes below which nothing worth running fits."""
PROCESSORS = {
    **dict.fromkeys(("aarch64", "arm64", "arm64-v8a"), "arm64"),
    **dict.fromkeys(("x86_64", "amd64"), "x86_64"),
    **dict.fromkeys(("armv7l", "armv8l", "armeabi-v7a", "armeabi", "arm"), "arm"),
    **dict.fromkeys(("i386", "i686", "x86"), "x86"),
}
NARROW = {"arm64": "arm", "x86_64": "x86"}


def device_of(name: str, facts: str) -> tuple[Device, str]:
    """The device and the folder that edge may write to there."""
    head, _, cpu = facts.partition("cpuinfo=\n")
    said = dict(line.split("=", 1) for line in head.splitlines() if "=" in line)
    free = free_bytes(said.get("df", "") + " ")
    folder = said.get("folder", "")
    battery = said.get("battery", "")
    device = Device(
        name,
        name.partition(":")[0],
        _model(said, cpu),
        cpuinfo.cores(cpu),
        int(said.get("memory_kib", "0")) * 1024,
        problem=_problem(said, folder, free),
        platform=_platform(said),
        soc=_soc(said),
        os=_os(said),
        battery_percent=int(battery) if battery.isdigit() else None,
        free_bytes=free,
        emulated=_emulated(said, cpu),
    )
    return device, folder


def _model(said: dict[str, str], cpu: str) -> str:
    maker, model = said.get("ro.product.manufacturer", ""), said.get("ro.product.model", "")
    if model:
        return model if not maker or model.lower().startswith(maker.lower()) else f"{maker} {model}"
    return said.get("model") or cpuinfo.model(cpu) or said.get("machine", "")


def _soc(said: dict[str, str]) -> str:
    named = f"{said.get('ro.soc.manufacturer', '')} {said.get('ro.soc.model', '')}".strip()
    known = (named, *(said.get(key) for key in ("ro.board.platform", "ro.hardware", "compatible")))
    return next((soc for soc in known if soc), "")


def _os(said: dict[str, str]) -> str:
    if "android" in said:
        return f"Android {said.get('ro.build.version.release', '?')} (API {said.get('ro.build.version.sdk', '?')})"
    return said.get("os") or said.get("kernel", "")


def _platform(said: dict[str, str]) -> str:
    """A 64-bit kernel may have 32-bit programs only, whose libraries ours can't use; a stand-in of a phone may have
    Android's tools and a desktop's C library."""
    machine = said.get("machine", "")
    processor = PROCESSORS.get(said.get("ro.product.cpu.abi") or machine, machine)
    if said.get("bits") == "32":
        processor = NARROW.get(processor, processor)
    if "bionic" in said:
        return f"android-{processor}"
    return f"linux-{processor}" if "android" in said or said.get("kernel", "").startswith("Linux") else ""


def _emulated(said: dict[str, str], cpu: str) -> bool:
    """qemu-user changes what uname says and leaves the kernel's own word; emulators of phones say what they are."""
    kernel, machine = (PROCESSORS.get(said.get(key, ""), "") for key in ("kernel_arch", "machine"))
    foreign = bool(kernel and machine) and NARROW.get(kernel, kernel) != NARROW.get(machine, machine)
    phone = "1" in (said.get("ro.kernel.qemu"), said.get("ro.boot.qemu"))
    return foreign or phone or said.get("ro.hardware") in ("ranchu", "goldfish") or cpuinfo.emulated(cpu)


def _problem(said: dict[str, str], folder: str, free: int | None) -> str:
    if "writable" not in said:
        return f"can't write to {folder}"
    if free is not None and free < LITTLE:
        return f"no space: {free / 1e6:.0f} MB free in {folder}"
    return ""
