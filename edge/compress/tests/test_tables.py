"""Tables of a matrix: geometry, the optimum against every partition, what is stored."""

from itertools import combinations, pairwise

import numpy as np
import pytest
import torch

from edge.compress.clustering.exact_kmeans import exact_kmeans
from edge.compress.clustering.scalar_kmeans import scalar_kmeans
from edge.compress.clustering.tables import (
    assign,
    blocked,
    clustered_tensor,
    fit_tables,
    normalized,
    reconstructed,
    spread,
    unblocked,
)
from edge.core.errors import UsageError
from edge.core.weight import Codebook

ENCODINGS = [
    Codebook(3),
    Codebook(4, scale="row", table_rows=1),
    Codebook(2, scale="row", table_rows=12, table_columns=128),
    Codebook(4, entry="int16", table_columns=128),
    Codebook(4, dim=2, table_rows=16, scale="row"),
    Codebook(3, dim=2, table_rows=8, table_columns=128),
]


def matrix(rows=40, columns=320, seed=0):
    """Heavy tails, rows and columns of different sizes."""
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(rows, columns, generator=generator) * torch.rand(rows, columns, generator=generator)
    return 0.1 * weight * torch.rand(rows, 1, generator=generator)


def cost(points, weights, centroids):
    return (weights * (points[..., None] - centroids[..., None, :]).square().amin(-1)).sum(-1)


def least_cost(points, weights, clusters):
    """Over all ways to cut the sorted points of one row."""
    points, order = points.sort()
    weights, best = weights[order], float("inf")
    for cuts in combinations(range(1, len(points)), min(clusters, len(points)) - 1):
        total = 0.0
        for first, end in pairwise([0, *cuts, len(points)]):
            x, w = points[first:end], weights[first:end]
            total += float((w * (x - (w * x).sum() / w.sum()).square()).sum())
        best = min(best, total)
    return best


@pytest.mark.parametrize("clusters", [1, 2, 3, 5])
def test_exact_is_the_best_of_all_partitions(clusters):
    generator = torch.Generator().manual_seed(clusters)
    for n in (1, 2, 3, 6, 11):
        points = torch.randn(4, n, generator=generator).double() * 3 + 20
        weights = torch.rand(4, n, generator=generator).double() ** 3
        centroids = exact_kmeans(points, weights, clusters).double()
        assert (centroids.diff(dim=-1) >= 0).all()
        for row in range(4):
            best = least_cost(points[row], weights[row], clusters)
            assert cost(points[row], weights[row], centroids[row]) == pytest.approx(best, rel=1e-4, abs=1e-9)


@pytest.mark.parametrize("clusters", [4, 16])
def test_exact_is_a_floor_of_lloyd(clusters):
    points = torch.randn(3, 3000, generator=torch.Generator().manual_seed(1)) ** 3
    weights = torch.rand(points.shape, generator=torch.Generator().manual_seed(2))
    floor, found = (cost(points, weights, f(points, weights, clusters)) for f in (exact_kmeans, scalar_kmeans))
    assert (floor <= found * (1 + 1e-6)).all()
    assert (found <= 1.02 * floor).all()  # half of Lloyd's start is bins of equal counts: it comes near


def test_exact_leaves_out_points_without_weight_and_serves_few():
    points = torch.tensor([[1.0, 2, 3, 1000, 1000], [5, 5, 5, 5, 5], [1, 1, 2, 2, 9]])
    weights = torch.tensor([[1.0, 1, 1, 0, 0], [1, 1, 1, 1, 1], [0, 0, 0, 0, 0]])
    assert exact_kmeans(points, weights, 3).tolist() == [[1, 2, 3], [5, 5, 5], [0, 0, 0]]


@pytest.mark.parametrize("encoding", ENCODINGS, ids=str)
def test_blocks_are_the_weights_of_a_table(encoding):
    points = torch.arange(40.0 * 320).view(40, 320)
    blocks = blocked(points, encoding)
    assert unblocked(blocks, encoding, 40, 320).equal(points)
    numbers = torch.arange(len(blocks))[:, None, None].expand(-1, blocks.shape[1], 1)
    codes = unblocked(numbers, encoding, 40, 320)
    across = -(-320 // (encoding.table_columns or 320))
    for row, column in ((0, 0), (39, 319), (17, 130)):
        expected = row // (encoding.table_rows or 40) * across + column // (encoding.table_columns or 320)
        assert codes[row, column // encoding.dim] == expected


@pytest.mark.parametrize("encoding", ENCODINGS, ids=str)
def test_what_is_stored_stands_for_the_weights(encoding):
    """Next to each weight is the entry that it gets, as stored; rounding entries to integers costs next to nothing."""
    weight = matrix()
    points, scales = normalized(weight, encoding)
    importance = spread(scales, encoding, 320) ** 2
    tables = fit_tables(points, encoding, importance)
    assert tables.shape == encoding.layout(40, 320)["tables"].shape
    codes = assign(points, tables, encoding, importance)
    tensor = clustered_tensor("m", scales, tables, codes, encoding, weight=weight)
    tensor.check()
    floats = reconstructed(tables, codes, encoding) * spread(scales, encoding, 320)
    errors = [(torch.as_tensor(w) - weight).square().sum().item() for w in (floats, tensor.dequantize())]
    assert errors[1] < 1.02 * errors[0]
    if encoding.dim == 1:
        every = np.stack(
            [
                tensor.encoding.dequantize({**tensor.parts, "codes": np.full((40, 320), code, np.uint8)})
                for code in range(1 << encoding.bits)
            ]
        )
        nearest = np.abs(every - weight.numpy()).min(0)
        np.testing.assert_allclose(np.abs(tensor.dequantize() - weight.numpy()), nearest, atol=1e-6)


def test_pinned_zero_keeps_zeros_and_gives_them_no_say():
    weight, encoding = matrix(), Codebook(2, scale="row")
    kept = torch.rand(weight.shape, generator=torch.Generator().manual_seed(3)) < 0.4
    points, scales = normalized(weight * kept, encoding)
    tables = fit_tables(points, encoding, pinned_zero=True)
    assert tables[0, 0, 0] == 0
    alone = fit_tables(points[kept][None], Codebook(2, scale="row", group_size=0), pinned_zero=True)
    torch.testing.assert_close(tables, alone, rtol=1e-3, atol=1e-3)
    tensor = clustered_tensor("m", scales, tables, assign(points, tables, encoding), encoding, weight=weight * kept)
    assert not tensor.dequantize()[~kept.numpy()].any()


def test_exact_serves_scalars_only():
    with pytest.raises(UsageError, match="one dimension"):
        fit_tables(matrix(), Codebook(4, dim=2), exact=True)
