"""Whisper models in CTranslate2's folder format: `model.bin`, read by its own layout (no pickle), and what lies beside.

model.bin, little-endian: u32 version, name of the specification, u32 revision, u32 count, then tensors; at the end u32
count of aliases, which are pairs of names. A name is u16 length and bytes with a NUL. A tensor is its name, u8 rank,
u32 dimensions, u8 type, u32 bytes, and its data. Layout: https://github.com/OpenNMT/CTranslate2 (converters).
"""

from __future__ import annotations

import math
import mmap
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec
import torch

from edge.core.errors import EdgeError
from edge.core.files import write_json
from edge.models.store import Json, damaged

if TYPE_CHECKING:
    from collections.abc import Callable

    from transformers import PretrainedConfig

MODEL = "model.bin"
VERSIONS = (6,)
SPECIFICATION = "WhisperSpec"
DTYPES = (torch.float32, torch.int8, torch.int16, torch.int32, torch.float16, torch.bfloat16)
FLOATS = (torch.float32, torch.float16, torch.bfloat16)
MAX_TENSORS = 100_000
MAX_RANK = 8
ENGLISH_WORDS = 51864  # a multilingual vocabulary has one more
LINEARS = {  # CTranslate2's module -> transformers' products, whose rows it holds one below the other
    "self_attention/linear_0": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    "self_attention/linear_1": ("self_attn.out_proj",),
    "attention/linear_0": ("encoder_attn.q_proj",),
    "attention/linear_1": ("encoder_attn.k_proj", "encoder_attn.v_proj"),
    "attention/linear_2": ("encoder_attn.out_proj",),
    "ffn/linear_0": ("fc1",),
    "ffn/linear_1": ("fc2",),
}
NORMS = {
    "self_attention/layer_norm": "self_attn_layer_norm",
    "attention/layer_norm": "encoder_attn_layer_norm",
    "ffn/layer_norm": "final_layer_norm",
}
WEIGHTS = {"gamma": "weight", "beta": "bias"}
# What a specification says of itself, and numbers that follow from the shapes.
SETTINGS = ("activation", "alibi", "alignment_heads", "alignment_layer", "num_heads", "pre_norm", "scale_embeddings")


@dataclass(frozen=True)
class Entry:
    """A tensor in the file."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    offset: int

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize

    def rows(self, part: int, parts: int) -> Entry:
        """One of several tensors that lie one below the other."""
        count = self.shape[0] // parts
        shape = (count, *self.shape[1:])
        return Entry(shape, self.dtype, self.offset + part * math.prod(shape) * self.dtype.itemsize)


class OpenedCtranslate2(NamedTuple):
    config: PretrainedConfig
    store: Ctranslate2Store
    write_tokenizer: Callable[[Path], None]
    generation: Json


class Ctranslate2Store:
    """Tensors of a model.bin under Hugging Face's names, memory-mapped."""

    def __init__(self, path: Path, entries: Mapping[str, Entry]) -> None:
        self.files = [path]
        self._entries = entries
        with path.open("rb") as file:  # copy-on-write: torch wants writable memory, the file stays as it is
            self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)

    def shapes(self) -> dict[str, tuple[int, ...]]:
        return {name: entry.shape for name, entry in self._entries.items()}

    def stored_bytes(self, name: str) -> int:
        return self._entries[name].nbytes

    def read(self, name: str) -> torch.Tensor:
        entry = self._entries[name]
        data = self._map[entry.offset : entry.offset + entry.nbytes]  # a copy: tensors lie at odd addresses
        return torch.frombuffer(bytearray(data), dtype=entry.dtype).reshape(entry.shape)

    def release(self) -> None:
        self._map.madvise(mmap.MADV_DONTNEED)


