"""Seeds for the fuzzers: `python corpus.py FOLDER` writes a small blob of every layout, with options in front."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

from edge.kernels import pack
from edge.kernels.testing import EVERY_LAYOUT, random_tensor

OPTION_BYTES = 64  # kOptions of fuzz_packed.cpp


def write_corpus(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for number, encoding in enumerate(EVERY_LAYOUT):
        blob = pack(random_tensor(18, 132, encoding, number))
        options = np.random.default_rng(number).integers(0, 250, OPTION_BYTES, dtype=np.uint8)
        (folder / str(encoding)).write_bytes(options.tobytes() + blob.tobytes())


if __name__ == "__main__":
    write_corpus(Path(sys.argv[1]))
