"""The quantized KV cache: what its bits stand for."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge.core.cache import (
    CacheFormat,
    CacheTables,
    bits_per_element,
    decode_keys,
    decode_values,
    encode_keys,
    encode_values,
)
from edge.core.errors import EdgeError, UsageError

FORMATS = st.builds(CacheFormat, st.sampled_from([2, 3, 4, 8]), st.sampled_from([2, 3, 4, 8]), st.integers(0, 4))


def tables_for(format, heads, head_dim, random):
    """Random levels, their middles for bounds; uniform ones at 8 bits."""
    if format.key_bits == 8:
        offsets = random.normal(size=(heads, head_dim))
        levels, bounds = np.stack([np.full_like(offsets, 0.03), offsets], -1), np.zeros((heads, head_dim, 0))
    else:
        levels = np.sort(random.normal(size=(heads, head_dim, 1 << format.key_bits)))
        bounds = (levels[..., 1:] + levels[..., :-1]) / 2
    values = np.linspace(-1, 1, 0 if format.value_bits == 8 else 1 << format.value_bits)
    return CacheTables(*(x.astype(np.float32) for x in (levels, bounds, values, (values[1:] + values[:-1]) / 2)))


@settings(max_examples=40, deadline=None)
@given(FORMATS, st.integers(1, 3), st.sampled_from([8, 24, 64]), st.integers(0, 2**31))
def test_every_element_gets_the_nearest_level_or_stays_itself(format, heads, head_dim, seed):
    random = np.random.default_rng(seed)
    tables = tables_for(format, heads, head_dim, random)
    tables.check("test", format)
    x = random.normal(size=(5, heads, head_dim)).astype(np.float32)
    coded = encode_keys(format, tables, x)
    got = decode_keys(format, tables, coded)
    levels = tables.key_levels
    if format.key_bits == 8:
        levels = levels[..., :1] * np.arange(-127, 128) + levels[..., 1:]
    nearest = np.abs(x[..., None] - levels).min(-1)
    kept = np.zeros(x.shape, bool)
    np.put_along_axis(kept, coded.index.astype(int), True, -1)
    assert kept.sum(-1).min() == format.outliers  # different places
    np.testing.assert_allclose(np.abs(got - x)[~kept], nearest[~kept], atol=2e-6)
    np.testing.assert_array_equal(got[kept], x[kept].astype(np.float16))
    worst = np.sort(nearest, -1)[..., ::-1][..., : format.outliers]
    np.testing.assert_allclose(np.sort(nearest[kept]), np.sort(worst.ravel()), atol=2e-6)


@settings(max_examples=40, deadline=None)
@given(FORMATS, st.sampled_from([32, 64]), st.floats(0.1, 1e3), st.integers(0, 2**31))
def test_values_are_within_half_a_step_of_their_range_and_outliers_do_not_widen_it(format, head_dim, size, seed):
    random = np.random.default_rng(seed)
    tables = tables_for(format, 2, head_dim, random)
    x = (size * random.uniform(-1, 1, size=(7, 2, head_dim))).astype(np.float32)
    if format.outliers:
        x[:, :, 3] = 50 * np.copysign(size, x[:, :, 3])
    coded = encode_values(format, tables, x)
    got = decode_values(format, tables, coded)
    half_step = {2: 1 / 3, 3: 1 / 7, 4: 1 / 15, 8: 0.5 / 127}[format.value_bits]
    error = np.abs(got - x)
    if format.outliers:
        assert (coded.index[..., 0] == 3).all()
        assert (error[..., 3] <= 2e-3 * np.abs(x[..., 3])).all()
        error[..., 3] = 0
    assert error.max() <= size * (half_step + 2e-3) * 1.01
    assert coded.codes.max() < 1 << format.value_bits


def test_a_token_is_coded_by_itself():
    random = np.random.default_rng(0)
    format = CacheFormat(3, 2, 1)
    tables = tables_for(format, 2, 16, random)
    x = random.normal(size=(9, 2, 16)).astype(np.float32)
    for encode, decode in ((encode_keys, decode_keys), (encode_values, decode_values)):
        together = decode(format, tables, encode(format, tables, x))
        alone = [decode(format, tables, encode(format, tables, x[i : i + 1])) for i in range(len(x))]
        np.testing.assert_array_equal(together, np.concatenate(alone))


def test_zeros_and_huge_values_stay_finite():
    format = CacheFormat(2, 2, 1)
    tables = tables_for(format, 1, 8, np.random.default_rng(0))
    for x in (np.zeros((1, 1, 8), np.float32), np.full((1, 1, 8), 1e9, np.float32)):
        assert np.isfinite(decode_values(format, tables, encode_values(format, tables, x))).all()
        assert np.isfinite(decode_keys(format, tables, encode_keys(format, tables, x))).all()


def test_the_real_bits():
    """3 bits, a head of 64, one outlier: 3 + 24 / 64 of keys, and 32 / 64 more of values. The first 16 tokens: 16."""
    assert CacheFormat(3, 3, 1).token_bits(64) == 64 * 6 + 2 * 24 + 32
    assert bits_per_element([CacheFormat(3, 3, 1)], 64, 16) == 16
    assert bits_per_element([CacheFormat(3, 3, 1)] * 2, 64, 32) == (3.625 + 16) / 2


def test_what_is_refused():
    for wrong in ({"key_bits": 5}, {"value_bits": 1}, {"outliers": 5}):
        with pytest.raises(UsageError):
            CacheFormat(**wrong)
    format = CacheFormat(3, 3, 1)
    with pytest.raises(UsageError, match="heads of 512"):
        format.layout(1, 512)
    tables = tables_for(format, 2, 8, np.random.default_rng(0))
    for broken in (
        CacheTables(tables.key_levels[..., ::-1], tables.key_bounds, tables.value_levels, tables.value_bounds),
        CacheTables(
            tables.key_levels, tables.key_bounds, tables.value_levels * np.float32(np.nan), tables.value_bounds
        ),
        CacheTables(tables.key_levels, tables.key_bounds[..., :3], tables.value_levels, tables.value_bounds),
    ):
        with pytest.raises(EdgeError):
            broken.check("layer 0", format)
