"""Programs exported from torch run in ExecuTorch with the table's operators, to the same bits."""

from __future__ import annotations

import shutil

import numpy as np
import pytest
import torch

from edge.core.errors import EdgeError
from edge.core.weight import Affine
from edge.kernels import executorch_ops, pack, torch_ops  # noqa: F401 (registers the operators)
from edge.kernels.lib import CACHES, EPILOGUES, NORMS, attention, embedding, linear
from edge.kernels.reference_ops import Attention
from edge.kernels.testing import random_cache_tables

ops = torch.ops.edge


@pytest.fixture(scope="module")
def executorch():
    """ExecuTorch's Python runtime with our operators loaded."""
    pytest.importorskip("executorch.exir", reason=f"ExecuTorch is not installed: {executorch_ops.INSTALL}")
    executorch_ops.load()
    from executorch.extension.pybindings import _C

    return _C


@pytest.fixture
def weight(make_tensor):
    return torch.from_numpy(pack(make_tensor(140, 96, Affine(4, 32))))


def program(module: torch.nn.Module, *arguments: torch.Tensor, dynamic=None) -> bytes:
    from executorch.exir import EdgeCompileConfig, to_edge

    exported = torch.export.export(module, arguments, dynamic_shapes=dynamic)
    return to_edge(exported, compile_config=EdgeCompileConfig(_check_ir_validity=False)).to_executorch().buffer


def run(executorch, buffer: bytes, *arguments: torch.Tensor) -> list[torch.Tensor]:
    return executorch._load_for_executorch_from_buffer(buffer).forward(arguments)


class Block(torch.nn.Module):
    def __init__(self, weight: torch.Tensor) -> None:
        super().__init__()
        self.register_buffer("weight", weight)
        self.register_buffer("norm", torch.rand(96))

    def forward(self, ids: torch.Tensor, skip: torch.Tensor) -> tuple[torch.Tensor, ...]:
        x = ops.embedding(ids, self.weight, columns=96)
        modes = {"norm": NORMS["rms"], "epilogue": EPILOGUES["silu_gated"], "epsilon": 1e-6}
        gated, summed = ops.linear(x, self.weight, skip=skip, norm_weight=self.norm, rows=140, **modes)
        return x, ops.linear(x, self.weight, rows=140, activations=1)[0], gated, summed


def test_a_program_gives_the_bits_of_the_library(executorch, weight):
    block = Block(weight)
    length = torch.export.Dim("length", max=32)
    buffer = program(block, torch.zeros(1, 4, dtype=torch.int64), torch.zeros(1, 4, 96), dynamic=({1: length},) * 2)
    for ids in ([[0, 139, 7, 7]], [[3]], [[*range(30)]]):
        skip = torch.rand(1, len(ids[0]), 96)
        x, product, gated, summed = run(executorch, buffer, torch.tensor(ids), skip)
        packed = weight.numpy()
        expected = embedding(packed, np.array(ids[0]))
        assert np.array_equal(x[0].numpy(), expected)
        assert np.array_equal(product[0].numpy(), linear(packed, expected, activations="f32"))
        modes = {"norm": "rms", "norm_weight": block.norm.numpy(), "epilogue": "silu_gated", "epsilon": 1e-6}
        assert np.array_equal(gated[0].numpy(), linear(packed, expected, skip=skip[0].numpy(), **modes))
        assert torch.equal(summed, x + skip)


@pytest.mark.parametrize("bits", [{}, {"key_bits": 3, "value_bits": 2, "outliers": 1}], ids=["f32", "table"])
def test_attention_keeps_its_cache_in_the_program(executorch, bits):
    settings = Attention(4, 2, 24, 0.2, "table" if bits else "f32", **bits)
    tables = random_cache_tables(settings) if bits else {}

    class Attend(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            for name in ("keys", "values"):
                self.register_buffer(name, torch.from_numpy(settings.empty_cache(48, name)).unsqueeze(0))
            for name, table in tables.items():
                self.register_buffer(name, torch.from_numpy(table))

        def forward(self, qkv: torch.Tensor, total: torch.Tensor) -> torch.Tensor:
            sizes = {"heads": 4, "kv_heads": 2, "head_dim": 24, "scale": 0.2, "cache": CACHES[settings.cache], **bits}
            return ops.attention(qkv, total, **dict(self.named_buffers()), **sizes)

    buffer = program(Attend(), torch.zeros(1, 3, 8 * 24), torch.tensor([3], dtype=torch.int32))
    loaded = executorch._load_for_executorch_from_buffer(buffer)
    keys, values = settings.empty_cache(48), settings.empty_cache(48, "values")
    for turn in range(9):
        qkv = torch.rand(1, 3, 8 * 24)
        found = loaded.forward((qkv, torch.tensor([3 * turn + 3], dtype=torch.int32)))[0]
        assert np.array_equal(found[0].numpy(), attention(settings, qkv[0].numpy(), keys, values, 3 * turn, **tables))


def test_damage_and_wrong_ids_fail_the_call(executorch, make_tensor):
    class Lookup(torch.nn.Module):
        def forward(self, ids: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
            return ops.embedding(ids, weight, columns=96)

    ids = torch.tensor([[139]])
    weight = torch.from_numpy(pack(make_tensor(140, 96, Affine(4, 32), seed=9)))  # one that no other test has checked
    buffer = program(Lookup(), ids, weight)
    executorch_ops.error()
    weight[300] ^= 1
    with pytest.raises(RuntimeError):
        run(executorch, buffer, ids, weight)
    assert executorch_ops.error().startswith("edge::Embedding: the packed weights are damaged")
    assert executorch_ops.error() == ""
    weight[300] ^= 1
    assert run(executorch, buffer, ids, weight)[0].shape == (1, 1, 96)
    with pytest.raises(RuntimeError):
        run(executorch, buffer, ids + 1, weight)


def test_without_executorch_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setattr(executorch_ops, "version", missing)
    with pytest.raises(EdgeError, match="pip install") as error:
        executorch_ops.library()
    assert error.value.code == "kernels.no_executorch"


def missing(name: str) -> str:
    raise executorch_ops.PackageNotFoundError(name)


def test_without_a_compiler_the_error_says_so(executorch, monkeypatch, tmp_path):
    monkeypatch.setenv("EDGE_CACHE", str(tmp_path))
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(EdgeError, match="C\\+\\+ compiler"):
        executorch_ops.library()
