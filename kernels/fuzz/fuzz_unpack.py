"""Atheris over `unpack`: `python fuzz_unpack.py CORPUS [libFuzzer's options]`.

Bytes are refused with an `EdgeError` or are a tensor: then the library accepts them too, and packing it again gives
bytes that mean the same.
"""

from __future__ import annotations

import sys

import atheris
import numpy as np
from corpus import OPTION_BYTES

from edge.core.errors import EdgeError
from edge.kernels import lib, pack, unpack
from edge.kernels.testing import with_header


def check(blob: np.ndarray) -> None:
    try:
        tensor = unpack(blob)
    except EdgeError:
        return
    lib.verify(blob)
    again = unpack(pack(tensor))
    assert again.encoding == tensor.encoding
    assert all(again.parts[name].tobytes() == part.tobytes() for name, part in tensor.parts.items())


def run(data: bytes) -> None:
    """The seeds are those of fuzz_packed.cpp: a blob behind some options."""
    blob = np.frombuffer(data[OPTION_BYTES:], np.uint8)
    check(blob)
    if blob.size >= 64:
        check(with_header(blob, payload_bytes=blob.size - 64))


atheris.instrument_all()  # an editable install's loader keeps `instrument_imports` from its work
atheris.Setup(sys.argv, run)
atheris.Fuzz()
