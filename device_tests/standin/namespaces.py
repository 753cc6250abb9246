"""Linux namespaces for the stand-ins: a network of their own, and root rights that end at their own mounts."""

from __future__ import annotations

import ctypes
import fcntl
import os
import signal
import socket
import struct
from collections.abc import Iterator
from contextlib import contextmanager

NEWNS, NEWUSER, NEWPID, NEWNET = 0x20000, 0x10000000, 0x20000000, 0x40000000
MS_RDONLY, MS_REMOUNT, MS_BIND, MS_REC, MS_PRIVATE = 1, 32, 4096, 16384, 1 << 18
PR_SET_PDEATHSIG = 1
SIOCSIFFLAGS, IFF_UP = 0x8914, 1
WHOLE_RANGE = "0 0 4294967295\n"
_libc = ctypes.CDLL(None, use_errno=True)


def _check(status: int, what: str) -> None:
    if status:
        error = ctypes.get_errno()
        raise OSError(error, f"{what}: {os.strerror(error)}")


def unshare(flags: int) -> None:
    _check(_libc.unshare(flags), "unshare")


def mount(source: str, target: str, kind: str = "", flags: int = 0, data: str = "") -> None:
    arguments = [text.encode() or None for text in (source, target, kind)]
    _check(_libc.mount(*arguments, ctypes.c_ulong(flags), data.encode() or None), f"mount {source} on {target}")


def bind(source: str, target: str, *, read_only: bool = False) -> None:
    mount(source, target, flags=MS_BIND | MS_REC)
    if read_only:
        mount("none", target, flags=MS_BIND | MS_REMOUNT | MS_RDONLY)


def die_with_parent() -> None:
    _libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)


def own_user_and_mounts() -> None:
    """Leave for a user, a mount and, for children, a process namespace, in which every id is what it was outside.

    Only a process outside may write the whole range of ids: a child that stays behind does.
    """
    parent, ready = os.getpid(), os.pipe()
    child = os.fork()
    if child == 0:
        os.read(ready[0], 1)
        for ids in ("uid_map", "gid_map"):
            with open(f"/proc/{parent}/{ids}", "w") as file:
                file.write(WHOLE_RANGE)
        os._exit(0)
    unshare(NEWUSER | NEWNS | NEWPID)
    os.write(ready[1], b"1")
    if os.waitpid(child, 0)[1]:
        raise OSError("no map of user ids")
    mount("none", "/", flags=MS_REC | MS_PRIVATE)


@contextmanager
def own_network() -> Iterator[None]:
    """This thread, and what it starts, in a network with nothing but a loopback. Needs root."""
    before = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
    try:
        unshare(NEWNET)
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
            fcntl.ioctl(any_socket, SIOCSIFFLAGS, struct.pack("16sH14x", b"lo", IFF_UP))
        yield
    finally:
        _check(_libc.setns(before, NEWNET), "setns")
        os.close(before)
