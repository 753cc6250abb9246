"""What is known of a board: which power rails are the whole and which are parts. One TOML file each in `devices/`."""

from __future__ import annotations

import tomllib
from collections.abc import Iterable
from pathlib import Path

import msgspec

from edge.core.errors import EdgeError
from edge.core.files import SCHEMA

ROOT = Path("/")
FOLDER = Path(__file__).with_name("devices")
MODEL = "proc/device-tree/model"


class Power(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """total: the rails whose sum is the whole; without_total: those to sum where none of `total` is there.

    parts: rails that lie behind the total and are shown beside it, never added to it.
    """

    total: list[str]
    parts: list[str] = []
    without_total: list[str] = []


class Board(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """match: words of the device tree's model that name it."""

    name: str
    match: list[str]
    power: Power
    schema: int = SCHEMA

    def total_of(self, rails: Iterable[str]) -> tuple[str, ...]:
        """Of the rails that are there, those whose sum is the whole; empty where that isn't known."""
        found = set(rails)
        for wanted in (self.power.total, self.power.without_total):
            if wanted and found.issuperset(wanted):
                return tuple(wanted)
        return ()


def boards() -> dict[str, Board]:
    """Every file, by its name without the ending."""
    return {file.stem: _read(file) for file in sorted(FOLDER.glob("*.toml"))}


def this_board(root: Path = ROOT) -> Board | None:
    """From the device tree's model; None where there is none or nobody knows it. The longest match wins."""
    try:
        model = (root / MODEL).read_text().strip("\0\n ")
    except OSError:
        return None
    found = [(len(word), board) for board in boards().values() for word in board.match if word in model]
    return max(found, key=lambda pair: pair[0])[1] if found else None


def _read(file: Path) -> Board:
    try:
        return msgspec.convert(tomllib.loads(file.read_text()), Board)
    except (msgspec.ValidationError, tomllib.TOMLDecodeError) as error:
        raise EdgeError("board.malformed", f"{file.name}: {error}", "see the other files beside it") from error
