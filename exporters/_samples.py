"""Inputs and expected outputs that lie in a bundle, for models that run in one call."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save_file

from edge.core.session import Inputs

SAMPLES = "samples.safetensors"
OUTPUT = "output"


def write_samples(folder: Path, inputs: Inputs, output: NDArray[np.float32]) -> None:
    """Keep sample inputs by name and what the reference answers to them, `output`."""
    save_file({**inputs, OUTPUT: np.ascontiguousarray(output)}, folder / SAMPLES)
