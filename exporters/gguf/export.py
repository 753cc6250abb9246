"""A decoder checkpoint as `model.gguf`, which llama.cpp loads: nobody who compressed a model here has to stay.

Codes stay what they are wherever one of llama.cpp's types holds them (`blocks.py`); `tensors.json` says how each tensor
was written and with what error. The file also carries the configuration and the tokenizer of the checkpoint whole
(`edge.config`, `tokenizer.huggingface.json`), so that edge reads back exactly the model that it wrote.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save_file

from edge.core.bundle import Manifest
from edge.core.errors import UsageError
from edge.core.files import SCHEMA, read_json, write_json
from edge.core.target import Kernels, KvCacheType
from edge.exporters._manifest import Caches, caches_of, kv_cache_of, manifest_of
from edge.exporters.gguf.architecture import (
    Architecture,
    architecture_of,
    neighbours_first,
    rope_tensors,
    write_metadata,
)
from edge.exporters.gguf.blocks import relative_error, store
from edge.exporters.gguf.vocabulary import write_vocabulary
from edge.models.checkpoint import Checkpoint, open_checkpoint

if TYPE_CHECKING:
    from gguf import GGUFWriter

MODEL, TENSORS, SAMPLES = "model.gguf", "tensors.json", "samples.safetensors"
NORM_ERROR = 1e-6  # float32's rounding where the file holds 1 + weight
UNTIMED = "operators were not timed against their fp32 twins: llama.cpp runs whole graphs only"


class Written(msgspec.Struct, frozen=True):
    """How a tensor was written: its name in the file, llama.cpp's type, and the relative error of its values."""

    name: str
    encoding: str
    type: str
    relative_error: float


class Tensors(msgspec.Struct, frozen=True):
    """Every tensor by its name in the checkpoint."""

    tensors: dict[str, Written]
    schema: int = SCHEMA


def write(
    checkpoint: Checkpoint,
    folder: Path,
    *,
    kernels: Kernels,
    context_length: int,
    kv_cache: KvCacheType | None = None,
) -> Manifest:
    """Write a decoder into an existing folder and say what was written. Gates and file digests are the caller's.

    kernels: llama.cpp brings its own, so the manifest says `builtin` whatever is asked for. kv_cache: float16 (as
    llama.cpp does by itself) or float32. Raises `EdgeError` before the first byte for an architecture that llama.cpp
    lacks or computes in another way.
    """
    caches = caches_of(checkpoint, kv_cache, "float16", coded=False)
    if caches == "int8":
        hint = "use float16 or float32"
        raise UsageError("export.kv_cache", "llama.cpp's caches hold no int8 as edge knows it", hint)
    architecture = architecture_of(checkpoint, context_length)
    checkpoint.save_tokenizer(folder)
    checkpoint.config.save_pretrained(folder)
    written, notes = write_gguf(checkpoint, folder / MODEL, architecture, folder)
    write_json(folder / TENSORS, Tensors(written))
    manifest = _manifest(checkpoint, folder, context_length, caches)
    layers = {tensor.name: name.rpartition(".")[0] for name, tensor in written.items()}
    return msgspec.structs.replace(manifest, layer_of_node=layers, notes=[*_mapped(written), *notes, UNTIMED])


def write_samples(folder: Path, tokens: Sequence[int], logits: NDArray[np.float32]) -> None:
    """Keep sample inputs and what the reference answers to them: `tokens` [n] and `logits` [rows, vocabulary]."""
    save_file({"tokens": np.array(tokens, np.int64), "logits": np.ascontiguousarray(logits)}, folder / SAMPLES)


def codes_equal(checkpoint: Checkpoint, folder: Path, manifest: Manifest) -> bool:
    """Whether the file, read back as any GGUF is, holds every tensor as closely as `tensors.json` says."""
    written = read_json(folder / TENSORS, Tensors).tensors
    back = open_checkpoint(folder / manifest.artefact)
    for name in checkpoint.names():
        wanted, found = (model.tensor(name).float().numpy() for model in (checkpoint, back))
        if relative_error(found, wanted) > max(1.001 * written[name].relative_error, _allowed(checkpoint, name)):
            return False
        checkpoint.release()
        back.release()
    return True


def slow_nodes(folder: Path, manifest: Manifest) -> list[str]:
    """None is known: see `UNTIMED`, which the manifest carries."""
    return []


def write_gguf(
    checkpoint: Checkpoint, path: Path, architecture: Architecture, tokenizer: Path
) -> tuple[dict[str, Written], list[str]]:
    """One GGUF file, with the tokenizer that lies in the folder `tokenizer`. Returns what became of every tensor, by
    its name in the checkpoint, and what has to be said of the tokenizer.
    """
    from gguf import GGML_QUANT_VERSION, GGUFWriter

    writer = GGUFWriter(path, architecture.name, use_temp_file=True)  # tensors wait on the disk, not in memory
    write_metadata(writer, checkpoint, architecture)
    writer.add_quantization_version(GGML_QUANT_VERSION)
    writer.add_string("edge.config", _config(checkpoint))
    notes = write_vocabulary(writer, checkpoint, tokenizer)
    written = _write_tensors(writer, checkpoint, architecture)
    writer.add_file_type(_file_type(written.values()))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return written, notes


