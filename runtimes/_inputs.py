"""What every engine checks before it runs a model in one call."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge.core.bundle import Input, Manifest
from edge.core.errors import UsageError
from edge.core.session import Inputs


def checked(manifest: Manifest, inputs: Inputs) -> dict[str, NDArray[Any]]:
    """The inputs in the manifest's order, contiguous.

    Raises `UsageError` for a name too few or too many, another type or shape, a text longer than the context and tokens
    outside the vocabulary.
    """
    wanted = manifest.inputs
    if inputs.keys() != wanted.keys():
        message = f"this model takes {', '.join(wanted)}, not {', '.join(inputs) or 'nothing'}"
        raise UsageError("inputs.names", message, "give exactly these, as NumPy arrays")
    for name, array in inputs.items():
        _check_type(name, np.asarray(array), wanted[name])
    lengths = {array.shape[1] for name, array in inputs.items() if 0 in wanted[name].shape}
    if len(lengths) > 1:
        raise UsageError("inputs.shape", f"inputs of different lengths: {sorted(lengths)}", "give them the same length")
    for length in lengths:
        if not 1 <= length <= manifest.context_length:
            message = f"the text has {length} tokens; the model takes 1 to {manifest.context_length}"
            raise UsageError("inputs.length", message, "shorten it, or export with a longer --context")
    ids = inputs.get("input_ids")
    if ids is not None and not 0 <= int(ids.min()) <= int(ids.max()) < manifest.vocab_size:
        hint = "use the bundle's tokenizer"
        raise UsageError("inputs.token", f"a token is outside 0..{manifest.vocab_size - 1}", hint)
    return {name: np.ascontiguousarray(inputs[name]) for name in wanted}


def _check_type(name: str, array: NDArray[Any], wanted: Input) -> None:
    shape = [size or "length" for size in wanted.shape]
    fits = array.ndim == len(wanted.shape) and all(
        size in (0, found) for size, found in zip(wanted.shape, array.shape, strict=True)
    )
    if array.dtype != wanted.dtype or not fits:
        message = f"{name} is {array.dtype} {list(array.shape)}; the model takes {wanted.dtype} {shape}"
        raise UsageError("inputs.shape", message.replace("'", ""), "convert it")
    if array.dtype == np.float32 and not np.isfinite(array).all():
        raise UsageError("inputs.not_finite", f"{name} has NaN or infinite values", "check what made it")
