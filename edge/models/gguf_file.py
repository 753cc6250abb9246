"""GGUF files (llama.cpp), memory-mapped and dequantized tensor by tensor.

Configuration, tokenizer and the tensors' permutations come from transformers' own GGUF code; names from `gguf`.
"""

from __future__ import annotations

import mmap
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec
import numpy as np
import torch

from edge.core.errors import EdgeError
from edge.models.describe import check_model_type, describe, known_model_types, tensor_shapes
from edge.models.pre_tokenizers import pre_tokenizer
from edge.models.spec import DecoderSpec
from edge.models.store import damaged

if TYPE_CHECKING:
    from gguf import GGUFReader, ReaderTensor
    from transformers import PretrainedConfig

# Architecture names of GGUF that differ from transformers' model types.
MODEL_TYPES = {"gemma3": "gemma3_text"}
# What edge's own exporter adds: the whole configuration, and a tokenizer.json under the key that GGUF has for it.
OWN_CONFIG, OWN_TOKENIZER = "edge.config", "tokenizer.huggingface.json"
SPECIAL_TOKENS = (("bos", "bos"), ("eos", "eos"), ("unk", "unknown"), ("pad", "padding"))
# Tables that follow from the configuration.
ROPE_TABLES = ("rope_freqs.weight", "rope_factors_long.weight", "rope_factors_short.weight")


class OpenedGguf(NamedTuple):
    config: PretrainedConfig
    store: GgufStore
    write_tokenizer: Callable[[Path], None]
    generation: dict[str, Any]


class GgufStore:
    """Tensors of a GGUF file under Hugging Face's names, float32."""

    def __init__(self, path: Path, reader: GGUFReader, config: PretrainedConfig, architecture: str) -> None:
        from transformers.modeling_gguf_pytorch_utils import TENSOR_PROCESSORS, TensorProcessor

        self.files = [path]
        self._reader = reader
        self._processor = TENSOR_PROCESSORS.get(architecture, TensorProcessor)(config=config.to_dict())
        spec = describe(config)
        self._tensors = _by_hf_name(path, reader, spec, architecture)
        self._turned = spec.transposed

    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        # GGUF lists dimensions from the fastest on; the processor turns Conv1D's matrices once more.
        sizes = {name: tuple(int(n) for n in tensor.shape) for name, tensor in self._tensors.items()}
        return {name: size if name in self._turned else size[::-1] for name, size in sizes.items()}

    def stored_bytes(self, name: str) -> int:
        return int(self._tensors[name].n_bytes)

    def read(self, name: str) -> torch.Tensor:
        from gguf import dequantize

        tensor = self._tensors[name]
        try:
            weights = dequantize(tensor.data, tensor.tensor_type)
        except (NotImplementedError, ValueError) as error:
            message = f"{self.files[0]}: '{tensor.name}' is {tensor.tensor_type.name}, which edge can't dequantize"
            raise EdgeError("checkpoint.dtype", message, "use a GGUF file with another quantization") from error
        weights = self._processor.process(weights=weights, name=tensor.name, parsed_parameters={"tensors": {}}).weights
        return torch.from_numpy(np.require(weights, np.float32, ["C", "W"]))

    def release(self) -> None:
        mapped = self._reader.data._mmap
        mapped.madvise(mmap.MADV_DONTNEED)


def open_gguf(path: Path) -> OpenedGguf:
    """Read a GGUF file's metadata. Raises `EdgeError` for a damaged file or an architecture that isn't served."""
    reader = _reader(path)
    architecture = str(_field(reader, "general.architecture"))
    config = _own_config(path, reader) or _config(path, reader, architecture)
    generation = {key: _field(reader, f"tokenizer.ggml.{key}") for key in ("bos_token_id", "eos_token_id")}
    end_of_turn = _field(reader, "tokenizer.ggml.eot_token_id")
    if end_of_turn not in (None, generation["eos_token_id"]):
        generation["eos_token_id"] = [generation["eos_token_id"], end_of_turn]
    store = GgufStore(path, reader, config, architecture)
    write = _write_own_tokenizer if _field(reader, OWN_CONFIG) else _write_tokenizer
    return OpenedGguf(config, store, lambda folder: write(path, folder, generation), generation)


def _reader(path: Path) -> GGUFReader:
    from gguf import GGUFReader

    try:
        return GGUFReader(path)
    except Exception as error:  # the reader trusts the file: damage shows as any kind of error
        raise damaged(path, f"it can't be read as GGUF ({error})") from error


def _field(reader: GGUFReader, key: str) -> Any:
    field = reader.fields.get(key)
    return None if field is None else field.contents()


