"""Recipes: ordered steps, each a method with options and rules, and what they resolve to for every tensor.

    schema = 1
    name = "int4-gptq"
    [[steps]]
    method = "gptq"
    options = {bits = 4, group_size = 64}
    rules = [{module = "embedding", exclude = true}, {name = "*.down_proj", options = {bits = 8}}]
    [[steps]]
    method = "rtn"
    options = {bits = 4, group_size = 64}

A step takes every tensor that no earlier step took and that no rule of its own excludes. Rules match by name before
module kind; among equals the first wins. An embedding that isn't the head too is passed over by methods that need a
matrix's inputs. A step whose method only prepares (`edge methods`) takes no tensors: it
changes the weights, not the function, of the layers whose matrices it is for, before they are compressed.
"""

from __future__ import annotations

import fnmatch
import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal

import msgspec

from edge.core.errors import UsageError, nearest
from edge.core.files import SCHEMA

ModuleKind = Literal["linear", "embedding", "head"]
Options = dict[str, Any]


class Rule(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """Changes a step for the tensors it matches: by glob over the tensor's name, or by module kind."""

    name: str | None = None
    module: ModuleKind | None = None
    exclude: bool = False
    options: Options = msgspec.field(default_factory=dict)

    def __post_init__(self) -> None:
        if (self.name is None) == (self.module is None):
            raise ValueError("a rule matches by either `name` or `module`")


class Step(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """One method over the model. `options` are the method's own, checked by the method."""

    method: str
    options: Options = msgspec.field(default_factory=dict)
    rules: list[Rule] = msgspec.field(default_factory=list)

    def rule_for(self, name: str, kind: ModuleKind) -> Rule | None:
        """The rule that decides about a tensor: name rules before module rules, first match wins."""
        named = (rule for rule in self.rules if rule.name is not None and fnmatch.fnmatchcase(name, rule.name))
        kinds = (rule for rule in self.rules if rule.module == kind)
        return next(named, None) or next(kinds, None)


class Calibration(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """Text that calibrated methods see: `samples` windows of `sequence_length` tokens, spread evenly over the file.

    training_samples: windows that methods see which train the whole model; by default as many.
    """

    text: str | None = None
    samples: int = 64
    training_samples: int | None = None
    sequence_length: int = 512


class Recipe(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """What is done to a model, in order. `activations` is what quantized matmuls see at run time: int8, float, or for
    evaluation only 4 bits with the first blocks of channels at 8 (`fmpq`).
    """

    steps: list[Step]
    name: str = "custom"
    description: str = ""
    schema: int = SCHEMA
    seed: int = 0
    activations: Literal["a8", "a4", "f32"] = "a8"
    calibration: Calibration = msgspec.field(default_factory=Calibration)

    def resolve(
        self, tensors: Iterable[tuple[str, ModuleKind]], steps: Iterable[int] | None = None
    ) -> dict[str, Resolved]:
        """The answer for every tensor: which step takes it, with which options. A tensor no step takes is left out.

        steps: indices of those that are asked, in order; by default all.
        """
        asked = list(enumerate(self.steps) if steps is None else ((index, self.steps[index]) for index in steps))
        answers: dict[str, Resolved] = {}
        for name, kind in tensors:
            for index, step in asked:
                rule = step.rule_for(name, kind)
                if rule is not None and rule.exclude:
                    continue
                options = {**step.options, **(rule.options if rule else {})}
                answers[name] = Resolved(step=index, method=step.method, options=options, module=kind)
                break
        return answers


class Resolved(msgspec.Struct, frozen=True):
    """One tensor's answer, as it is written into the artefact."""

    step: int
    method: str
    options: Options
    module: ModuleKind


def parse_recipe(text: str, origin: str) -> Recipe:
    """Read a recipe from TOML. Unknown keys are refused with the nearest right one."""
    try:
        table = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise UsageError(
            "recipe.syntax", f"{origin}: {error}", "recipes are TOML: see `edge recipes --show int4`"
        ) from error
    _refuse_unknown_keys(table, origin)
    try:
        recipe = msgspec.convert(table, Recipe)
    except (msgspec.ValidationError, ValueError) as error:
        raise UsageError(
            "recipe.invalid", f"{origin}: {error}", "see `edge recipes --show int4` for a whole one"
        ) from error
    if recipe.schema > SCHEMA:
        raise UsageError("recipe.newer", f"{origin} has schema {recipe.schema}", f"this edge reads up to {SCHEMA}")
    if not recipe.steps:
        raise UsageError("recipe.empty", f"{origin} has no steps", "add a [[steps]] table with a method")
    return recipe


def _refuse_unknown_keys(table: Mapping[str, Any], origin: str) -> None:
    steps = [s for s in table.get("steps", []) if isinstance(s, dict)]
    rules = [r for s in steps for r in s.get("rules", []) if isinstance(r, dict)]
    calibration = table.get("calibration", {})
    levels: list[tuple[str, type[msgspec.Struct], Mapping[str, Any]]] = [("", Recipe, table)]
    levels += [("steps.", Step, s) for s in steps] + [("steps.rules.", Rule, r) for r in rules]
    if isinstance(calibration, dict):
        levels.append(("calibration.", Calibration, calibration))
    for prefix, type_, keys in levels:
        known = type_.__struct_fields__
        for key in keys:
            if key not in known:
                raise UsageError("recipe.key", f"{origin}: unknown key '{prefix}{key}'", nearest(key, known))


def check_options(options: Options, type_: type[msgspec.Struct], origin: str) -> Any:
    """Options of a method as its own struct; unknown names are refused with the nearest right one."""
    for key in options:
        if key not in type_.__struct_fields__:
            raise UsageError(
                "recipe.option", f"{origin}: unknown option '{key}'", nearest(key, type_.__struct_fields__)
            )
    try:
        return msgspec.convert(options, type_)
    except (msgspec.ValidationError, ValueError) as error:
        raise UsageError("recipe.option", f"{origin}: {error}", "see `edge methods` for what it takes") from error


def presets() -> dict[str, Path]:
    """Recipes that come with edge, by name."""
    folder = Path(__file__).parent.parent / "recipes"
    return {path.stem: path for path in sorted(folder.glob("*.toml"))}


def load_recipe(name_or_path: str) -> Recipe:
    """A preset by name or a user's own TOML by path."""
    path = Path(name_or_path)
    if path.suffix == ".toml" or path.exists():
        if not path.is_file():
            raise UsageError("recipe.missing", f"no recipe file {path}", "give a TOML file or a preset: `edge recipes`")
        return parse_recipe(path.read_text(), str(path))
    known = presets()
    if name_or_path not in known:
        raise UsageError("recipe.unknown", f"no recipe is called '{name_or_path}'", nearest(name_or_path, known))
    return parse_recipe(known[name_or_path].read_text(), name_or_path)
