"""A checkpoint, wherever it comes from: tensors under Hugging Face's names, one at a time, checked."""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Callable, Mapping
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import msgspec
import numpy as np
import torch
from numpy.typing import NDArray

from edge.core import files
from edge.core.cache import CacheFormat, CacheTables
from edge.core.errors import EdgeError, UsageError
from edge.core.weight import Compressed, CompressedTensor, Dense, Encoding
from edge.models import ctranslate2_file, hub
from edge.models import folder as hf_folder
from edge.models.any_model import StateStore, read_model
from edge.models.describe import describe, tensor_shapes
from edge.models.spec import DecoderSpec, Linear, Spec, cache_path, cache_shapes
from edge.models.store import TensorStore, damaged
from edge.models.stored import from_stored, stored_names

if TYPE_CHECKING:
    from transformers import PretrainedConfig

HUB_ID = re.compile(r"[\w.-]+/[\w.-]+(@[\w./-]+)?")
# Buffers that old checkpoints carry along; the model computes them itself.
IGNORED = re.compile(r".*(rotary_emb\.inv_freq|\.attn\.(masked_)?bias)")
DTYPE_NAMES: dict[torch.dtype, Literal["float32", "float16", "bfloat16"]] = {
    torch.float32: "float32",
    torch.float16: "float16",
    torch.bfloat16: "bfloat16",
}