def is_ctranslate2(folder: Path) -> bool:
    """Whether a folder's model.bin begins as CTranslate2's do; a pickle never does."""
    path = folder / MODEL
    if not path.is_file():
        return False
    with path.open("rb") as file:
        version, length = struct.unpack("<IH", file.read(6).ljust(6, b"\0"))
        name = file.read(min(length, 64)).rstrip(b"\0")
    return version < 256 and name.endswith(b"Spec")


def open_ctranslate2(folder: Path) -> OpenedCtranslate2:
    """Read a folder's metadata. Raises `EdgeError` for damaged files, a model other than Whisper, integer weights."""
    path = folder / MODEL
    entries = read_entries(path)
    settings = _json(folder / "config.json")
    vocabulary = _vocabulary(folder)
    named = _by_hf_name(path, entries)
    config = _config(path, entries, vocabulary)
    generation = _generation(path, settings, vocabulary)
    config.bos_token_id = config.eos_token_id = config.pad_token_id = generation["eos_token_id"]
    config.decoder_start_token_id = generation["decoder_start_token_id"]
    write = partial(_write_tokenizer, folder, generation, config.num_mel_bins)
    return OpenedCtranslate2(config, Ctranslate2Store(path, named), write, generation)


def read_entries(path: Path) -> dict[str, Entry]:
    """Every tensor of a model.bin by name, every length checked. Raises `EdgeError` for a file that doesn't add up."""
    with path.open("rb") as file:
        reader = _Reader(path, file, path.stat().st_size)
        version = reader.number("I")
        if version not in VERSIONS:
            message = f"{path} has version {version} of CTranslate2's format; edge reads {VERSIONS[0]}"
            raise EdgeError("checkpoint.version", message, "convert the model again with a current ctranslate2")
        specification = reader.text()
        if specification != SPECIFICATION:
            message = f"{path} is a {specification} of CTranslate2; edge reads {SPECIFICATION}"
            raise EdgeError("checkpoint.architecture", message, "start from the Hugging Face checkpoint of this model")
        reader.number("I")
        count = reader.number("I")
        if count > MAX_TENSORS:
            raise damaged(path, f"it says that it has {count} tensors")
        entries = dict(reader.entry() for _ in range(count))
        for _ in range(reader.number("I")):
            reader.text(), reader.text()  # aliases: the head is the embedding, as in every Whisper
        reader.end()
    return entries


class _Reader:
    """Takes a file apart, and never reads past its end."""

    def __init__(self, path: Path, file: Any, size: int) -> None:
        self.path, self.file, self.size = path, file, size

    def number(self, kind: str) -> int:
        data = self.take(struct.calcsize(kind))
        (value,) = struct.unpack(f"<{kind}", data)
        return int(value)

    def text(self) -> str:
        data = self.take(self.number("H"))
        try:
            return data.rstrip(b"\0").decode("utf-8")
        except UnicodeDecodeError as error:
            raise damaged(self.path, "a name in it is no text") from error

    def entry(self) -> tuple[str, Entry]:
        name, rank = self.text(), self.number("B")
        if rank > MAX_RANK:
            raise damaged(self.path, f"'{name}' has {rank} dimensions")
        shape = tuple(self.number("I") for _ in range(rank))
        kind, length = self.number("B"), self.number("I")
        if kind >= len(DTYPES):
            raise damaged(self.path, f"'{name}' has the type {kind}")
        entry = Entry(shape, DTYPES[kind], self.file.tell())
        if entry.nbytes != length or entry.offset + length > self.size:
            raise damaged(self.path, f"'{name}' of shape {list(shape)} has {length} bytes")
        self.file.seek(length, 1)
        return name, entry

    def take(self, count: int) -> bytes:
        data: bytes = self.file.read(count)
        if len(data) != count:
            raise damaged(self.path, f"it ends at byte {self.size}, within a tensor or a name")
        return data

    def end(self) -> None:
        if self.file.tell() != self.size:
            raise damaged(self.path, f"{self.size - self.file.tell()} bytes follow its end")


