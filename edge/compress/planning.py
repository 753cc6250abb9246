"""Planning steps: steps of a recipe that turn themselves into others, tensor by tensor, before anything is compressed.

A planning method is a module of `edge.compress.methods` with `plan_steps(request)`. What it answers is written into the
partial folder, so that a run that goes on where it was doesn't plan again, and into the artefact.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import torch

from edge.compress.method import Tasks, load_method
from edge.core.files import SCHEMA, read_json, write_json
from edge.core.recipe import Recipe, Step
from edge.models.checkpoint import Checkpoint

if TYPE_CHECKING:
    from collections.abc import Iterator

PLAN = ".plan.json"
SCRATCH = ".scratch"


@dataclass(frozen=True)
class PlanRequest:
    """What a planning method gets: the checkpoint (a decoder), the tensors that it plans for with its own options
    (`tasks`), what other steps do (`others`), token ids [samples, tokens] and a folder for what memory can't hold.
    """

    checkpoint: Checkpoint
    recipe: Recipe
    tasks: Tasks
    others: Tasks
    windows: torch.Tensor
    scratch: Path


class Planned(msgspec.Struct, frozen=True):
    """Steps that take the place of a planning one, and why: `summary` is for people and programs that ask later."""

    steps: list[Step]
    summary: Mapping[str, Any]


class Planning(msgspec.Struct, frozen=True):
    """What an artefact says of its planning: the recipe that was asked for, and the summary."""

    recipe: Recipe
    summary: Mapping[str, Any]


class PlannedRecipe(msgspec.Struct, frozen=True):
    """A recipe of steps that compress or prepare only, with the summary of its planning step."""

    recipe: Recipe
    summary: Mapping[str, Any]
    schema: int = SCHEMA


def planned_recipe(
    checkpoint: Checkpoint, recipe: Recipe, tasks: Tasks, windows: torch.Tensor, folder: Path
) -> PlannedRecipe | None:
    """The recipe with its planning step carried out, None if it has none. Kept in `folder` for a run that goes on."""
    planning = [index for index, step in enumerate(recipe.steps) if hasattr(load_method(step.method), "plan_steps")]
    if not planning:
        return None
    if (folder / PLAN).is_file():
        return read_json(folder / PLAN, PlannedRecipe)
    (index,) = planning  # `plan` refuses a second
    own = {name: task for name, task in tasks.items() if task.resolved.step == index}
    others = {name: task for name, task in tasks.items() if name not in own}
    with _scratch(folder) as scratch:
        request = PlanRequest(checkpoint, recipe, own, others, windows, scratch)
        planned: Planned = load_method(recipe.steps[index].method).plan_steps(request)
    steps = [*recipe.steps[:index], *planned.steps, *recipe.steps[index + 1 :]]
    result = PlannedRecipe(msgspec.structs.replace(recipe, steps=steps), planned.summary)
    write_json(folder / PLAN, result)
    return result


@contextmanager
def _scratch(folder: Path) -> Iterator[Path]:
    """A folder that is gone afterwards; what a killed run left of it goes first."""
    scratch = folder / SCRATCH
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir()
    try:
        yield scratch
    finally:
        shutil.rmtree(scratch)
