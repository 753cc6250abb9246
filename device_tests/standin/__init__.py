"""Stand-ins for devices: phones behind a real adbd and a Jetson behind a real sshd, arm64 under QEMU."""

from .bench import Bench, fetch_tools, fetched_for
from .jetson import Jetson
from .phone import Phone
from .root import missing

__all__ = ["Bench", "Jetson", "Phone", "fetch_tools", "fetched_for", "missing"]
