"""Mixed precision: a choice for every matrix, so that a size or a latency is kept and the output changes least.

Every choice's effect on the output distribution is predicted by itself (`sensitivity`), in nats of Kullback-Leibler
divergence per token; these add up to second order, as in Yao, Dong, Zheng et al.: "HAWQ-V3: Dyadic Neural Network
Quantization", ICML 2021, arXiv:2011.10680. The best sum within the budget is found exactly: a multiple-choice knapsack.

A planning step: before anything is compressed it becomes an ordinary step per method, with a rule for every tensor. It
sees the model before other steps' preparations.

    [[steps]]
    method = "allocate"
    options = {bits_per_weight = 3.6, choices = [
      {method = "gptq", options = {bits = 4, group_size = 64}},
      {method = "gptq", options = {bits = 3, group_size = 64}},
      {method = "rtn", options = {bits = 8, group_size = 64}},
    ]}
    rules = [{name = "*.0.*", exclude = true}]
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import msgspec
import numpy as np

from edge.compress.method import Task, load_method
from edge.compress.methods._allocation import Budget, encoded_bytes, fixed_bytes, fixed_nanoseconds, show
from edge.compress.methods._divergence import MeasuredWalk
from edge.compress.methods._fisher import FisherWalk
from edge.compress.methods._knapsack import Class, solve
from edge.compress.methods._latency import kernel_times
from edge.compress.methods._trial import Estimate, Outcome
from edge.compress.planning import Planned, PlanRequest
from edge.core.console import info, progress
from edge.core.errors import UsageError
from edge.core.recipe import Resolved, Rule, Step, check_options

CALIBRATED = True
WINDOWS = {"fisher": 8, "kl": 2}
BUDGETS = ("bits_per_weight", "size_mb", "latency_ms")


class Choice(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A method that compresses, and its options."""

    method: str
    options: dict[str, Any] = {}

    def __repr__(self) -> str:
        return f"{self.method}({', '.join(f'{key}={value}' for key, value in self.options.items())})"

    def task(self, resolved: Resolved) -> Task:
        """It as the task of a tensor. Raises `UsageError` for options that the method doesn't take."""
        method = load_method(self.method)
        options = check_options(self.options, method.Options, f"allocate: the choice {self.method}")
        if hasattr(options, "encoding"):
            _ = options.encoding  # raises for what can't be stored
        return Task(method, options, Resolved(resolved.step, self.method, self.options, resolved.module))


CHOICES = (
    *(Choice("gptq", {"bits": bits, "group_size": 64, "grid": "zero_point"}) for bits in (2, 3, 4, 8)),
    *(Choice("rtn", {"bits": bits, "group_size": 64, "grid": "zero_point"}) for bits in (4, 8)),
)


