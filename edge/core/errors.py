"""One error tree. Library code raises, the command line alone catches and turns an error into an exit code."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class EdgeError(Exception):
    """What went wrong in one line, and what to do about it in another.

    `code` is a stable, machine-readable name (`checkpoint.missing_tensor`); `exit_code` is what the process ends with.
    """

    exit_code = 1

    def __init__(self, code: str, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message} ({self.hint})" if self.hint else self.message


class UsageError(EdgeError):
    """The request itself is wrong: an unknown name, a bad option, a malformed recipe."""

    exit_code = 2


class DeviceUnavailable(EdgeError):
    """The device can't be reached or can't be used."""

    exit_code = 3


class EngineMissing(EdgeError):
    """The engine that runs an artefact is an extra that isn't installed here. The artefact may be fine."""


class GateFailed(EdgeError):
    """A parity gate, a slow-path gate or a budget failed."""

    exit_code = 4


def nearest(name: str, known: Iterable[str]) -> str:
    """A hint for a wrong name: the closest known one, else the list of them."""
    names = sorted(known)
    close = difflib.get_close_matches(name, names, n=1)
    if close:
        return f"did you mean '{close[0]}'?"
    return f"known: {', '.join(names)}" if names else "none is known"
