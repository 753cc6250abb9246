"""What a compression method is: a module of `edge.compress.methods` with options and mathematics.

A module may have seven functions, each of which makes it part of the pipeline at its own place:

- `plan_steps(request)`: takes tensors like a method that compresses, and says which steps do that (`planning.py`).
- `rewrite(checkpoint, options, seed)`: another checkpoint of the same function, whose tensors are computed as they are
  read: for changes that span the model.
- `rewrite_matrices(checkpoint, options)`: the same by matrices, which rules choose; the function may change. For a
  module that compresses as well, and a step of which `compresses(options)` says that it doesn't.
- `prepare(block, options)`: changes the float weights of a decoder layer without changing its function, before anything
  in it is compressed. A module with nothing else is a preparation: its step takes no tensors from later steps.
- `compress_block(block, options)`: compresses matrices of a decoder layer together.
- `compress(name, weight, options, inputs)`: compresses one matrix.
- `finish(finished, options)`: changes the compressed model as a whole (`finish.py`). Such a step comes last, unless it
  compresses as well: then only what compresses may follow.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any, Protocol, cast

import msgspec
import torch

from edge.core.errors import UsageError
from edge.core.plugins import METHODS
from edge.core.recipe import ModuleKind, Recipe, Resolved, Step, check_options
from edge.core.weight import Affine, CompressedTensor, Grid

if TYPE_CHECKING:
    from edge.compress.block import Block
    from edge.compress.finish import Finished
    from edge.compress.planning import Planned, PlanRequest
    from edge.models.checkpoint import Checkpoint


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
    """What a matrix saw in calibration, float32: `hessian` = X^T X / tokens [in_features, in_features], and per input
    channel the mean (`magnitude`) and the maximum (`peak`) of |x| [in_features].

    Matrices with the same input share one object, so that a method can keep what it derives from it.
    """

    def __init__(self, hessian: torch.Tensor, magnitude: torch.Tensor, peak: torch.Tensor) -> None:
        self.hessian, self.magnitude, self.peak = hessian, magnitude, peak


@dataclass(frozen=True)
class Gradients:
    """What a matrix means to the loss: `squared`, float32 [out_features, in_features], sums over calibration windows
    of the squared gradients by its original weights.
    """

    squared: torch.Tensor


class InputStatistics:
    """Gathers `Inputs` from activations [.., in_features], any number of times."""

    def __init__(self, width: int) -> None:
        self._hessian, self._sum, self._peak = torch.zeros(width, width), torch.zeros(width), torch.zeros(width)
        self._tokens = 0

    def add(self, activations: torch.Tensor) -> None:
        x = activations.reshape(-1, len(self._sum)).float()
        self._hessian.addmm_(x.T, x)
        magnitudes = x.abs()
        self._sum += magnitudes.sum(0)
        self._peak = torch.maximum(self._peak, magnitudes.amax(0))
        self._tokens += len(x)

    def inputs(self) -> Inputs:
        return Inputs(self._hessian / self._tokens, self._sum / self._tokens, self._peak)


class Method(Protocol):
    """A module that compresses matrices; see the top for what else it may have."""

    Options: type[AffineOptions]
    CALIBRATED: bool
    """Whether it needs to know the matrices' inputs; such a method can't serve an embedding that isn't the head too.

    Options with `calibrated` false are those of a step that doesn't. Options with `fisher` true ask for `Gradients` in
    the place of `Inputs`.
    """
    STANDS_ALONE: bool
    """Whether a recipe may have this step alone though it compresses no matrix. May be missing: no."""
    TRAINED: bool
    """Whether it trains the whole model on text to finish. May be missing: no."""
    CHOOSES_ENCODING: bool
    """Whether the encoding depends on the matrix: `options.encoding` is not the last word. May be missing: no."""

    def compress(
        self, name: str, weight: torch.Tensor, options: Any, inputs: Inputs | Gradients | None
    ) -> CompressedTensor:
        """Compress a float32 matrix [out_features, in_features]. Deterministic; `weight` is left as it is."""

    def plan_steps(self, request: PlanRequest) -> Planned:
        """Steps that take the place of the method's own, once the text and the weights are known. May be missing."""

    def rewrite(self, checkpoint: Checkpoint, options: Any, seed: int) -> Checkpoint:
        """The same function by other weights, for the whole model. May be missing."""

    def compresses(self, options: Mapping[str, Any]) -> bool:
        """Whether a step with these options takes tensors. May be missing: yes, if the method compresses."""

    def rewrite_matrices(self, checkpoint: Checkpoint, options: Mapping[str, Any]) -> Checkpoint:
        """The model with other values for the matrices named in `options`. May be missing."""

    def finish(self, finished: Finished, options: Any) -> None:
        """Change the compressed model as a whole. May be missing."""

    def prepare(self, block: Block, options: Mapping[str, Any]) -> None:
        """Fold into a layer what makes the matrices named in `options` easier to compress. May be missing."""

    def compress_block(self, block: Block, options: Mapping[str, Any]) -> dict[str, CompressedTensor]:
        """Compress the matrices named in `options` together; the block is left as it is. May be missing."""


