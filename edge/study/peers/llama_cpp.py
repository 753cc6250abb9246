"""llama.cpp's own quantizer on our float GGUF, with an importance matrix of the calibration text.

The importance of an input channel is the mean of its squared activation, as `llama-imatrix` gathers it: of every matrix
in the layers, and of no embedding or head. Columns that a block of 256 doesn't divide get llama.cpp's fallback types.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import torch
from gguf import GGUFReader
from numpy.typing import NDArray
from safetensors.numpy import load_file, save

from edge.core.bundle import seal
from edge.core.console import progress
from edge.core.errors import EdgeError
from edge.core.files import read_json, write_atomic
from edge.exporters.gguf.export import MODEL, TENSORS, Tensors, write
from edge.models.checkpoint import Checkpoint, open_checkpoint
from edge.models.torch_model import build_model
from edge.runtimes.gguf import library, reported_errors

FORMATS = ("Q4_K_M", "IQ4_XS", "Q4_0", "Q3_K_M", "Q2_K", "Q2_0")
Importance = Mapping[str, NDArray[np.float32]]


def prepare(
    source: str | Path, format: str, folder: Path, *, windows: torch.Tensor, context_length: int, shared: Path
) -> None:
    """Write a bundle of a decoder quantized by llama.cpp into `folder`.

    windows: calibration, token ids [samples, length]. shared: where the importance matrix is kept for other formats.
    Raises `EngineMissing` without llama-cpp-python, `EdgeError` for a model or a format that llama.cpp doesn't take.
    """
    api = library()
    checkpoint = open_checkpoint(source)
    manifest = write(checkpoint, folder, kernels="builtin", context_length=context_length)
    names = {name: tensor.name for name, tensor in read_json(folder / TENSORS, Tensors).tensors.items()}
    (folder / TENSORS).unlink()  # it tells of the float file
    importance = {names[name]: values for name, values in _importance(checkpoint, windows, shared).items()}
    quantized = folder / f".{MODEL}.partial"
    _quantize(api, folder / MODEL, quantized, format, importance)
    os.replace(quantized, folder / MODEL)
    size = _size(api, folder / MODEL)
    about = {
        "recipe": {"name": f"llama.cpp {format}"},
        "encodings": {},
        "stored_bytes": size,
        "bits_per_weight": 8 * size / checkpoint.parameters,
        "notes": list(filter(None, [_kinds(folder / MODEL)])),
    }
    seal(folder, msgspec.structs.replace(manifest, **about))


def _importance(checkpoint: Checkpoint, windows: torch.Tensor, shared: Path) -> Importance:
    key = hashlib.sha256(checkpoint.sha256.encode() + windows.numpy().tobytes()).hexdigest()[:16]
    path = shared / f"importance-{key}.safetensors"
    if not path.is_file():
        shared.mkdir(parents=True, exist_ok=True)
        write_atomic(path, save(importance_matrix(checkpoint, windows)))
    return load_file(path)


@torch.no_grad()
def importance_matrix(checkpoint: Checkpoint, windows: torch.Tensor) -> dict[str, NDArray[np.float32]]:
    """Mean of x^2 per input channel [in_features] of every matrix in the layers, by its weight's name.

    The whole float model is in memory meanwhile.
    """
    model = build_model(checkpoint)
    linears = [linear for layer in checkpoint.spec.layers for group in layer.linears() for linear in group]
    sums = {linear.weight: torch.zeros(linear.in_features, dtype=torch.float64) for linear in linears}

    def add(name: str) -> Any:
        def hook(_: torch.nn.Module, args: tuple[torch.Tensor, ...]) -> None:
            sums[name] += args[0].float().square().flatten(0, -2).sum(0)

        return hook

    for linear in linears:
        model.get_submodule(linear.name).register_forward_pre_hook(add(linear.weight))
    decoder = model.get_submodule(checkpoint.spec.base_path)  # the head needn't run
    with progress("Importance matrix", len(windows)) as tick:
        for window in windows:
            decoder(input_ids=window[None], use_cache=False)
            tick()
    return {name: (total / windows.numel()).float().numpy() for name, total in sums.items()}


def _quantize(api: Any, source: Path, target: Path, format: str, importance: Importance) -> None:
    options = api.llama_model_quantize_default_params()
    options.ftype = getattr(api, f"LLAMA_FTYPE_MOSTLY_{format}")
    entries = (api.llama_model_imatrix_data * (len(importance) + 1))()  # an entry without a name ends it
    for entry, (name, values) in zip(entries, importance.items(), strict=False):
        entry.name, entry.size = name.encode(), values.size
        entry.data = values.ctypes.data_as(ctypes.POINTER(ctypes.c_float))
    options.imatrix = entries
    errors = reported_errors(api)
    errors.clear()
    if status := api.llama_model_quantize(os.fsencode(source), os.fsencode(target), ctypes.byref(options)):
        reason = " ".join(errors[0].split())[:300] if errors else f"status {status}"
        raise EdgeError("study.quantize", f"llama.cpp can't make {format} of it: {reason}", "leave this format out")


def _size(api: Any, path: Path) -> int:
    """Bytes of all tensors of a GGUF file, of types too that the package `gguf` doesn't know."""
    options = api.llama_model_default_params()
    model = api.llama_model_load_from_file(os.fsencode(path), options)
    if not model:
        raise EdgeError("study.quantize", f"llama.cpp can't open what it made: {path.name}", "leave this format out")
    size = int(api.llama_model_size(model))
    api.llama_model_free(model)
    return size


def _kinds(path: Path) -> str:
    """How many tensors there are of each type; empty where `gguf` doesn't know one."""
    try:
        counts = Counter(tensor.tensor_type.name for tensor in GGUFReader(path).tensors)
    except ValueError:
        return ""
    return f"llama.cpp stored {', '.join(f'{count} tensors as {kind}' for kind, count in counts.items())}"
