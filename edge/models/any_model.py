"""Any transformers model that no adapter describes: encoders, vision models, encoder-decoders.

Its modules say what an adapter would: which matrices there are, which tensors are tied, where the layers lie.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from edge.core.errors import EdgeError
from edge.core.target import Task
from edge.models.logs import quiet
from edge.models.spec import MatrixKind, ModuleSpec

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel

DECODER_ENDINGS = ("ForCausalLM", "LMHeadModel")
INPUTS: dict[Task, tuple[str, ...]] = {"encoder": ("input_ids", "attention_mask"), "vision": ("pixel_values",)}


def is_any_model(model_type: str, classes: Sequence[str]) -> bool:
    """Whether transformers knows the model, and it isn't a decoder: those go through adapters alone."""
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES

    decoder = any(name.endswith(DECODER_ENDINGS) for name in classes)
    return model_type in CONFIG_MAPPING_NAMES and len(classes) > 0 and not decoder


def describe_model(config: PretrainedConfig) -> ModuleSpec:
    """Walk the modules of the class that `config.architectures` names. Raises `EdgeError` for one that isn't served."""
    cls = model_class(config)
    with torch.device("meta"):
        model = cls._from_config(config, dtype=torch.float32)
    task = _task(config, cls)
    tied = dict(model.all_tied_weights_keys)
    kinds = {name: kind for name, kind in _matrices(model, task) if name not in tied}
    state = {name: tensor for name, tensor in model.state_dict().items() if tensor.is_floating_point()}
    return ModuleSpec(
        model_type=config.model_type,
        task=task,
        class_name=cls.__name__,
        base_path=model.base_model_prefix,
        inputs=INPUTS.get(task, (cls.main_input_name, "attention_mask")),
        shapes={name: tuple(tensor.shape) for name, tensor in state.items() if name not in tied},
        kinds=kinds,
        layers=tuple(_layers(model)),
        tied_copies=tied,
        transposed=frozenset(name for name in kinds if _is_conv1d(model.get_submodule(name.rpartition(".")[0]))),
        context_length=_context_length(config) if task != "vision" else 0,
        vocab_size=getattr(config, "vocab_size", 0) if task != "vision" else 0,
    )


def model_class(config: PretrainedConfig) -> type[PreTrainedModel]:
    """The class that the checkpoint says it is of. An encoder-decoder always comes with its head."""
    import transformers

    name = (config.architectures or [""])[0]
    if getattr(config, "is_encoder_decoder", False) and not name.endswith(("ForConditionalGeneration", "MTModel")):
        from transformers.models.auto.modeling_auto import MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES as names

        name = names.get(config.model_type, name)
    found = getattr(transformers, name, None)
    if not isinstance(found, type) or not issubclass(found, transformers.PreTrainedModel):
        message = f"config.json names the class '{name}', which transformers {transformers.__version__} doesn't have"
        raise EdgeError("checkpoint.architecture", message, "a model with code of its own is not supported")
    return found


def read_model(config: PretrainedConfig, folder: Path) -> Mapping[str, torch.Tensor]:
    """Tensors of an original checkpoint under today's names: transformers renames what older versions wrote.

    Raises `EdgeError` for tensors that are missing, misshapen or of no use.
    """
    cls = model_class(config)
    with quiet():
        try:
            model, found = cls.from_pretrained(
                folder, local_files_only=True, use_safetensors=True, dtype="auto", output_loading_info=True
            )
        except Exception as error:  # transformers, safetensors and torch raise kinds of their own
            hint = "the checkpoint is incomplete, or its config.json belongs to another model"
            raise EdgeError("checkpoint.shape", f"{folder} can't be loaded: {_line(error)}", hint) from error
    hint = "the checkpoint is incomplete, or its config.json belongs to another model"
    for name in sorted(found["missing_keys"]):
        raise EdgeError("checkpoint.missing_tensor", f"{folder}: the tensor '{name}' is missing", hint)
    for name in sorted(found["unexpected_keys"]):
        message = f"the tensor '{name}' has no place in a {config.model_type} model"
        raise EdgeError("checkpoint.foreign_tensor", f"{folder}: {message}", hint)
    return model.state_dict()


class StateStore:
    """Tensors that are in memory already, as a checkpoint's store."""

    def __init__(self, files: list[Path], tensors: Mapping[str, torch.Tensor]) -> None:
        self.files = files
        self._tensors = {name: tensor for name, tensor in tensors.items() if tensor.is_floating_point()}

    def shapes(self) -> dict[str, tuple[int, ...]]:
        return {name: tuple(tensor.shape) for name, tensor in self._tensors.items()}

    def read(self, name: str) -> torch.Tensor:
        return self._tensors[name].detach()

    def stored_bytes(self, name: str) -> int:
        return self._tensors[name].nbytes

    def release(self) -> None:
        """Nothing to give back."""


def _task(config: PretrainedConfig, cls: type[PreTrainedModel]) -> Task:
    if getattr(config, "is_encoder_decoder", False):
        return "encoder_decoder"
    if cls.main_input_name == "pixel_values":
        return "vision"
    if cls.main_input_name == "input_ids":
        return "encoder"
    message = f"a model that takes '{cls.main_input_name}' can't be run yet"
    raise EdgeError("checkpoint.architecture", message, "text, images and encoder-decoders for speech are supported")


def _matrices(model: PreTrainedModel, task: Task) -> Iterator[tuple[str, MatrixKind]]:
    """Matrix products, the table of the vocabulary and the head."""
    words, head = model.get_input_embeddings() if task != "vision" else None, model.get_output_embeddings()
    inside = tuple(f"{n}." for n, m in model.named_modules() if isinstance(m, nn.MultiheadAttention))
    for name, module in model.named_modules():
        if name.startswith(inside) and inside:
            continue  # reads its weights by itself
        if isinstance(module, nn.Linear) or _is_conv1d(module):
            yield f"{name}.weight", "head" if module is head else "linear"
        elif isinstance(module, nn.Embedding) and (module is words or module.num_embeddings == _words(words)):
            yield f"{name}.weight", "embedding"


def _words(embedding: nn.Module | None) -> int:
    return embedding.num_embeddings if isinstance(embedding, nn.Embedding) else -1


def _is_conv1d(module: nn.Module) -> bool:
    from transformers.pytorch_utils import Conv1D

    return isinstance(module, Conv1D)


def _layers(model: nn.Module) -> Iterator[str]:
    """Entries of the outermost lists of modules."""
    lists: list[str] = []
    for name, module in model.named_modules():
        if isinstance(module, nn.ModuleList) and not any(name.startswith(f"{outer}.") for outer in lists):
            lists.append(name)
            yield from (f"{name}.{child}" for child, _ in module.named_children())


def _context_length(config: Any) -> int:
    names = ("max_target_positions", "max_position_embeddings", "n_positions")
    found: int = next((getattr(config, name) for name in names if isinstance(getattr(config, name, None), int)), 512)
    # RoBERTa's kind counts positions from its padding token on.
    return found - 2 if config.model_type in ("roberta", "xlm-roberta", "camembert") else found


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__