@dataclass(frozen=True)
class Task:
    """One tensor's method and checked options."""

    method: Method
    options: Any
    resolved: Resolved

    @property
    def calibrated(self) -> bool:
        """Whether it needs to know the matrix's inputs."""
        return _sees_inputs(self.method, self.options)

    @property
    def fisher(self) -> bool:
        """Whether it needs to know the matrix's gradients."""
        return getattr(self.options, "fisher", False)

    def run(self, name: str, weight: torch.Tensor, inputs: Inputs | Gradients | None) -> CompressedTensor:
        return self.method.compress(name, weight, self.options, inputs)


Tasks = Mapping[str, Task]


@dataclass(frozen=True)
class Plan:
    """What is done to a model: `tasks` say what becomes of each matrix, `preparations` (one mapping per step, in
    order) which matrices each step prepares before that, `finishing` (steps' indices, methods and options) what comes
    after.
    """

    tasks: Tasks
    preparations: tuple[Tasks, ...]
    finishing: tuple[tuple[int, Method, Any], ...] = ()

    @property
    def calibrated(self) -> bool:
        """Whether text walks through the model while it is compressed."""
        return any(task.calibrated for tasks in (self.tasks, *self.preparations) for task in tasks.values())

    @property
    def fisher(self) -> set[str]:
        """Names of the matrices whose gradients are asked for."""
        return {name for name, task in self.tasks.items() if task.fisher}

    @property
    def needs_text(self) -> bool:
        return self.calibrated or bool(self.fisher) or any(reads_text(method) for _, method, _ in self.finishing)


def reads_text(method: Method) -> bool:
    """Whether a recipe with the method needs calibration text."""
    return method.CALIBRATED or getattr(method, "TRAINED", False)


@cache  # asked for every tensor, and the list of installed packages is read each time
def load_method(name: str) -> Method:
    """A method by name. Raises `UsageError` with the nearest right name."""
    return cast(Method, METHODS.load(name))


def plan(recipe: Recipe, tensors: list[tuple[str, ModuleKind]], *, tied: bool = False) -> Plan:
    """What is done to every tensor. Raises `UsageError` for a wrong option or a tensor the method can't serve.

    tied: the embedding is the head as well.
    """
    methods = [load_method(step.method) for step in recipe.steps]
    takes = [i for i, step in enumerate(recipe.steps) if _takes_tensors(step)]
    if sum(hasattr(method, "plan_steps") for method in methods) > 1:
        hint = "leave tensors to other steps by rules of the one, or give them other choices there"
        raise UsageError(
            "recipe.plans", f"{recipe.name} has several steps that plan: each is for the whole model", hint
        )
    if not takes and not any(getattr(method, "STANDS_ALONE", False) for method in methods):
        hint = "add a step with a method that compresses, such as rtn"
        raise UsageError("recipe.prepares_only", f"{recipe.name} prepares the model and compresses nothing", hint)
    tasks = _tasks(recipe, tensors, takes, tied)
    preparations = []
    for index, method in enumerate(methods):
        if index not in takes and hasattr(method, "prepare"):
            linears = [(name, kind) for name, kind in tensors if kind == "linear"]
            preparations.append(_tasks(recipe, linears, [index], tied))
        elif hasattr(method, "prepare"):
            preparations.append({name: task for name, task in tasks.items() if task.resolved.step == index})
    return Plan(tasks, tuple(preparations), tuple(_finishing(recipe, methods)))


