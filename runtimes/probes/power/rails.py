"""Which rails of a board are the whole and which are parts of it."""

from __future__ import annotations

from collections.abc import Iterable

WHOLE_BOARD = ("VIN", "POM_5V_IN", "VDD_IN")  # in this order; each is the input of everything behind it
NOT_CONNECTED = "NC"


def total_rails(names: Iterable[str], sum_of: Iterable[str] = ()) -> tuple[str, ...]:
    """The rails whose sum is the whole: one input rail, else `sum_of` as a board's file says, else all of them."""
    found = [name for name in names if name != NOT_CONNECTED]
    for rail in WHOLE_BOARD:
        if rail in found:
            return (rail,)
    return tuple(name for name in found if name in set(sum_of)) or tuple(found)