def _by_hf_name(path: Path, entries: Mapping[str, Entry]) -> dict[str, Entry]:
    """The tensors under Hugging Face's names; every one of the file's must have its place."""
    named: dict[str, Entry] = {}
    for name, entry in entries.items():
        side, _, rest = name.partition("/")
        if rest in SETTINGS or rest == "start_from_zero_embedding":
            continue
        if entry.dtype not in FLOATS:
            message = f"{path}: '{name}' is quantized already ({entry.dtype})".replace("torch.", "")
            raise EdgeError("checkpoint.quantized", message, "convert the model with --quantization float32 or float16")
        found = _places(rest, entry) if side in ("encoder", "decoder") else {}
        if not found:
            message = f"{path}: '{name}' has no place in a Whisper model"
            raise EdgeError("checkpoint.foreign_tensor", message, "start from the Hugging Face checkpoint")
        named |= {f"model.{side}.{place}": part for place, part in found.items()}
    return named


def _places(name: str, entry: Entry) -> dict[str, Entry]:
    """Where a tensor of the encoder or the decoder belongs, cut into its parts; empty for one that belongs nowhere."""
    outer = {
        "embeddings/weight": "embed_tokens.weight",
        "position_encodings/encodings": "embed_positions.weight",
        "layer_norm/gamma": "layer_norm.weight",
        "layer_norm/beta": "layer_norm.bias",
    }
    if name in outer:
        return {outer[name]: entry}
    if name.startswith(("conv1/", "conv2/")):
        return {name.replace("/", "."): entry}
    layer, _, rest = name.partition("/")
    module, _, leaf = rest.rpartition("/")
    place = layer.replace("layer_", "layers.")
    if module in NORMS and leaf in WEIGHTS:
        return {f"{place}.{NORMS[module]}.{WEIGHTS[leaf]}": entry}
    targets = LINEARS.get(module, ())
    if leaf not in ("weight", "bias") or not targets or not entry.shape or entry.shape[0] % len(targets):
        return {}
    parts = {f"{place}.{target}.{leaf}": entry.rows(i, len(targets)) for i, target in enumerate(targets)}
    # Whisper's keys have no bias: the file has zeros there.
    return {name: part for name, part in parts.items() if not name.endswith("k_proj.bias")}


def _config(path: Path, entries: Mapping[str, Entry], vocabulary: list[str]) -> PretrainedConfig:
    """What the shapes and the numbers of heads say."""
    from transformers import WhisperConfig

    try:
        words, width = entries["decoder/embeddings/weight"].shape
        layers = {side: _layers(entries, side) for side in ("encoder", "decoder")}
        config = WhisperConfig(
            vocab_size=words,
            d_model=width,
            num_mel_bins=entries["encoder/conv1/weight"].shape[1],
            encoder_layers=layers["encoder"],
            decoder_layers=layers["decoder"],
            encoder_attention_heads=_scalar(path, entries["encoder/num_heads"]),
            decoder_attention_heads=_scalar(path, entries["decoder/num_heads"]),
            encoder_ffn_dim=entries["encoder/layer_0/ffn/linear_0/weight"].shape[0],
            decoder_ffn_dim=entries["decoder/layer_0/ffn/linear_0/weight"].shape[0],
            max_source_positions=entries["encoder/position_encodings/encodings"].shape[0],
            max_target_positions=entries["decoder/position_encodings/encodings"].shape[0],
        )
    except (KeyError, ValueError, IndexError) as error:
        raise damaged(path, f"it has no whole Whisper model ({error})") from error
    if len(vocabulary) > words:
        raise damaged(path, f"its vocabulary has {len(vocabulary)} tokens, its embedding {words}")
    config.architectures = ["WhisperForConditionalGeneration"]
    return config


def _layers(entries: Mapping[str, Entry], side: str) -> int:
    return len({name.split("/")[1] for name in entries if name.startswith(f"{side}/layer_") and name.count("/") > 2})


