"""A model that runs in one call, traced by torch.export: what both runtimes' generic exports start from."""

from __future__ import annotations

import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.export import Dim, ExportedProgram

from edge.core.bundle import Input
from edge.core.errors import EdgeError
from edge.exporters._modules import use_edge_operators
from edge.models.checkpoint import Checkpoint
from edge.models.images import image_shape
from edge.models.torch_model import build_model

DTYPES = {"int64": torch.int64, "float32": torch.float32}
EXAMPLE_TOKENS = 8


@dataclass
class _Stack:
    """Modules that are being computed, innermost last: the one that was left behind by an error is its place."""

    paths: list[str] = field(default_factory=list)


class FirstOutput(nn.Module):
    """A transformers model as a function of tensors: inputs in the order of `names`, its first output alone."""

    def __init__(self, model: nn.Module, names: tuple[str, ...]) -> None:
        super().__init__()
        self.model = model
        self.names = names

    def forward(self, *inputs: torch.Tensor) -> torch.Tensor:
        return self.model(**dict(zip(self.names, inputs, strict=True)))[0]


def inputs_of(checkpoint: Checkpoint) -> dict[str, Input]:
    """What the model takes, a batch of one. Texts have any length, images the size of the model's configuration.

    By name: a program's inputs are in the order of the manifest's.
    """
    names, task = sorted(checkpoint.spec.inputs), checkpoint.spec.task
    wanted = Input("float32", [1, *image_shape(checkpoint.config)]) if task == "vision" else Input("int64", [1, 0])
    return dict.fromkeys(names, wanted)


def trace(checkpoint: Checkpoint, context_length: int, *, eager: bool = False) -> ExportedProgram:
    """The model with edge's operators for compressed matrices, as a program of its first output.

    Text inputs have 1 to `context_length` tokens. eager: attention as plain products and a softmax, for a runtime that
    has none of its own and would take torch's decomposition, which guards every row: half the time of a call. Raises
    `EdgeError` with the module and the line where torch.export can't follow.
    """
    inputs = inputs_of(checkpoint)
    inner = use_edge_operators(build_model(checkpoint))
    if eager:
        inner.set_attn_implementation("eager")
    model = FirstOutput(inner, tuple(inputs)).eval()
    example = tuple(_example(wanted, context_length) for wanted in inputs.values())
    tokens = Dim("sequence", min=1, max=context_length) if context_length else None
    shapes = tuple({1: tokens} if 0 in wanted.shape else None for wanted in inputs.values())
    with _watched(model.model) as stack, torch.no_grad():
        try:
            return torch.export.export(model, example, dynamic_shapes=(shapes,), strict=False)
        except Exception as error:  # torch.export lets through whatever the model's code raises
            raise _untraceable(checkpoint, stack, error) from error


def _example(wanted: Input, context_length: int) -> torch.Tensor:
    shape = [size or min(EXAMPLE_TOKENS, context_length) for size in wanted.shape]
    return torch.ones(shape, dtype=DTYPES[wanted.dtype])


@contextmanager
def _watched(model: nn.Module) -> Iterator[_Stack]:
    stack = _Stack()

    def enter(path: str) -> Any:
        return lambda *_: stack.paths.append(path)

    def leave(*_: Any) -> None:
        stack.paths.pop()

    hooks = []
    for path, module in model.named_modules():
        hooks += [module.register_forward_pre_hook(enter(path)), module.register_forward_hook(leave)]
    try:
        yield stack
    finally:
        for hook in hooks:
            hook.remove()


def _untraceable(checkpoint: Checkpoint, stack: _Stack, error: Exception) -> EdgeError:
    """Names the innermost module and the last line of the model's own code."""
    frames = [f for f in traceback.extract_tb(error.__traceback__) if "/torch/" not in f.filename]
    own = next((f for f in reversed(frames) if "modeling_" in f.filename), None) or (frames or [None])[-1]
    place = stack.paths[-1] if stack.paths else ""
    module = f"'{place}'" if place else "the model itself"
    line = f" ({own.filename.rpartition('/')[2]}:{own.lineno}: {own.line})" if own is not None else ""
    reason = " ".join(str(error).split())[:200]
    message = f"torch.export can't trace {checkpoint.spec.class_name}: {module}{line}: {reason}"
    hint = "try another class of this model, without its head, in `architectures` of config.json; or report the model"
    return EdgeError("export.trace", message, hint)