def _config(checkpoint: Checkpoint) -> str:
    """config.json without what edge's own compression adds to it."""
    settings = json.loads(checkpoint.config.to_json_string(use_diff=False))
    settings.pop("quantization_config", None)
    return json.dumps(settings, sort_keys=True)


def _write_tensors(writer: GGUFWriter, checkpoint: Checkpoint, architecture: Architecture) -> dict[str, Written]:
    from gguf import MODEL_ARCH_NAMES, get_tensor_name_map

    arch = next(key for key, name in MODEL_ARCH_NAMES.items() if name == architecture.name)
    names = get_tensor_name_map(arch, len(checkpoint.spec.layers))
    matrices = {name for name, _ in checkpoint.spec.matrices()}
    heads = _rotated_heads(checkpoint) if architecture.neighbours else {}
    shifted = _shifted_norms(checkpoint)
    written = {}
    for name in checkpoint.names():
        module, _, suffix = name.rpartition(".")
        encoding, kind, error = "float32", None, 0.0
        if name in matrices:
            matrix = checkpoint.matrix(name)
            kind, data, error = store(matrix)
            encoding = str(matrix.encoding)
        else:
            data = checkpoint.vector(name) + np.float32(name in shifted)
        if module in heads:
            data = data[neighbours_first(len(data), heads[module])]
        stored = f"{names.get_name(module)}.{suffix}"
        writer.add_tensor(stored, data, raw_dtype=kind if data.dtype == np.uint8 else None)
        written[name] = Written(stored, encoding, kind.name if kind is not None else "F32", error)
        checkpoint.release()
    for stored, table in rope_tensors(checkpoint.config).items():
        writer.add_tensor(stored, table)
    return written


def _rotated_heads(checkpoint: Checkpoint) -> dict[str, int]:
    """Heads of every query and key matrix, by module."""
    found = {}
    for layer in checkpoint.spec.layers:
        query, key, _ = layer.attention.qkv
        found |= {query.name: layer.attention.num_heads, key.name: layer.attention.num_kv_heads}
    return found


def _shifted_norms(checkpoint: Checkpoint) -> set[str]:
    """Weights of norms that multiply by 1 + weight: llama.cpp keeps the sum."""
    norms = [checkpoint.spec.final_norm]
    for layer in checkpoint.spec.layers:
        norms += [layer.input_norm, layer.post_attention_norm, layer.mlp_norm, layer.post_mlp_norm]
        norms += [layer.attention.q_norm, layer.attention.k_norm]
    return {f"{norm.name}.weight" for norm in norms if norm is not None and norm.unit_offset}


def _allowed(checkpoint: Checkpoint, name: str) -> float:
    return NORM_ERROR if name in _shifted_norms(checkpoint) else 0.0


def _file_type(written: Iterable[Written]) -> int:
    """llama.cpp's name for the file as a whole: the type of most matrices."""
    from gguf import LlamaFileType

    types = Counter(tensor.type for tensor in written if tensor.type != "F32")
    if not types:
        return int(LlamaFileType.ALL_F32)
    return int(LlamaFileType[f"MOSTLY_{types.most_common(1)[0][0]}"])


def _mapped(written: dict[str, Written]) -> list[str]:
    """A line for every kind of matrix: what became of it, and the largest error."""
    kinds: dict[tuple[str, str], list[tuple[float, str]]] = {}
    for name, tensor in written.items():
        if (tensor.encoding, tensor.type) == ("float32", "F32"):  # norms and biases
            continue
        kinds.setdefault((tensor.encoding, tensor.type), []).append((tensor.relative_error, name))
    lines = []
    for (encoding, kind), tensors in kinds.items():
        error, name = max(tensors)
        how = f"relative error at most {error:.1e} ({name})" if error else "exact"
        lines.append(f"{len(tensors)} tensors {encoding} -> {kind}, {how}")
    return [*lines, f"{TENSORS} says so of every tensor"]


def _manifest(checkpoint: Checkpoint, folder: Path, context_length: int, caches: Caches) -> Manifest:
    return manifest_of(
        checkpoint,
        [folder / MODEL],
        runtime="gguf",
        tools=("gguf", "torch"),
        kernels="builtin",
        context_length=context_length,
        kv_cache=kv_cache_of(checkpoint.spec, caches, context_length),
        encodings={name: checkpoint.matrix_encoding(name) for name, _ in checkpoint.spec.matrices()},
        layer_of_node={},
    )
