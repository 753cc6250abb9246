"""What is saved for a backward pass: once, elsewhere, in shares, and the gradients are the same."""

import subprocess
import sys
from datetime import timedelta

import pytest
import torch
import torch.distributed as dist

from edge.compress.clustering.saved_tensors import SavedTensors
from edge.compress.clustering.soft import soft_assign
from edge.compress.clustering.uniquify import soft_assign_unique
from edge.core.errors import EdgeError

KILO = 1000 * 4  # bytes of a kilo of float32
WAIT = timedelta(seconds=60)

OTHER_RANK = """
import sys, torch, torch.distributed as dist
from edge.compress.clustering.tests.test_saved_tensors import WAIT, clustering_gradients
dist.init_process_group("gloo", init_method=sys.argv[1], rank=1, world_size=2, timeout=WAIT)
clustering_gradients(shard=True, shard_bytes=100)
dist.destroy_process_group()
"""


def leaf(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).requires_grad_()


def gradients(function, *leaves, **options):
    """The leaves' gradients, and what was kept until their backward pass."""
    with SavedTensors(**options) as saved:
        loss = function(*leaves)
    bytes_kept = saved.saved_bytes
    found = torch.autograd.grad(loss, leaves)
    del loss
    assert saved.saved_bytes == 0  # all of it went with the graph
    assert saved.peak_bytes >= bytes_kept
    return found, bytes_kept


def views(x):
    """Saves x's values as they are, transposed, expanded, as a slice, and copied."""
    y = x.exp()  # a storage of its own
    products = [y * 2 * y, y.t() * y.t().clone(), y.t().contiguous() * y.t(), y[:, :20] * y[:, 5:25]]
    return sum(p.sum() for p in products) + (y.reshape(-1)[:, None].expand(-1, 2) @ torch.ones(2, 1)).sum()


@pytest.mark.parametrize("marshal", [False, True])
@pytest.mark.parametrize("offload", [False, True])
def test_the_gradients_are_the_same(marshal, offload):
    x = leaf(40, 25)
    (plain,) = torch.autograd.grad(views(x), x)
    (kept,), _ = gradients(views, x, marshal=marshal, offload=offload)
    assert torch.equal(plain, kept)


def test_marshaling_keeps_a_storage_once():
    def transposes(x):
        y = x.exp()
        return (y * y.t().contiguous() + y.t() * y.view(-1).view(y.shape)).sum()

    x = leaf(20, 20)
    size = 20 * 20 * 4
    assert gradients(transposes, x, offload=True)[1] == size
    assert gradients(transposes, x, offload=True, marshal=False)[1] == 5 * size  # exp's result, and four factors
    assert gradients(transposes, x)[1] == 2 * size  # torch itself: the storage, and its copy


def test_a_slice_of_much_is_kept_alone():
    x = leaf(1000, 100)
    kept = gradients(lambda x: (x.mul(2)[:, :1] ** 2).sum(), x, offload=True)[1]
    assert kept == KILO


def test_a_storage_that_was_written_to_is_another():
    def rewrites(x):
        y = x * 1
        first = (y.detach() * x).sum()  # saves y
        with torch.no_grad():
            y.detach().mul_(3)
        return first + (y.detach() * x).sum()

    x = leaf(1000)
    (gradient,), kept = gradients(rewrites, x, offload=True, resident=[x])
    assert torch.allclose(gradient, 4 * x)
    assert kept == 2 * KILO


def test_in_place_changes_of_what_was_not_copied_are_refused():
    x = leaf(1000)
    y = x.detach().clone()
    with SavedTensors():
        loss = (x * y).sum()
    y.add_(1)
    with pytest.raises(EdgeError, match="modified in place"):
        loss.backward()


def test_residents_are_neither_copied_nor_counted():
    x = leaf(1000)
    assert gradients(lambda x: (x * x.view(10, 100).view(-1)).sum(), x, offload=True, resident=[x])[1] == 0


def clustering_gradients(**options):
    """Of DKM and of eDKM for one matrix that is the same everywhere, and what was kept for them."""
    weight = (leaf(64, 48).detach() / 3).bfloat16().requires_grad_()
    centroids = torch.linspace(-1, 1, 8).reshape(1, 8, 1)

    def clustered(assign):
        return lambda w: (assign(w.view(1, -1, 1), centroids, 0.01)[0].float().view(w.shape) ** 2).sum()

    return [gradients(clustered(assign), weight, **options) for assign in (soft_assign, soft_assign_unique)]


def test_two_ranks_keep_half_each_and_have_the_gradients_of_one(tmp_path):
    alone = clustering_gradients(offload=True)
    meeting = f"file://{tmp_path}/meeting"
    other = subprocess.Popen([sys.executable, "-c", OTHER_RANK, meeting])
    try:
        dist.init_process_group("gloo", init_method=meeting, rank=0, world_size=2, timeout=WAIT)
        shared = clustering_gradients(shard=True, shard_bytes=100)
        dist.destroy_process_group()
        assert other.wait(30) == 0
    finally:
        other.kill()
    for (expected, whole), (got, half) in zip(alone, shared, strict=True):
        assert torch.equal(expected[0], got[0])
        assert 0.5 <= half / whole < 0.51  # small ones are whole


@pytest.mark.parametrize("available", [False, True])
def test_without_other_ranks_sharding_does_nothing(monkeypatch, available):
    monkeypatch.setattr(dist, "is_available", lambda: available)
    bytes_kept = [[kept for _, kept in clustering_gradients(shard=shard)] for shard in (False, True)]
    assert bytes_kept[0] == bytes_kept[1]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="offloading from a GPU needs a CUDA device")
def test_offload_from_a_gpu():
    weight = leaf(4096, 1024).detach().cuda().bfloat16().requires_grad_()
    centroids = torch.linspace(-1, 1, 8, device="cuda").reshape(1, 8, 1)

    def clustered(w):
        return (soft_assign(w.view(1, -1, 1), centroids, 0.1)[0] ** 2).sum()

    (plain,) = torch.autograd.grad(clustered(weight), weight)
    (kept,), _ = gradients(clustered, weight, offload=True)
    assert torch.equal(plain, kept)
    held = []
    for offload in (False, True):
        before = torch.cuda.memory_allocated()
        with SavedTensors(offload=offload, resident=[weight]) as saved:
            loss = clustered(weight)
        held.append(torch.cuda.memory_allocated() - before)
        assert saved.saved_bytes > 100 * 2**20
        del loss
    assert held[1] < 0.2 * held[0]


def clustered_on(device, assign, points, dtype, **options):
    centroids = torch.linspace(-2, 2, 8, dtype=dtype).reshape(1, 8, 1).repeat(2, 1, 1).to(device)
    x = points.to(device, dtype).requires_grad_()
    clustered, moved = assign(x, centroids, 0.1, **options)
    (gradient,) = torch.autograd.grad((clustered**2).sum(), x)
    return [t.detach().cpu() for t in (clustered, moved, gradient)]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="clustering on a GPU needs a CUDA device")
@pytest.mark.parametrize("narrow", [torch.bfloat16, torch.float16])
def test_a_gpu_clusters_like_a_cpu(narrow):
    points = leaf(2, 200_000, 1).detach().to(narrow)
    exact = clustered_on("cpu", soft_assign, points, torch.float64)
    for assign, bound, options in ((soft_assign, 1e-5, {}), (soft_assign_unique, 1e-6, {"narrow": narrow})):
        for expected, got in zip(exact, clustered_on("cuda", assign, points, torch.float32, **options), strict=True):
            assert (got - expected).abs().max() <= bound * expected.abs().max()
