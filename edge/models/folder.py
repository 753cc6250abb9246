"""A Hugging Face folder: which files hold the weights, and what its configuration says."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from edge.core.errors import EdgeError
from edge.models.describe import check_model_type
from edge.models.safetensors_store import SafetensorsStore
from edge.models.store import Json, damaged

if TYPE_CHECKING:
    from transformers import PretrainedConfig

PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")
TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer.model",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "vocab.txt",
    "chat_template.json",
    "chat_template.jinja",
    "generation_config.json",
    "preprocessor_config.json",
    "processor_config.json",
    "modules.json",
    "1_Pooling/config.json",
    "sentence_bert_config.json",
)


def refuse_pickle(path: Path) -> EdgeError:
    """Why a pickle file isn't read."""
    return EdgeError(
        "checkpoint.pickle",
        f"{path} is a pickle file: loading one runs whatever code is in it",
        "convert it to safetensors where you trust it (model.save_pretrained), or download the safetensors files",
    )


def read_config(folder: Path) -> Json:
    """config.json as it is written; its architecture is checked before any model code is imported."""
    path = folder / "config.json"
    if not path.is_file():
        hint = "give a Hugging Face folder with config.json and safetensors files, a GGUF file or a hub id"
        raise EdgeError("checkpoint.no_config", f"{folder} is no checkpoint: it has no config.json", hint)
    try:
        config = msgspec.json.decode(path.read_bytes(), type=dict)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise damaged(path, str(error)) from error
    check_model_type(str(config.get("model_type")), str(path), config.get("architectures") or ())
    return config


def read_generation(folder: Path) -> Json:
    """generation_config.json, empty if there is none."""
    path = folder / "generation_config.json"
    try:
        return msgspec.json.decode(path.read_bytes(), type=dict) if path.is_file() else {}
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise damaged(path, str(error)) from error


def load_config(folder: Path) -> PretrainedConfig:
    """The transformers configuration of a folder."""
    from transformers import AutoConfig

    read_config(folder)
    try:
        return AutoConfig.from_pretrained(folder, local_files_only=True)
    except Exception as error:  # transformers' own validation raises many kinds
        first_line = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise damaged(folder / "config.json", first_line) from error


def open_weights(folder: Path) -> SafetensorsStore:
    """The safetensors files of a folder: those that the index names, else all of them."""
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        return SafetensorsStore(_indexed_files(index))
    files = sorted(folder.glob("*.safetensors"))
    if files:
        return SafetensorsStore(files)
    pickles = sorted(path for pattern in PICKLES for path in folder.glob(pattern) if path.name != "training_args.bin")
    if pickles:
        raise refuse_pickle(pickles[0])
    raise EdgeError("checkpoint.no_weights", f"{folder} has no safetensors file", "copy the weights into the folder")


def _indexed_files(index: Path) -> list[Path]:
    try:
        names = sorted(set(msgspec.json.decode(index.read_bytes(), type=_Index).weight_map.values()))
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise damaged(index, str(error)) from error
    for name in names:
        if Path(name).name != name:
            raise damaged(index, f"it names the file '{name}' outside its folder")
        if not (index.parent / name).is_file():
            message = f"{index.parent / name} is missing, though the index names it"
            raise EdgeError("checkpoint.missing_file", message, "download or copy the whole folder")
    return [index.parent / name for name in names]


class _Index(msgspec.Struct):
    weight_map: dict[str, str]


def copy_tokenizer(source: Path, target: Path) -> None:
    """Copy tokenizer, chat templates, preprocessing and generation configuration as they are."""
    for name in TOKENIZER_FILES:
        if (source / name).is_file():
            (target / name).parent.mkdir(exist_ok=True)
            shutil.copyfile(source / name, target / name)
    if (source / "additional_chat_templates").is_dir():
        shutil.copytree(source / "additional_chat_templates", target / "additional_chat_templates", dirs_exist_ok=True)
