"""torch.ops.edge.*: the table's operators, equal to the reference, for eager code, torch.compile and torch.export."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
import torch

from edge.core.errors import EdgeError, UsageError
from edge.core.weight import Affine
from edge.kernels import pack, reference, torch_ops  # noqa: F401 (registers the operators)
from edge.kernels.lib import CACHES, EPILOGUES, NORMS
from edge.kernels.operators import operators
from edge.kernels.reference_ops import Attention, attention, fused_linear
from edge.kernels.testing import random_cache_tables

ops = torch.ops.edge


def random(*shape, seed=0) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).standard_normal(shape).astype(np.float32))


def equal(tensor: torch.Tensor, array: np.ndarray) -> bool:
    return np.array_equal(tensor.numpy(), array)


@pytest.fixture
def weight(make_tensor):
    return torch.from_numpy(pack(make_tensor(140, 96, Affine(4, 32))))


class Block(torch.nn.Module):
    """Tokens by id, then one gated product of their norm."""

    def __init__(self, weight: torch.Tensor) -> None:
        super().__init__()
        self.register_buffer("weight", weight)
        self.register_buffer("norm", random(96, seed=2))

    def forward(self, ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        x = ops.embedding(ids, self.weight, columns=96)
        gated = {"norm": NORMS["rms"], "epilogue": EPILOGUES["silu_gated"]}
        return ops.linear(x, self.weight, skip=2 * x, norm_weight=self.norm, rows=140, **gated)


def test_every_operator_of_the_table_is_registered():
    assert {"Linear", "Embedding", "Attention"} <= set(operators())
    for operator in operators().values():
        overloads = getattr(ops, operator.name.lower())
        assert [argument.name for argument in overloads.default._schema.arguments] == [
            row.name for row in (*operator.inputs, *operator.attributes)
        ]
        assert len(overloads.out._schema.returns) == len(overloads.default._schema.returns)


@pytest.mark.parametrize("threads", [1, 3])
def test_linear_equals_the_reference(weight, threads):
    x, skip, bias = random(2, 5, 96), random(2, 5, 96, seed=1), random(140)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        out, absent = ops.linear(x, weight, bias, rows=140)
        gated, summed = ops.linear(x, weight, None, skip, random(96), rows=140, norm=1, epilogue=3, epsilon=1e-6)
    finally:
        torch.set_num_threads(before)
    packed, flat = weight.numpy(), x.numpy().reshape(10, 96)
    assert equal(out, reference.linear(packed, flat, "a8", bias.numpy()).reshape(2, 5, 140))
    assert absent.shape == (0,)
    modes = {"norm": "rms", "norm_weight": random(96).numpy(), "epsilon": 1e-6, "epilogue": "silu_gated"}
    expected = fused_linear(packed, flat, "a8", skip=skip.numpy().reshape(10, 96), **modes)
    assert equal(gated, expected.reshape(2, 5, 70))
    assert torch.equal(summed, x + skip)


def test_strided_inputs_and_no_tokens(weight):
    x = random(96, 7).T
    assert not x.is_contiguous()
    assert torch.equal(ops.linear(x, weight, rows=140)[0], ops.linear(x.contiguous(), weight, rows=140)[0])
    assert ops.linear(x[:0], weight, rows=140)[0].shape == (0, 140)


@pytest.fixture(params=["f16", "table"])
def attend(request):
    """Attention over two turns, and what it needs."""
    bits = {"key_bits": 4, "value_bits": 8, "outliers": 1} if request.param == "table" else {}
    settings = Attention(4, 2, 24, 0.2, request.param, 24, 5, 30.0, **bits)
    angles = np.outer(np.arange(48), 0.5 ** np.arange(12)).astype(np.float32)
    tables = {"cos": np.cos(angles), "sin": np.sin(angles), "q_norm": random(24).numpy(), "k_norm": random(24).numpy()}
    tables |= random_cache_tables(settings) if bits else {}
    attributes = {"heads": 4, "kv_heads": 2, "head_dim": 24, "scale": 0.2, "window": 5, "softcap": 30.0}
    attributes |= {"cache": CACHES[request.param], **bits}
    return settings, tables, attributes


def test_attention_updates_its_cache_in_place(attend):
    settings, tables, attributes = attend
    expected_keys, expected_values = (settings.empty_cache(48, part) for part in ("keys", "values"))
    keys, values = torch.from_numpy(expected_keys[None].copy()), torch.from_numpy(expected_values[None].copy())
    constants = [torch.from_numpy(table) for table in tables.values()]
    position = 0
    for tokens in (20, 1):
        qkv = random(1, tokens, 8 * 24, seed=tokens)
        total = torch.tensor([position + tokens], dtype=torch.int32)
        out = ops.attention(qkv, total, keys, values, *constants, **attributes)
        expected = attention(settings, qkv[0].numpy(), expected_keys, expected_values, position, **tables)
        assert equal(out[0], expected)
        assert equal(keys[0], expected_keys)
        assert equal(values[0], expected_values)
        position += tokens


def test_opcheck(weight, attend):
    x = random(2, 3, 96)
    for more in ({}, {"skip": x + 1, "norm_weight": random(96), "norm": 1, "epilogue": 3}):
        torch.library.opcheck(ops.linear.default, (x, weight), {"rows": 140, **more})
    torch.library.opcheck(ops.embedding.default, (torch.tensor([[3, 139]]), weight), {"columns": 96})
    settings, tables, attributes = attend
    caches = [torch.from_numpy(settings.empty_cache(48, part)[None]) for part in ("keys", "values")]
    total, constants = torch.tensor(3, dtype=torch.int32), [torch.from_numpy(table) for table in tables.values()]
    torch.library.opcheck(ops.attention.default, (random(1, 3, 8 * 24), total, *caches, *constants), attributes)


def test_export_and_compile_keep_the_bits(weight):
    block, ids = Block(weight), torch.tensor([[5, 0, 139]])
    length = torch.export.Dim("length", max=64)
    exported = torch.export.export(block, (ids,), dynamic_shapes=({1: length},))
    used = {str(node.target) for node in exported.graph.nodes}
    assert {"edge.linear.default", "edge.embedding.default"} <= used
    compiled = torch.compile(block, backend="aot_eager", dynamic=True)
    for run in (exported.module(), compiled):
        for given in (ids, ids.repeat(1, 4)):
            for found, expected in zip(run(given), block(given), strict=True):
                assert torch.equal(found, expected)


def test_the_overload_out_writes_where_it_is_told(weight):
    x, out, total = random(3, 96), torch.empty(0), torch.empty(0)
    returned = ops.linear.out(x, weight, skip=x, rows=140, out=out, sum=total)
    assert returned[0] is out
    assert torch.equal(out, ops.linear(x, weight, skip=x, rows=140)[0])
    assert torch.equal(total, 2 * x)


def test_damage_is_noticed_whenever_a_weight_is_new_or_has_changed(weight):
    x = random(1, 96)
    ops.linear(x, weight, rows=140)
    weight[200] ^= 1
    with pytest.raises(EdgeError, match="checksum"):
        ops.linear(x, weight, rows=140)
    weight[200] ^= 1
    ops.linear(x, weight, rows=140)
    with torch.inference_mode(), pytest.raises(EdgeError, match="checksum"):
        damaged = weight.clone()
        damaged[200] ^= 1
        ops.linear(x, damaged, rows=140)


def test_what_does_not_fit_is_refused_with_the_shapes(weight):
    with pytest.raises(EdgeError, match=r"edge::Linear: .*x float32 \[1, 95\], weight uint8"):
        ops.linear(random(1, 95), weight, rows=140)
    with pytest.raises(EdgeError, match=r"edge::Linear can't take torch.float64"):
        ops.linear(random(1, 96).double(), weight, rows=140)
    with pytest.raises(EdgeError, match=r"edge::Embedding"):
        ops.embedding(torch.tensor([140]), weight, columns=96)
    with pytest.raises(RuntimeError, match="rows"):
        ops.linear(random(1, 96), weight)
    with pytest.raises(UsageError, match="has no 'row'"):
        operators()["Linear"](x=random(1, 96).numpy(), weight=weight.numpy(), row=140)
    with pytest.raises(UsageError, match="needs 'rows'"):
        operators()["Linear"](x=random(1, 96).numpy(), weight=weight.numpy())


def test_the_kernels_alone_need_no_torch():
    code = "import sys, edge.kernels.operators; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