def _scalar(path: Path, entry: Entry) -> int:
    with path.open("rb") as file:
        file.seek(entry.offset)
        return int.from_bytes(file.read(entry.nbytes), "little")


def _vocabulary(folder: Path) -> list[str]:
    """Tokens by id, from vocabulary.json or, of older converters, vocabulary.txt."""
    if (folder / "vocabulary.json").is_file():
        path = folder / "vocabulary.json"
        try:
            return msgspec.json.decode(path.read_bytes(), type=list[str])
        except (msgspec.DecodeError, msgspec.ValidationError) as error:
            raise damaged(path, str(error)) from error
    path = folder / "vocabulary.txt"
    if not path.is_file():
        raise EdgeError("checkpoint.missing_file", f"{folder} has no vocabulary.json", "copy the whole folder")
    try:
        return path.read_text(encoding="utf-8").split("\n")[:-1]
    except UnicodeDecodeError as error:
        raise damaged(path, "it is not UTF-8") from error


def _generation(path: Path, settings: Json, vocabulary: list[str]) -> Json:
    """What `generate` obeys, as Hugging Face's generation_config.json of a Whisper says it."""
    ids = {token: index for index, token in enumerate(vocabulary) if token.startswith("<|")}
    try:
        end, start, last = (ids[f"<|{t}|>"] for t in ("endoftext", "startoftranscript", "notimestamps"))
    except KeyError as error:
        raise damaged(path.with_name("vocabulary"), f"it has no token {error}") from error
    generation: Json = {
        "bos_token_id": end,
        "eos_token_id": end,
        "pad_token_id": end,
        "decoder_start_token_id": start,
        "no_timestamps_token_id": last,
        "suppress_tokens": _ids(path, settings.get("suppress_ids"), len(vocabulary)),
        "begin_suppress_tokens": _ids(path, settings.get("suppress_ids_begin"), len(vocabulary)),
        "return_timestamps": False,
        "is_multilingual": len(vocabulary) > ENGLISH_WORDS,
    }
    if generation["is_multilingual"]:
        languages = _ids(path, settings.get("lang_ids"), len(vocabulary))
        generation["lang_to_id"] = {vocabulary[index]: index for index in languages}
        generation["task_to_id"] = {task: ids[f"<|{task}|>"] for task in ("transcribe", "translate")}
        generation["forced_decoder_ids"] = [[1, None], [2, ids["<|transcribe|>"]]]
    else:
        generation["forced_decoder_ids"] = [[1, last]]
    return generation


def _ids(path: Path, value: Any, words: int) -> list[int]:
    found = value or []
    if not isinstance(found, list) or not all(isinstance(i, int) and 0 <= i < words for i in found):
        raise damaged(path.with_name("config.json"), "its lists of tokens hold what is no token")
    return found


def _json(path: Path) -> Json:
    if not path.is_file():
        raise EdgeError("checkpoint.no_config", f"{path} is missing", "copy the whole folder")
    try:
        return msgspec.json.decode(path.read_bytes(), type=dict)
    except (msgspec.DecodeError, msgspec.ValidationError, UnicodeDecodeError) as error:
        raise damaged(path, str(error)) from error


def _write_tokenizer(source: Path, generation: Json, bins: int, target: Path) -> None:
    """tokenizer.json as it is, and the files beside it that transformers looks for."""
    if (source / "tokenizer.json").is_file():
        (target / "tokenizer.json").write_bytes((source / "tokenizer.json").read_bytes())
        end = "<|endoftext|>"
        tokens = {"bos_token": end, "eos_token": end, "unk_token": end, "pad_token": end}
        write_json(target / "tokenizer_config.json", {"tokenizer_class": "WhisperTokenizer", **tokens})
    write_json(target / "generation_config.json", generation)
    extractor = {"feature_extractor_type": "WhisperFeatureExtractor", "feature_size": bins}
    write_json(target / "preprocessor_config.json", extractor)