def _own_config(path: Path, reader: GGUFReader) -> PretrainedConfig | None:
    """The configuration of the checkpoint that edge wrote this file from, None for a file of others."""
    from transformers import AutoConfig

    text = _field(reader, OWN_CONFIG)
    if text is None:
        return None
    try:
        settings = msgspec.json.decode(text, type=dict)
        if settings.get("model_type") not in known_model_types():
            raise ValueError(f"model_type is {settings.get('model_type')!r}")
        return AutoConfig.for_model(**settings)
    except Exception as error:  # transformers' own validation raises many kinds
        raise damaged(path, f"its configuration says nothing ({' '.join(str(error).split())})") from error


def _config(path: Path, reader: GGUFReader, architecture: str) -> PretrainedConfig:
    from transformers import AutoConfig

    check_model_type(MODEL_TYPES.get(architecture, architecture), str(path))
    scaling = _field(reader, f"{architecture}.rope.scaling.type")
    if scaling not in (None, "none"):
        message = f"{path} scales its rotary embedding by '{scaling}', which GGUF's metadata don't describe fully"
        raise EdgeError("checkpoint.unsupported", message, "start from the Hugging Face checkpoint of this model")
    try:
        config = AutoConfig.from_pretrained(path.parent, gguf_file=path.name, local_files_only=True)
    except Exception as error:  # as above
        raise damaged(path, f"its metadata describe no model ({error})") from error
    width = _field(reader, f"{architecture}.attention.key_length")
    if width and hasattr(config, "head_dim"):  # transformers' table leaves this key out for some architectures
        config.head_dim = int(width)
    return config


def _by_hf_name(path: Path, reader: GGUFReader, spec: DecoderSpec, architecture: str) -> dict[str, ReaderTensor]:
    """Tensors of the file that the description asks for. Raises for one that it has no place for."""
    from gguf import MODEL_ARCH_NAMES, get_tensor_name_map

    arch = next((key for key, name in MODEL_ARCH_NAMES.items() if name == architecture), None)
    if arch is None:
        raise damaged(path, f"no architecture is called '{architecture}'")
    names = get_tensor_name_map(arch, len(spec.layers))
    tables = ROPE_TABLES if _field(reader, OWN_CONFIG) else ()
    tensors = {tensor.name: tensor for tensor in reader.tensors if tensor.name not in tables}
    found = {}
    for hf_name in tensor_shapes(spec):
        module, _, suffix = hf_name.rpartition(".")
        tensor = tensors.pop(f"{names.get_name(module)}.{suffix}", None)
        if tensor is not None:
            found[hf_name] = tensor
    if tensors:
        message = f"{path}: edge doesn't know what the tensor '{min(tensors)}' does in a {spec.model_type} model"
        raise EdgeError("checkpoint.foreign_tensor", message, "start from the Hugging Face checkpoint of this model")
    return found


def _write_tokenizer(path: Path, folder: Path, generation: dict[str, Any]) -> None:
    from transformers import AutoTokenizer, GenerationConfig

    tokenizer = AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name, local_files_only=True)
    reader = _reader(path)
    if _field(reader, "tokenizer.ggml.model") == "gpt2":
        # transformers gives most files GPT-2's split, whatever they ask for
        split = pre_tokenizer(str(_field(reader, "tokenizer.ggml.pre")))
        tokenizer.backend_tokenizer.pre_tokenizer = split or tokenizer.backend_tokenizer.pre_tokenizer
    tokenizer.save_pretrained(folder)
    GenerationConfig(**{key: value for key, value in generation.items() if value is not None}).save_pretrained(folder)


def _write_own_tokenizer(path: Path, folder: Path, generation: dict[str, Any]) -> None:
    """The tokenizer as edge found it. There is none where the checkpoint had none."""
    from tokenizers import Tokenizer
    from transformers import GenerationConfig, PreTrainedTokenizerFast

    reader = _reader(path)
    text = _field(reader, OWN_TOKENIZER)
    if text is not None:
        try:
            core = Tokenizer.from_str(text)
        except Exception as error:  # the library raises plain ones
            raise damaged(path, f"its tokenizer can't be read ({error})") from error
        ids = {f"{name}_token": _field(reader, f"tokenizer.ggml.{key}_token_id") for name, key in SPECIAL_TOKENS}
        special = {name: core.id_to_token(int(token)) for name, token in ids.items() if token is not None}
        fast = PreTrainedTokenizerFast(tokenizer_object=core, **special)
        fast.chat_template = _field(reader, "tokenizer.chat_template")
        fast.save_pretrained(folder)
    GenerationConfig(**{key: value for key, value in generation.items() if value is not None}).save_pretrained(folder)
