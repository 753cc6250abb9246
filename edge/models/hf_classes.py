"""The classes that transformers' quantizer registry asks for."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import msgspec
import torch
from torch import nn
from transformers.quantizers.auto import AUTO_QUANTIZER_MAPPING, register_quantization_config, register_quantizer
from transformers.quantizers.base import HfQuantizer
from transformers.utils.quantization_config import QuantizationConfigMixin

from edge.core.cache import CacheFormat
from edge.core.files import SCHEMA
from edge.core.parts import ANY
from edge.core.weight import Compressed
from edge.models.cache_modules import quantize_cache
from edge.models.compressed_modules import CompressedWeight
from edge.models.describe import describe
from edge.models.safetensors_store import SafetensorsStore
from edge.models.spec import DecoderSpec
from edge.models.torch_model import empty_model, hollow, tie

METHOD = "edge"


class EdgeConfig(QuantizationConfigMixin):
    """`quantization_config` of a compressed folder: the encoding of every compressed tensor, by name."""

    def __init__(
        self,
        encodings: dict[str, Any],
        activations: str = "a8",
        schema: int = SCHEMA,
        kv_cache: list[dict[str, Any]] | None = None,
        **_: Any,
    ) -> None:
        self.quant_method = METHOD
        self.schema = schema
        self.activations = activations
        self.encodings = encodings
        if kv_cache is not None:
            self.kv_cache = kv_cache


class EdgeQuantizer(HfQuantizer):
    """Puts compressed modules in place before transformers loads the weights into them."""

    requires_calibration = True

    def _process_model_before_weight_loading(
        self, model: nn.Module, checkpoint_files: list[str] | None = None, **kwargs: Any
    ) -> None:
        stored = SafetensorsStore([Path(path) for path in checkpoint_files or []]).shapes()
        encodings = msgspec.convert(self.quantization_config.encodings, dict[str, Compressed])
        spec, activations = describe(model.config), self.quantization_config.activations
        parents = set()
        for name, encoding in encodings.items():
            path = name.removesuffix(".weight")
            module = model.get_submodule(path)
            rows, columns = module.weight.shape[::-1] if name in spec.transposed else module.weight.shape
            with torch.device("meta"):
                compressed = hollow(module, (rows, columns), encoding, activations)
                _resize(compressed, path, stored)
            model.set_submodule(path, compressed)
            # Initialisers of some parents (GPT-2) reach for their children's `weight`, which is no more.
            parents.add(parent := path.rpartition(".")[0])
            model.get_submodule(parent)._is_hf_initialized = True
        self._parents = parents
        if formats := getattr(self.quantization_config, "kv_cache", None):
            with torch.device("meta"):
                quantize_cache(model, cast(DecoderSpec, spec), msgspec.convert(formats, list[CacheFormat]))
        tied = {copy: name for copy, name in spec.tied_copies.items() if name in encodings}
        if tied:
            tie(model, spec, activations)
            kept = {copy: name for copy, name in model.all_tied_weights_keys.items() if copy not in tied}
            model._tied_weights_keys = model.all_tied_weights_keys = kept

    def _process_model_after_weight_loading(self, model: nn.Module, **kwargs: Any) -> nn.Module:
        """Buffers that no file holds, such as BERT's positions: computed in a model that has its own modules."""
        whole = empty_model(model.config, describe(model.config))
        for path in self._parents:
            buffers = whole.get_submodule(path)._buffers
            model.get_submodule(path)._buffers.update(buffers)
        return model

    def is_serializable(self) -> bool:
        return True

    @property
    def is_trainable(self) -> bool:
        return False


def _resize(module: CompressedWeight, path: str, stored: dict[str, tuple[int, ...]]) -> None:
    """Give parts whose size the data decide the size that they have in the file."""
    for part, (shape, _, _) in module.layout.items():
        if ANY in shape and f"{path}.{part}" in stored:
            module.resize(part, stored[f"{path}.{part}"])


def register() -> None:
    """Tell transformers about edge's folders; a second call does nothing."""
    if METHOD not in AUTO_QUANTIZER_MAPPING:
        register_quantization_config(METHOD)(EdgeConfig)
        register_quantizer(METHOD)(EdgeQuantizer)
