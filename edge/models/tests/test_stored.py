"""The parts of every encoding as a file holds them: what comes back, how many bytes, and what damage does."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from edge.core.errors import EdgeError
from edge.kernels.testing import EVERY_LAYOUT, random_tensor
from edge.models.stored import from_stored, stored_names, to_stored

tensors = st.builds(
    random_tensor, st.integers(1, 40), st.integers(33, 75).map(lambda n: 4 * n), st.sampled_from(EVERY_LAYOUT)
)


def read_back(tensor, stored):
    names = stored_names(tensor.name, tensor.shape, tensor.encoding)
    return from_stored(tensor.name, tensor.shape, tensor.encoding, stored.__getitem__, names)


@settings(deadline=None, max_examples=60)
@given(tensor=tensors)
def test_stored_parts_come_back_and_are_as_large_as_they_say(tensor):
    stored = to_stored(tensor)
    assert sum(part.nbytes for part in stored.values()) == tensor.stored_bytes
    back = read_back(tensor, stored)
    assert back.parts.keys() == tensor.parts.keys()
    assert all(np.array_equal(back.parts[part], tensor.parts[part]) for part in back.parts)


@settings(deadline=None, max_examples=60)
@given(tensor=tensors, data=st.data())
def test_a_part_cut_short_or_of_another_type_is_refused(tensor, data):
    stored = to_stored(tensor)
    name = data.draw(st.sampled_from(sorted(name for name, part in stored.items() if part.numel())))
    part = stored[name]
    axis = data.draw(st.integers(0, part.ndim - 1))
    changes = [part.narrow(axis, 0, part.shape[axis] - 1), part.flatten(), part.to(torch.int64)]
    for wrong in changes:
        with pytest.raises(EdgeError) as caught:
            read_back(tensor, {**stored, name: wrong})
        assert caught.value.hint and caught.value.message.startswith("w: ")


@settings(deadline=None, max_examples=60)
@given(tensor=tensors, data=st.data())
def test_flipped_bytes_give_a_sound_tensor_or_an_error(tensor, data):
    stored = to_stored(tensor)
    name = data.draw(st.sampled_from(sorted(name for name, part in stored.items() if part.numel())))
    raw = stored[name].numpy().view(np.uint8).reshape(-1)
    raw[data.draw(st.integers(0, raw.size - 1))] ^= data.draw(st.integers(1, 255))
    try:
        back = read_back(tensor, stored)
    except EdgeError as error:
        assert error.hint
        return
    back.check()
    assert np.isfinite(back.dequantize()).all()
