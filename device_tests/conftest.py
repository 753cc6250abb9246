"""A bench of stand-ins, started once for all tests of this folder."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from edge.core.errors import EdgeError

from .standin import Bench, Jetson, Phone, fetch_tools, missing


@pytest.fixture(scope="package")
def started() -> Iterator[tuple[Bench, Phone, Jetson]]:
    if lack := missing():
        pytest.skip(lack)
    try:
        fetch_tools()
    except EdgeError as error:
        pytest.skip(f"the stand-ins' tools can't be had: {error}")
    with Bench() as bench:
        yield bench, bench.phone(), bench.jetson()


@pytest.fixture
def bench(started: tuple[Bench, Phone, Jetson], monkeypatch: pytest.MonkeyPatch) -> Bench:
    """The bench, whose adb and ssh this process finds as well."""
    for name, value in started[0].environment.items():
        monkeypatch.setenv(name, value)
    return started[0]


@pytest.fixture
def phone(bench: Bench) -> Phone:
    return bench.phones[0]


@pytest.fixture
def jetson(bench: Bench) -> Jetson:
    return bench.jetsons[0]