class Options(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One of three budgets: bits_per_weight and size_mb (10^6 bytes) of all that is stored, scales, embedding and head
    included; latency_ms of all matrix products of one decoded token.

    choices: what a matrix may become; a rule may give others. An embedding that isn't the head takes only those whose
    method needs no calibration. group: whether every matrix has a choice of its own or all of a layer have one.
    sensitivity: `fisher` predicts, from gradients on labels that the model draws; `kl` changes one matrix at a time and
    measures, which takes a walk through the rest of the model for each. estimate: what a matrix would become by a
    calibrated method is found by `rounding` to its grid, or by the `method` itself, which takes as long as compressing.
    windows: of the calibration text that are used, 0 for 8 (`fisher`) or 2 (`kl`).
    kernels, threads: times of the device's kernels, from `edge bench kernels -o FILE`. gb_per_s: weights read per
    second, for encodings that these have no row for, or for all.
    """

    bits_per_weight: float | None = None
    size_mb: float | None = None
    latency_ms: float | None = None
    choices: tuple[Choice, ...] = CHOICES
    sensitivity: Literal["fisher", "kl"] = "fisher"
    estimate: Estimate = "rounding"
    group: Literal["matrix", "layer"] = "matrix"
    windows: int = 0
    kernels: str | None = None
    threads: int = 1
    gb_per_s: float | None = None

    def __post_init__(self) -> None:
        if sum(getattr(self, name) is not None for name in BUDGETS) > 1:
            raise ValueError(f"one budget: {', '.join(BUDGETS)}")
        numbers = [getattr(self, name) for name in (*BUDGETS, "gb_per_s")]
        if any(number is not None and not 0 < number < math.inf for number in numbers):
            raise ValueError("budgets and `gb_per_s` are above 0")
        if self.latency_ms is not None and self.kernels is None and self.gb_per_s is None:
            raise ValueError("`latency_ms` needs `kernels`, a file of `edge bench kernels`, or `gb_per_s`")
        if not self.choices or self.windows < 0 or self.threads < 1:
            raise ValueError("at least one choice and one thread; `windows` is 0 or more")
        for choice in self.choices:
            if not hasattr(load_method(choice.method), "compress"):
                raise ValueError(f"{choice.method} compresses nothing by itself, it is no choice")

    @property
    def budget(self) -> tuple[str, float]:
        """The budget's option and value. Raises `UsageError` without one."""
        for name in BUDGETS:
            if getattr(self, name) is not None:
                return name, getattr(self, name)
        raise UsageError("allocate.budget", "allocate has no budget", f"give one of {', '.join(BUDGETS)}")


def plan_steps(request: PlanRequest) -> Planned:
    """The steps that compress each tensor by the choice that is best within the budget."""
    options = _common_options(request)
    trials = {name: _trials(request, name) for name in request.tasks}
    budget = _budget(request, options)
    names = _groups(request, options)
    known = {name: _forms(request, name, tasks) for name, tasks in trials.items()}
    if all(known.values()):  # before hours of measuring
        _check_room(request, budget, [_class(request, budget, group, known) for group in names])
    outcomes = _outcomes(request, options, trials)
    classes = [_class(request, budget, group, outcomes) for group in names]
    _check_room(request, budget, classes)
    picks = solve(classes, budget.limit - budget.fixed)
    if all(one.costs[pick] <= one.costs.min() for one, pick in zip(classes, picks, strict=True)):
        info("The budget has room for the best choice of every matrix")
    chosen = {
        name: (trials[name][pick], outcomes[name][pick])
        for group, pick in zip(names, picks, strict=True)
        for name in group
    }
    summary = show(request.checkpoint, budget, chosen, options.sensitivity)
    return Planned(_steps({name: chosen[name][0] for name in request.tasks}), summary)


def _common_options(request: PlanRequest) -> Options:
    """The step's options: rules may change the choices and nothing else."""
    every: list[Options] = [msgspec.structs.replace(task.options, choices=CHOICES) for task in request.tasks.values()]
    if any(options != every[0] for options in every):
        hint = "a rule excludes tensors, or gives them other `choices`"
        raise UsageError("recipe.option", "allocate has one budget and one way to find it", hint)
    return every[0]


def _trials(request: PlanRequest, name: str) -> list[Task]:
    task, tied = request.tasks[name], bool(request.checkpoint.spec.tied_copies)
    tasks = [choice.task(task.resolved) for choice in task.options.choices]
    if task.resolved.module == "embedding" and not tied:
        tasks = [trial for trial in tasks if not trial.method.CALIBRATED]
    if not tasks:
        message = f"every choice for {name} needs the inputs of a matrix, an embedding has none"
        raise UsageError("recipe.module", message, 'add a choice such as {method = "rtn", options = {bits = 4}}')
    return tasks


def _budget(request: PlanRequest, options: Options) -> Budget:
    name, value = options.budget
    if name == "latency_ms":
        times = kernel_times(options.kernels, options.gb_per_s, options.threads, request.recipe.activations)
        return Budget(int(value * 1e6), fixed_nanoseconds(request, times), (name, value), times)
    limit = value * 1e6 if name == "size_mb" else value * request.checkpoint.parameters / 8
    return Budget(int(limit), fixed_bytes(request), (name, value))


def _outcomes(
    request: PlanRequest, options: Options, trials: Mapping[str, Sequence[Task]]
) -> Mapping[str, Sequence[Outcome]]:
    count = min(options.windows or WINDOWS[options.sensitivity], len(request.windows))
    windows = request.windows[np.linspace(0, len(request.windows) - 1, count).round().astype(int)]
    walk: FisherWalk | MeasuredWalk
    if options.sensitivity == "fisher":
        seed = request.recipe.seed
        walk = FisherWalk(request.checkpoint, trials, windows, options.estimate, scratch=request.scratch, seed=seed)
    else:
        walk = MeasuredWalk(request.checkpoint, trials, windows, options.estimate)
    with progress("Finding out which matrices matter", walk.ticks()) as tick:
        return walk.run(tick)


def _forms(request: PlanRequest, name: str, trials: Sequence[Task]) -> Sequence[Outcome]:
    """What the choices of a tensor take, nothing if that depends on the weights."""
    if any(getattr(trial.method, "CHOOSES_ENCODING", False) for trial in trials):
        return ()
    shape = request.checkpoint.matrix_shape(name)
    return [Outcome(0.0, trial.options.encoding, encoded_bytes(trial.options.encoding, shape)) for trial in trials]


def _check_room(request: PlanRequest, budget: Budget, classes: Sequence[Class]) -> None:
    smallest = sum(int(one.weights.min()) for one in classes)
    if budget.fixed + smallest > budget.limit:
        raise budget.too_small(smallest, request.checkpoint)


def _groups(request: PlanRequest, options: Options) -> list[list[str]]:
    """Tensors that get the same choice."""
    groups: dict[Any, list[str]] = {}
    layers = {m.weight: layer.name for layer in request.checkpoint.spec.layers for g in layer.linears() for m in g}
    for name, task in request.tasks.items():
        layer = layers.get(name) if options.group == "layer" else None
        key = (layer, msgspec.json.encode(task.options.choices)) if layer else name
        groups.setdefault(key, []).append(name)
    return list(groups.values())


def _class(
    request: PlanRequest, budget: Budget, group: Sequence[str], outcomes: Mapping[str, Sequence[Outcome]]
) -> Class:
    weights = [[budget.weight(request.checkpoint, name, outcome) for outcome in outcomes[name]] for name in group]
    costs = [[outcome.divergence for outcome in outcomes[name]] for name in group]
    return Class(np.sum(weights, 0, dtype=np.int64), np.sum(costs, 0, dtype=np.float64))


def _steps(chosen: Mapping[str, Task]) -> list[Step]:
    """A step for every method, which takes its tensors by name and nothing else."""
    kinds: tuple[Literal["linear", "embedding", "head"], ...] = ("linear", "embedding", "head")
    nothing_else = [Rule(module=kind, exclude=True) for kind in kinds]
    rules: dict[str, list[Rule]] = {}
    for name, task in chosen.items():
        rules.setdefault(task.resolved.method, []).append(Rule(name=name, options=task.resolved.options))
    return [Step(method, rules=[*named, *nothing_else]) for method, named in rules.items()]
