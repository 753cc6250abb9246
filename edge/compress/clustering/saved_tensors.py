"""What autograd keeps for the backward pass: each storage once, in CPU memory, and a share of it on each rank.

Cho and others: "eDKM: An Efficient and Accurate Train-time Weight Clustering for Large Language Models", 2023,
arXiv:2309.00964, sections 2.1 (marshaling) and 2.2 (sharding). Here a storage's identity finds what the paper finds by
a walk through the graph, and copies made by `contiguous` and the like are replayed from a record of them.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterable
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode

from edge.core.errors import EdgeError

SHARD_BYTES = 1 << 16  # below, a message between ranks costs more than the memory is worth


class SavedTensors:
    """Context: what is saved inside for a backward pass is kept as the options say, and counted.

    offload: copy it to CPU memory; of use on a GPU, though it copies from CPU memory as well. marshal: copy a storage
    once, however many views of it are saved, and replay views and `contiguous` copies of it; what isn't copied is
    shared in any case, as torch does. shard: each rank of `group` keeps its share of tensors of `shard_bytes` and more,
    and all ranks gather them in the backward pass: only for what is the same on all ranks, like weights and what is
    computed of them alone, and with the same backward pass on all of them. One process, or a torch without
    distributed: nothing is sharded.
    resident: tensors that live on anyway, such as parameters: neither copied nor counted.

    saved_bytes, peak_bytes: kept now and at most, on this rank. The backward pass may run after the context's end.
    """

    def __init__(
        self,
        *,
        marshal: bool = True,
        offload: bool = False,
        shard: bool = False,
        group: Any = None,
        shard_bytes: int = SHARD_BYTES,
        resident: Iterable[torch.Tensor] = (),
    ) -> None:
        ranked = shard and dist.is_available() and dist.is_initialized() and dist.get_world_size(group) > 1
        self.saved_bytes = self.peak_bytes = 0
        self._offload, self._group = offload, group
        self._shard_bytes = shard_bytes if ranked else None
        self._copies = offload or ranked
        self._marshal = marshal or not self._copies
        self._resident = {StorageWeakRef(tensor.untyped_storage()) for tensor in resident}
        self._kept: weakref.WeakValueDictionary[Any, _Kept] = weakref.WeakValueDictionary()
        self._clones = _Clones()
        self._entered = ExitStack()

    def __enter__(self) -> SavedTensors:
        self._entered.enter_context(torch.autograd.graph.saved_tensors_hooks(self._pack, _unpack))
        if self._marshal and self._copies:
            self._entered.enter_context(self._clones)
        return self

    def __exit__(self, *error: Any) -> None:
        self._entered.close()
        self._clones.records.clear()

    def _pack(self, tensor: torch.Tensor) -> torch.Tensor | _Saved:
        tensor = tensor.detach()
        if type(tensor) is not torch.Tensor or tensor.layout != torch.strided or tensor.is_complex():
            return tensor  # no plain bytes
        reference = StorageWeakRef(tensor.untyped_storage())
        if reference in self._resident:
            return tensor
        if not self._marshal:
            return _Saved(self._keep(_bytes_of(tensor), tensor), _View.dense(tensor))
        if (replayed := self._replayed(reference, tensor)) is not None:
            return replayed
        view, key = _View.of(tensor), (reference, tensor._version, None)
        if self._offload and 2 * tensor.nbytes < tensor.untyped_storage().nbytes():
            # a small part of a large storage, which may be needed by nobody else
            view, key = _View.dense(tensor), (reference, tensor._version, view)
        kept = self._kept.get(key)
        if kept is None:
            kept = self._keep(_bytes_of(tensor) if key[2] else _storage_bytes(tensor), tensor)
            self._kept[key] = kept
        return _Saved(kept, view)

    def _replayed(self, reference: StorageWeakRef, tensor: torch.Tensor) -> _Saved | None:
        """A view of a copy whose source is kept already: the source, and how to make the copy."""
        record = self._clones.records.get(reference)
        if record is None or record.version != tensor._version:
            return None
        kept = self._kept.get((record.source, record.source_version, None))
        return None if kept is None else _Saved(kept, record.source_view, record.stride, _View.of(tensor))

    def _keep(self, data: torch.Tensor, tensor: torch.Tensor) -> _Kept:
        kept: _Kept
        if self._shard_bytes is not None and data.numel() >= self._shard_bytes:
            kept = _Shard(data, self._group)
        elif self._offload:
            kept = _Offloaded(data)
        else:
            kept = _InPlace(data, tensor)
        count = kept.data.numel()
        self._count(count)
        weakref.finalize(kept, self._count, -count).atexit = False
        return kept

    def _count(self, count: int) -> None:
        self.saved_bytes += count
        self.peak_bytes = max(self.peak_bytes, self.saved_bytes)


class _Kept:
    """uint8 [bytes] of a storage or of one tensor; `load` brings them back to where they were."""

    data: torch.Tensor

    def load(self) -> torch.Tensor:
        raise NotImplementedError


class _InPlace(_Kept):
    def __init__(self, data: torch.Tensor, tensor: torch.Tensor) -> None:
        self.data, self.tensor, self.version = data, tensor, tensor._version

    def load(self) -> torch.Tensor:
        if self.tensor._version != self.version:
            message = "a tensor that the backward pass needs was modified in place"
            raise EdgeError("saved_tensors.modified", message, "modify a copy of it")
        return self.data


class _Offloaded(_Kept):
    def __init__(self, data: torch.Tensor) -> None:
        self.data, self.device = data.to("cpu", copy=True), data.device

    def load(self) -> torch.Tensor:
        return self.data.to(self.device)


class _Shard(_Kept):
    """This rank's share, in CPU memory, which gloo gathers from."""

    def __init__(self, data: torch.Tensor, group: Any) -> None:
        self.device, self.length, self.group = data.device, data.numel(), group
        world, rank = dist.get_world_size(group), dist.get_rank(group)
        self.share = -(-self.length // world)
        self.data = data[rank * self.share : (rank + 1) * self.share].to("cpu", copy=True)

    def load(self) -> torch.Tensor:
        own = torch.nn.functional.pad(self.data, (0, self.share - self.data.numel()))  # the last share may be short
        shares = [torch.empty_like(own) for _ in range(dist.get_world_size(self.group))]
        dist.all_gather(shares, own, group=self.group)
        return torch.cat(shares)[: self.length].to(self.device)


@dataclass(frozen=True)
class _View:
    dtype: torch.dtype
    size: torch.Size
    stride: tuple[int, ...]
    offset: int

    @classmethod
    def of(cls, tensor: torch.Tensor) -> _View:
        return cls(tensor.dtype, tensor.shape, tensor.stride(), tensor.storage_offset())

    @classmethod
    def dense(cls, tensor: torch.Tensor) -> _View:
        """Of the tensor's elements alone, in order."""
        return cls.of(torch.empty(tensor.shape, dtype=tensor.dtype, device="meta"))

    def on(self, data: torch.Tensor) -> torch.Tensor:
        whole = data.numel() // self.dtype.itemsize * self.dtype.itemsize
        return data[:whole].view(self.dtype).as_strided(self.size, self.stride, self.offset)


@dataclass(frozen=True)
class _Saved:
    """view of what is kept; `copied`: a view of a copy of that view with strides `stride`."""

    kept: _Kept
    view: _View
    stride: tuple[int, ...] = ()
    copied: _View | None = None


def _unpack(saved: torch.Tensor | _Saved) -> torch.Tensor:
    if isinstance(saved, torch.Tensor):
        return saved
    tensor = saved.view.on(saved.kept.load())
    if saved.copied is None:
        return tensor
    copy = torch.empty_strided(tensor.shape, saved.stride, dtype=tensor.dtype, device=tensor.device).copy_(tensor)
    return saved.copied.on(_storage_bytes(copy))


@dataclass(frozen=True)
class _Clone:
    source: StorageWeakRef
    source_version: int
    source_view: _View
    stride: tuple[int, ...]
    version: int


class _Clones(TorchDispatchMode):
    """Records by storage which copies of which tensors were made: `contiguous`, `reshape` and `clone` are clones."""

    def __init__(self) -> None:
        super().__init__()
        self.records: dict[StorageWeakRef, _Clone] = {}

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # nothing is compiled here, and the import of torch's compiler would take a second

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if func is torch.ops.aten.clone.default and not (args[0].is_inference() or result.is_inference()):
            source = args[0]
            reference = StorageWeakRef(source.untyped_storage())
            self.records[StorageWeakRef(result.untyped_storage())] = _Clone(
                reference, source._version, _View.of(source), result.stride(), result._version
            )
        return result


def _storage_bytes(tensor: torch.Tensor) -> torch.Tensor:
    """The tensor's whole storage as uint8 [bytes], without a copy."""
    return torch.empty(0, dtype=torch.uint8, device=tensor.device).set_(tensor.untyped_storage())


def _bytes_of(tensor: torch.Tensor) -> torch.Tensor:
    """The tensor's elements, in order, as uint8 [bytes]."""
    return tensor.contiguous().reshape(-1).view(torch.uint8)
