"""What a compression method is: a module of `edge.compress.methods` with options and mathematics."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol, cast

import msgspec
import torch

from edge.core.errors import UsageError
from edge.core.plugins import METHODS
from edge.core.recipe import ModuleKind, Recipe, Resolved, check_options
from edge.core.weight import Affine, CompressedTensor, Grid


class AffineOptions(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Options of every method with a uniform grid: bits 2 to 8; group_size 32, 64, 128 or 0 for a whole row.

    grid: `symmetric`, `zero_point`, or `half_integer`, which has as many levels above zero as below and none at it.
    """

    bits: int = 4
    group_size: int = 64
    grid: Grid = "symmetric"

    @property
    def encoding(self) -> Affine:
        return Affine(self.bits, self.group_size, self.grid)


class Inputs:
    """What a matrix saw in calibration: `hessian` = X^T X / tokens, float32 [in_features, in_features].

    Matrices with the same input share one object, so that a method can keep what it derives from it.
    """

    def __init__(self, hessian: torch.Tensor) -> None:
        self.hessian = hessian


class Method(Protocol):
    """A module that compresses one matrix at a time."""

    Options: type[AffineOptions]
    CALIBRATED: bool
    """Whether `compress` needs to know the matrix's inputs; such a method serves linear layers only."""

    def compress(self, name: str, weight: torch.Tensor, options: Any, inputs: Inputs | None) -> CompressedTensor:
        """Compress a float32 matrix [out_features, in_features]. Deterministic; `weight` is left as it is."""


@dataclass(frozen=True)
class Task:
    """One tensor's method and checked options."""

    method: Method
    options: Any
    resolved: Resolved

    def run(self, name: str, weight: torch.Tensor, inputs: Inputs | None) -> CompressedTensor:
        return self.method.compress(name, weight, self.options, inputs)


def load_method(name: str) -> Method:
    """A method by name. Raises `UsageError` with the nearest right name."""
    return cast(Method, METHODS.load(name))


def plan(recipe: Recipe, tensors: list[tuple[str, ModuleKind]]) -> Mapping[str, Task]:
    """What is done to every tensor. Raises `UsageError` for a wrong option or a tensor the method can't serve."""
    tasks = {}
    for name, resolved in recipe.resolve(tensors).items():
        method = load_method(resolved.method)
        origin = f"{recipe.name}: {resolved.method} for {name}"
        options = check_options(resolved.options, method.Options, origin)
        if method.CALIBRATED and resolved.module != "linear":
            message = f"{origin}: {resolved.method} needs the inputs of a matrix, an {resolved.module} has none"
            hint = f'exclude it, {{module = "{resolved.module}", exclude = true}}, and add an rtn step for it'
            raise UsageError("recipe.module", message, hint)
        _ = options.encoding  # raises for bits or a group that can't be stored
        tasks[name] = Task(method, options, resolved)
    return tasks
