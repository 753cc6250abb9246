"""The quantized KV cache in PyTorch: keys before RoPE and values pass through the codes that a device would store.

Forward hooks stand where a layer makes its keys (after the norm per head, where there is one) and its values. A token
is coded by itself, so that a text at once and one token after another see the same cache.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Self

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle

from edge.core.cache import (
    SINK_TOKENS,
    CacheFormat,
    CacheTables,
    decode_keys,
    decode_values,
    encode_keys,
    encode_values,
)
from edge.models.spec import Attention, DecoderSpec, cache_path

Change = Callable[[torch.Tensor], torch.Tensor]
"""Keys or values [batch, tokens, heads, head_dim] to what takes their place."""


class QuantizedCache(nn.Module):
    """Constants of a layer's cache as buffers; always float32, whatever the model's type."""

    def __init__(self, format: CacheFormat, heads: int, head_dim: int) -> None:
        super().__init__()
        self.format = format
        self.start = 0
        """Position of the first of the tokens that come next."""
        self._tables: CacheTables | None = None
        for part, shape in format.layout(heads, head_dim).items():
            self.register_buffer(part, torch.empty(shape))

    def load(self, tables: CacheTables) -> Self:
        """Take over `tables`."""
        for part in self._buffers:
            setattr(self, part, torch.from_numpy(getattr(tables, part)))
        self._tables = None
        return self

    def tables(self) -> CacheTables:
        """The constants, checked when they are first used."""
        if self._tables is None:
            self._tables = CacheTables(**{name: part.float().cpu().numpy() for name, part in self.named_buffers()})
            self._tables.check("the cache", self.format)
        return self._tables

    def keys(self, keys: torch.Tensor) -> torch.Tensor:
        """Keys as they come back from the cache."""
        return self._through(keys, encode_keys, decode_keys)

    def values(self, values: torch.Tensor) -> torch.Tensor:
        """Values as they come back from the cache."""
        return self._through(values, encode_values, decode_values)

    def _through(self, x: torch.Tensor, encode: Callable[..., Any], decode: Callable[..., Any]) -> torch.Tensor:
        sinks = max(0, min(SINK_TOKENS - self.start, x.shape[1]))
        first, rest = x[:, :sinks].half(), x[:, sinks:].detach().float().cpu()
        coded = encode(self.format, self.tables(), rest.flatten(0, 1).numpy())
        decoded = torch.from_numpy(decode(self.format, self.tables(), coded)).view(rest.shape)
        return torch.cat([first.to(x.dtype), decoded.to(x.device, x.dtype)], 1)

    def _apply(self, fn: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True) -> Self:
        """Move with the model, but stay float32 through `half()` and the like."""
        kept = dict(self._buffers)
        super()._apply(fn, recurse)
        for name, part in kept.items():
            if part is not None and self.get_buffer(name).dtype != part.dtype:
                setattr(self, name, part.to(self.get_buffer(name).device))
        self._tables = None
        return self

    def extra_repr(self) -> str:
        return str(self.format)


def quantize_cache(model: nn.Module, spec: DecoderSpec, formats: Sequence[CacheFormat]) -> list[QuantizedCache]:
    """Give every layer of `model` a `QuantizedCache` and return them; their constants are still to be loaded."""
    caches = []
    for layer, format in zip(spec.layers, formats, strict=True):
        attention = layer.attention
        path, _, leaf = cache_path(attention).rpartition(".")
        module = model.get_submodule(path)
        cache = QuantizedCache(format, attention.num_kv_heads, attention.head_dim)
        setattr(module, leaf, cache)
        module.register_forward_pre_hook(_note_position, with_kwargs=True)
        change_keys_and_values(model, attention, cache.keys, cache.values)
        caches.append(cache)
    return caches


def _note_position(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """Tell a layer's cache how many tokens it holds. A padded batch counts its padding."""
    past = next((x for x in (*args, *kwargs.values()) if hasattr(x, "get_seq_length")), None)
    cache = module.kv_cache
    cache.start = 0 if past is None else int(past.get_seq_length(module.layer_idx))


def change_keys_and_values(
    model: nn.Module, attention: Attention, keys: Change, values: Change
) -> list[RemovableHandle]:
    """Hooks that let `keys` (before RoPE) and `values` change what a layer's attention works with."""
    heads, width = attention.num_kv_heads, attention.head_dim
    rows = heads * width
    fused = len(attention.qkv) == 1

    def change(out: torch.Tensor, from_end: int, function: Change) -> torch.Tensor:
        """`function` on the columns that lie `from_end` blocks of `rows` before the end."""
        end = out.shape[-1] - from_end * rows
        part = function(out[..., end - rows : end].unflatten(-1, (heads, width))).flatten(-2)
        return torch.cat([out[..., : end - rows], part, out[..., end:]], -1)

    def linear(name: str, *parts: tuple[int, Change]) -> RemovableHandle:
        def hook(_: nn.Module, args: Any, out: torch.Tensor) -> torch.Tensor:
            for from_end, function in parts:
                out = change(out, from_end, function)
            return out

        return model.get_submodule(name).register_forward_hook(hook)

    def normed(_: nn.Module, args: tuple[torch.Tensor, ...], out: torch.Tensor) -> torch.Tensor:
        # Families differ in whether the norm sees [.., tokens, heads, ..] or a transposed view of it.
        turned = args[0].shape[1] == heads and (args[0].shape[2] != heads or args[0].stride(1) < args[0].stride(2))
        return keys(out.transpose(1, 2)).transpose(1, 2) if turned else keys(out)

    if attention.k_norm is None:
        if fused:
            return [linear(attention.qkv[0].name, (1, keys), (0, values))]
        return [linear(attention.qkv[1].name, (0, keys)), linear(attention.qkv[2].name, (0, values))]
    norm = model.get_submodule(attention.k_norm.name).register_forward_hook(normed)
    return [norm, linear(attention.qkv[-1].name, (0, values))]