def _takes_tensors(step: Step) -> bool:
    method = load_method(step.method)
    compresses = hasattr(method, "compress") and (not hasattr(method, "compresses") or method.compresses(step.options))
    return compresses or hasattr(method, "plan_steps")


def _finishing(recipe: Recipe, methods: list[Method]) -> Iterator[tuple[int, Method, Any]]:
    """Steps that change the finished model. Raises `UsageError` for one that another kind of step follows."""
    for index, (step, method) in enumerate(zip(recipe.steps, methods, strict=True)):
        if not hasattr(method, "finish"):
            continue
        origin = f"{recipe.name}: {step.method}"
        compresses = hasattr(method, "compress")
        followed = any(not hasattr(later, "finish") for later in methods[index:])
        if not compresses and (step.rules or followed):
            message = f"{origin} changes the finished model as a whole"
            raise UsageError("recipe.finish", message, "put it last, without rules")
        yield index, method, check_options(step.options, method.Options, origin)


def rewritten(checkpoint: Checkpoint, recipe: Recipe) -> Checkpoint:
    """What the recipe's first steps make of the whole model. Raises `UsageError` for such a step that comes later."""
    others = 0
    for index, step in enumerate(recipe.steps):
        method = load_method(step.method)
        by_matrix = hasattr(method, "rewrite_matrices") and not _takes_tensors(step)
        if not by_matrix and not hasattr(method, "rewrite"):
            others += 1
            continue
        origin = f"{recipe.name}: {step.method}"
        if others or (step.rules and not by_matrix):
            message = f"{origin} changes the whole model, before any other step"
            hint = "put it first" if by_matrix else "put it first, without rules"
            raise UsageError("recipe.rewrite", message, hint)
        if by_matrix:
            tasks = _tasks(recipe, checkpoint.spec.matrices(), [index], tied=True)
            checkpoint = method.rewrite_matrices(checkpoint, {name: task.options for name, task in tasks.items()})
        else:
            checkpoint = method.rewrite(checkpoint, check_options(step.options, method.Options, origin), recipe.seed)
    return checkpoint


def _tasks(recipe: Recipe, tensors: list[tuple[str, ModuleKind]], steps: list[int], tied: bool) -> Tasks:
    tasks = {}
    for name, resolved in _resolve(recipe, tensors, steps, tied).items():
        method = load_method(resolved.method)
        origin = f"{recipe.name}: {resolved.method} for {name}"
        options = check_options(resolved.options, method.Options, origin)
        if resolved.module == "embedding" and not tied and _needs_inputs(method, options):
            message = f"{origin}: {resolved.method} needs the inputs of a matrix, an embedding has none"
            hint = 'exclude it, {module = "embedding", exclude = true}, and add an rtn step for it'
            raise UsageError("recipe.module", message, hint)
        if isinstance(options, AffineOptions):
            _ = options.encoding  # raises for bits or a group that can't be stored
        tasks[name] = Task(method, options, resolved)
    return tasks


def _resolve(
    recipe: Recipe, tensors: list[tuple[str, ModuleKind]], steps: list[int], tied: bool
) -> dict[str, Resolved]:
    """Which step takes a tensor. Those that need inputs pass over an untied embedding, if another one takes it."""
    answers = recipe.resolve(tensors, steps)
    if not tied:
        embeddings = [(name, kind) for name, kind in tensors if kind == "embedding"]
        others = [index for index in steps if not _step_needs_inputs(recipe, index)]
        answers |= recipe.resolve(embeddings, others)
    return answers


def _step_needs_inputs(recipe: Recipe, index: int) -> bool:
    step = recipe.steps[index]
    method, options = load_method(step.method), None
    if hasattr(method.Options, "calibrated"):
        options = check_options(step.options, method.Options, f"{recipe.name}: {step.method}")
    return _needs_inputs(method, options)


def _needs_inputs(method: Method, options: Any) -> bool:
    """Whether the method can't serve a matrix that multiplies nothing."""
    return _sees_inputs(method, options) and not hasattr(method, "plan_steps")


def _sees_inputs(method: Method, options: Any) -> bool:
    return method.CALIBRATED and getattr(options, "calibrated", True)
