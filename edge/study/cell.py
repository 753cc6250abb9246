"""What a study measures: its settings, one cell per way to make the model small, and what names a cell's results."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import msgspec

from edge.core.errors import UsageError
from edge.core.files import SCHEMA
from edge.core.plugins import METHODS
from edge.core.recipe import Calibration, Options, Recipe, Rule, Step, load_recipe
from edge.study import peers

ORIGINAL = "float32"
HeadBits = int | Literal["same"]
Kind = Literal["original", "method", "recipe", "peer"]


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """What all cells of a study have in common. Digests stand for the files, wherever they lie.

    text is what perplexity is measured on, its first `max_bytes`; calibration_text what calibrated methods see. tasks:
    names known to lm-eval, `task_limit` documents of each at most. versions: of what decides the results.
    """

    model: str
    model_sha256: str
    text: str
    text_sha256: str
    max_bytes: int | None = None
    context_length: int | None = None
    calibration_text: str | None = None
    calibration_sha256: str | None = None
    calibration: Calibration = Calibration()
    group_size: int = 64
    head_bits: HeadBits = 8
    tasks: list[str] = []
    task_limit: int | None = None
    speed: bool = True
    prompt_tokens: int = 64
    generated_tokens: int = 32
    threads: int = 0
    keep_models: bool = False
    versions: dict[str, str] = {}


class Cell(msgspec.Struct, frozen=True, kw_only=True):
    """One row of the table. method and bits are empty for recipes; a peer has `toolkit` and `format` and no recipe."""

    label: str
    kind: Kind
    method: str = ""
    bits: int | None = None
    recipe: Recipe | None = None
    toolkit: str = ""
    format: str = ""


class Job(msgspec.Struct, frozen=True):
    """What the process of a cell reads."""

    cell: Cell
    settings: Settings
    schema: int = SCHEMA


def digest(cell: Cell, settings: Settings) -> str:
    """Hex SHA-256 of all that decides a cell's figures, and of nothing that only decides which of them are taken."""
    taken = {"model", "text", "calibration_text", "tasks", "speed", "keep_models"}
    decisive = {key: value for key, value in msgspec.structs.asdict(settings).items() if key not in taken}
    said = msgspec.json.encode([msgspec.structs.replace(cell, label=""), decisive], order="sorted")
    return hashlib.sha256(said).hexdigest()


def folder_of(cell: Cell, settings: Settings, root: Path) -> Path:
    """Where a cell's results lie: readable, and another one for other inputs."""
    slug = re.sub(r"[^a-z0-9.]+", "-", cell.label.lower()).strip("-")
    return root / "cells" / f"{slug}-{digest(cell, settings)[:8]}"


def cells_of(
    methods: Sequence[str], bits: Sequence[int], recipes: Sequence[str], peers_asked: Sequence[str], settings: Settings
) -> list[Cell]:
    """The original, methods by bits, recipes, peers. Raises `UsageError` for a name that nothing has."""
    found = [Cell(label=ORIGINAL, kind="original")]
    for name in methods:
        modules = [METHODS.load(part) for part in name.split("+")]
        fixed = not any("bits" in module.Options.__struct_fields__ for module in modules if hasattr(module, "compress"))
        for width in [None] if fixed else bits:
            label = name if width is None else f"{name} {width} bits"
            recipe = recipe_of(name, width, settings)
            found.append(Cell(label=label, kind="method", method=name, bits=width, recipe=recipe))
    for name in recipes:
        recipe = load_recipe(name)
        label = f"recipe {recipe.name if recipe.name != 'custom' else Path(name).stem}"
        calibration = msgspec.structs.replace(recipe.calibration, text=None)
        found.append(Cell(label=label, kind="recipe", recipe=msgspec.structs.replace(recipe, calibration=calibration)))
    for toolkit, format in peers.chosen(peers_asked):
        found.append(Cell(label=f"{toolkit} {format}", kind="peer", toolkit=toolkit, format=format))
    _refuse_twice([cell.label for cell in found])
    return found


def _refuse_twice(labels: Sequence[str]) -> None:
    for label in labels:
        if labels.count(label) > 1:
            raise UsageError("study.twice", f"'{label}' is there twice", "name each once, and give recipes other names")


def recipe_of(name: str, bits: int | None, settings: Settings) -> Recipe:
    """A recipe for the matrices of the layers, with the embedding and the head at `head_bits`, round to nearest.

    name: a method, or several joined by `+`, such as `rotate+gptq`, of which one compresses and others prepare. With
    head bits `same` that one takes the head too, and the embedding where it can.
    """
    parts = name.split("+")
    compressing = [part for part in parts if hasattr(METHODS.load(part), "compress")]
    if not compressing:
        hint = f"name what compresses as well, such as {name}+gptq"
        raise UsageError("study.prepares_only", f"{name} prepares a model and compresses nothing", hint)
    main = compressing[-1]
    apart = [Rule(module="embedding", exclude=True), Rule(module="head", exclude=True)]
    calibrated = METHODS.load(main).CALIBRATED
    same = settings.head_bits == "same"
    rules = apart if not same else apart[:1] if calibrated else []
    steps = [Step(part, _options(part, bits, settings.group_size), rules if part == main else []) for part in parts]
    head = bits or 8 if settings.head_bits == "same" else settings.head_bits
    if rules:
        steps.append(Step("rtn", {"bits": head, "group_size": settings.group_size}))
    said = name if bits is None else f"{name} {bits} bits"
    return Recipe(steps, name=said, calibration=settings.calibration)


def _options(method: str, bits: int | None, group_size: int) -> Options:
    """Of those asked for, the ones that the method knows."""
    known = METHODS.load(method).Options.__struct_fields__
    asked: dict[str, Any] = {"bits": bits, "group_size": group_size}
    return {key: value for key, value in asked.items() if key in known and value is not None}