class Checkpoint:
    """An opened model. `spec` says what it is; tensors are read when asked for, under the names of `names()`.

    activations: what compressed matmuls see at run time. recipe: what compressed it (None for an original).
    origin: what it was made from, a hub id or the last part of a path, never a path of this machine.
    Every reader raises `EdgeError` for weights that are not finite.
    """

    def __init__(
        self,
        source: str,
        config: PretrainedConfig,
        store: TensorStore,
        write_tokenizer: Callable[[Path], None],
        generation: Mapping[str, Any],
        settings: CompressionSettings | None = None,
    ) -> None:
        self.source = source
        self.origin = settings.source if settings and settings.source else origin_of(source)
        self.config = config
        self.spec: Spec = describe(config)
        self.recipe: dict[str, Any] | None = settings.recipe if settings else None
        self.activations: Literal["a8", "a4", "f32"] = settings.activations if settings else "f32"
        self.compressed = settings is not None
        self.encodings: Mapping[str, Compressed] = settings.encodings if settings else {}
        self.cache_formats = settings.kv_cache if settings else None
        self._store = store
        self._write_tokenizer = write_tokenizer
        self._parameters = settings.parameters if settings else None
        self.generation = generation
        self._shapes = tensor_shapes(self.spec)
        self._cache_shapes = self._check_cache(store.shapes())
        weights = {name: shape for name, shape in store.shapes().items() if name not in self._cache_shapes}
        self._stored_names = _match(weights, self._shapes, self._compressed_parts(), self.spec)

    @property
    def files(self) -> list[Path]:
        """The files that hold the weights."""
        return self._store.files

    @property
    def name(self) -> str:
        """The model's name for people: compressing and exporting leave it as it is."""
        return self.origin.rpartition("/")[2].removesuffix(".gguf")

    @cached_property
    def sha256(self) -> str:
        """Identity of the weights: the digest of their file, or of the digests of several."""
        digests = [files.sha256(path) for path in sorted(self.files)]
        return digests[0] if len(digests) == 1 else hashlib.sha256("\n".join(digests).encode()).hexdigest()

    @property
    def parameters(self) -> int:
        """Number of weights of the original, tied ones once: a head that compression gave a matrix of its own is no
        more weights, only more bits for them.
        """
        return self._parameters or sum(math.prod(shape) for shape in self._shapes.values())

    @property
    def stored_bytes(self) -> int:
        """Bytes that the weights take on disk."""
        return sum(map(self.stored_bytes_of, self._stored_names))

    def stored_bytes_of(self, name: str) -> int:
        """Bytes that a tensor takes on disk, with all its parts."""
        return sum(self._store.stored_bytes(part) for part in self._stored_names[name])

    @property
    def eos_token_ids(self) -> list[int]:
        """Tokens that end a text."""
        eos = self._special_token("eos_token_id")
        return eos if isinstance(eos, list) else [] if eos is None else [eos]

    @property
    def bos_token_id(self) -> int | None:
        bos = self._special_token("bos_token_id")
        return bos if isinstance(bos, int) else None

    def names(self) -> list[str]:
        """Hugging Face's name of every tensor, in the order of the data; a compressed matrix appears once."""
        return list(self._shapes)

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of a tensor as Hugging Face stores it."""
        return self._shapes[name]

    def matrix_shape(self, name: str) -> tuple[int, int]:
        """[out_features, in_features] (or [vocabulary, hidden]) of a matrix, however it is stored."""
        rows, columns = self._shapes[name][::-1] if name in self.spec.transposed else self._shapes[name]
        return rows, columns

    def tensor(self, name: str) -> torch.Tensor:
        """A tensor as Hugging Face stores it, in its stored type; float32 for a compressed one.

        It may share memory with the mapped file until `release`: convert or clone what you keep.
        """
        if name in self.encodings:
            dense = torch.from_numpy(self.matrix(name).dequantize())
            return dense.T.contiguous() if name in self.spec.transposed else dense
        (stored,) = self._stored_names[name]
        tensor = self._store.read(stored)
        if not tensor.is_floating_point():
            raise EdgeError("checkpoint.dtype", f"{self.source}: '{name}' holds {tensor.dtype}", "give plain weights")
        _check_finite(self.source, name, tensor)
        return tensor

    def matrix(self, linear: Linear | str) -> CompressedTensor:
        """A matrix [out_features, in_features] (or [vocabulary, hidden]) in its encoding; `Dense` if not compressed.

        Turned where the checkpoint stores it as [in_features, out_features]. `linear` may be a tensor's name.
        """
        name = linear if isinstance(linear, str) else linear.weight
        if name in self.encodings:
            return self._compressed(name)
        tensor = self.tensor(name)
        tensor = (tensor.T if name in self.spec.transposed else tensor).contiguous()
        if tensor.dtype not in DTYPE_NAMES:
            tensor = tensor.float()
        values = tensor.view(torch.uint16).numpy() if tensor.dtype == torch.bfloat16 else tensor.numpy()
        rows, columns = values.shape
        return CompressedTensor(name, (rows, columns), Dense(DTYPE_NAMES[tensor.dtype]), {"values": values})

    def matrix_encoding(self, name: str) -> Encoding:
        """How a matrix is stored, without reading it where it is compressed."""
        return self.encodings[name] if name in self.encodings else self.matrix(name).encoding

    def vector(self, name: str) -> NDArray[np.float32]:
        """A norm's weight, a bias or a table, as float32 of its own."""
        return self.tensor(name).float().clone().numpy()

    def with_store(
        self, config: PretrainedConfig, store: TensorStore, settings: CompressionSettings | None = None
    ) -> Checkpoint:
        """The same model with the tensors of `store`, as `config` asks for them; compressed if `settings` say how."""
        other = Checkpoint(self.source, config, store, self._write_tokenizer, self.generation, settings)
        other._parameters = self.parameters
        return other

    def cache_tables(self) -> list[CacheTables]:
        """Constants of every layer's KV cache; `cache_formats` says how it is coded."""
        tables = []
        read = {name: self._store.read(name).float().clone().numpy() for name in self._cache_shapes}
        for layer, format in zip(self.spec.layers, self.cache_formats or (), strict=True):
            path = cache_path(layer.attention)
            found = CacheTables(**{part: read[f"{path}.{part}"] for part in CacheTables.__dataclass_fields__})
            found.check(f"{self.source}: {path}", format)
            tables.append(found)
        return tables

    def release(self) -> None:
        """Give the memory of the mapped files back. Tensors that share it stay valid and are read again."""
        self._store.release()

    def save_tokenizer(self, folder: Path) -> None:
        """Write tokenizer, chat template and generation configuration into `folder`."""
        self._write_tokenizer(folder)

    def _compressed_parts(self) -> dict[str, list[str]]:
        """Names of the parts of every compressed matrix."""
        matrices = {name for name, _ in self.spec.matrices()}
        for name in self.encodings:
            if name not in matrices:
                hint = "download or copy the folder again"
                raise EdgeError("checkpoint.encoding", f"{self.source}: '{name}' is no matrix of this model", hint)
        return {name: stored_names(name, self.matrix_shape(name), self.encodings[name]) for name in self.encodings}

    def _check_cache(self, stored: Mapping[str, tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
        """Names and shapes of the constants of the layers' KV caches, which have to be there."""
        if self.cache_formats is None:
            return {}
        if not isinstance(self.spec, DecoderSpec) or len(self.cache_formats) != len(self.spec.layers):
            hint = "download or copy the folder again"
            raise EdgeError("checkpoint.cache", f"{self.source}: the layers of its KV cache are not the model's", hint)
        shapes = cache_shapes(self.spec, self.cache_formats)
        for name, shape in shapes.items():
            if tuple(stored.get(name, ())) != shape:
                message = (
                    f"{self.source}: the tensor '{name}' of the KV cache is not there with the shape {list(shape)}"
                )
                raise EdgeError("checkpoint.cache", message, "download or copy the folder again")
        return shapes

    def _compressed(self, name: str) -> CompressedTensor:
        shape, encoding = self.matrix_shape(name), self.encodings[name]
        return from_stored(name, shape, encoding, self._store.read, self._stored_names[name])

    def _special_token(self, field: str) -> Any:
        value = self.generation.get(field)  # what `generate` would obey comes first
        return getattr(self.config, field, None) if value is None else value


class CompressionSettings(msgspec.Struct, frozen=True):
    """What config.json of a compressed folder says: the `quantization_config` and the `edge` section."""

    encodings: dict[str, Compressed]
    activations: Literal["a8", "a4", "f32"]
    recipe: dict[str, Any] | None = None
    source: str | None = None
    kv_cache: list[CacheFormat] | None = None
    parameters: int | None = None
    schema: int = files.SCHEMA


def origin_of(source: str) -> str:
    """What artefacts say that they were made from: a hub id, or the last part of a path."""
    path = Path(source)
    return path.resolve().name if path.exists() else source


def open_checkpoint(source: str | Path) -> Checkpoint:
    """Open a Hugging Face folder, one that edge or CTranslate2 wrote, a GGUF file, or a hub id (then downloaded)."""
    path = Path(source)
    if path.is_dir():
        return _open_folder(path, str(source))
    if path.is_file():
        return _open_file(path)
    if HUB_ID.fullmatch(str(source)) and not str(source).startswith("."):
        return _open_folder(hub.download(str(source)), str(source))
    hint = "give a Hugging Face folder, a GGUF file, or a hub id such as HuggingFaceTB/SmolLM2-135M-Instruct"
    raise EdgeError("checkpoint.missing", f"there is no checkpoint at {source}", hint)


def _open_file(path: Path) -> Checkpoint:
    if path.suffix in {pattern.removeprefix("*") for pattern in hf_folder.PICKLES}:
        raise hf_folder.refuse_pickle(path)
    if path.suffix == ".gguf":
        from edge.models import gguf_file

        opened = gguf_file.open_gguf(path)
        return Checkpoint(str(path), opened.config, opened.store, opened.write_tokenizer, opened.generation)
    hint = "give the folder that it lies in" if path.suffix in (".safetensors", ".json") else "give a .gguf file"
    raise EdgeError("checkpoint.kind", f"{path} is not a checkpoint by itself", hint)


def _open_folder(folder: Path, source: str) -> Checkpoint:
    if ctranslate2_file.is_ctranslate2(folder):
        found = ctranslate2_file.open_ctranslate2(folder)
        return Checkpoint(source, found.config, found.store, found.write_tokenizer, found.generation)
    config = hf_folder.load_config(folder)
    store: TensorStore = hf_folder.open_weights(folder)
    settings = _settings(folder, hf_folder.read_config(folder))
    if settings is None and not isinstance(describe(config), DecoderSpec):
        store = StateStore(store.files, read_model(config, folder))
    generation = hf_folder.read_generation(folder)
    return Checkpoint(source, config, store, partial(hf_folder.copy_tokenizer, folder), generation, settings)


def _settings(folder: Path, config: dict[str, Any]) -> CompressionSettings | None:
    """How edge compressed this folder, None for an original. Another tool's quantization is refused."""
    section = config.get("quantization_config")
    if section is None:
        return None
    method = section.get("quant_method")
    if method != "edge":
        message = f"{folder} is quantized already, by '{method}'"
        raise EdgeError("checkpoint.quantized", message, "start from the original weights")
    if section.get("schema", 1) > files.SCHEMA:
        raise EdgeError("file.newer", f"{folder} was written by a newer edge", "upgrade edge")
    try:
        edge = config.get("edge", {})
        about = {key: edge.get(key) for key in ("recipe", "source", "parameters")}
        return msgspec.convert({**section, **about}, CompressionSettings)
    except (msgspec.ValidationError, UsageError) as error:
        raise damaged(folder / "config.json", str(error)) from error


def _match(
    stored: Mapping[str, tuple[int, ...]],
    expected: Mapping[str, tuple[int, ...]],
    compressed: Mapping[str, list[str]],
    spec: Spec,
) -> dict[str, list[str]]:
    """For every expected tensor the stored ones that hold it; `compressed` has the parts of matrices.

    Raises for a missing, misshapen or foreign one.
    """
    prefix = f"{spec.base_path}."  # checkpoints of a bare base model leave it out
    names: dict[str, list[str]] = {}
    for name, shape in expected.items():
        parts = compressed.get(name, [name])
        if parts[0] not in stored and parts[0].removeprefix(prefix) in stored:
            parts = [part.removeprefix(prefix) for part in parts]
        for part in parts:
            if part not in stored:
                hint = "the checkpoint is incomplete, or its config.json belongs to another model"
                raise EdgeError("checkpoint.missing_tensor", f"the tensor '{part}' is missing", hint)
        if name not in compressed and tuple(stored[parts[0]]) != shape:
            message = f"the tensor '{name}' has the shape {list(stored[parts[0]])}, config.json says {list(shape)}"
            raise EdgeError("checkpoint.shape", message, "config.json and the weights belong to different models")
        names[name] = parts
    _refuse_foreign(stored, names, spec)
    return names


def _refuse_foreign(stored: Mapping[str, tuple[int, ...]], names: dict[str, list[str]], spec: Spec) -> None:
    """A tensor that no part of the description asks for means that the description is wrong: never drop it silently."""
    used = {part for parts in names.values() for part in parts}
    for name in stored:
        if name not in used and name not in spec.tied_copies and not IGNORED.fullmatch(name):
            message = f"the tensor '{name}' has no place in a {spec.model_type} model"
            raise EdgeError("checkpoint.foreign_tensor", message, "adapters, extra heads and MoE are not supported")


def _check_finite(source: str, name: str, tensor: torch.Tensor) -> None:
    # Either extreme is NaN where an element is. Unlike a sum or a mask, they need no memory of the tensor's size.
    if tensor.numel() and not torch.stack(torch.aminmax(tensor)).isfinite().all():
        hint = "the checkpoint is broken: download it again, or use another one"
        raise EdgeError("checkpoint.not_finite", f"{source}: '{name}' holds NaN or infinite values", hint)
