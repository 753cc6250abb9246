"""The compression pipeline: layer by layer, resumable, in bounded memory.

The work is cut into units: the embeddings, every decoder layer, the rest (final norm and head). A unit's weights are
read, compressed and written to a file of their own before the next unit is touched. Where a method needs calibration,
hidden states walk along: a layer's inputs come from layers that are compressed already.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import msgspec
import torch

from edge import __version__
from edge.compress.calibrate import CalibrationText, read_text, token_windows
from edge.compress.finish import Finished, TaskLoss
from edge.compress.gradients import squared_gradients
from edge.compress.layerwise import LayerwiseRun
from edge.compress.method import Gradients, Inputs, Plan, plan, rewritten
from edge.compress.partial import PartialModel, UnitTensors, job_key
from edge.compress.planning import PLAN, Planning, planned_recipe
from edge.core.cache import CacheFormat
from edge.core.console import Ticker, progress
from edge.core.errors import EdgeError, UsageError
from edge.core.files import SCHEMA, atomic_folder, refuse_existing, write_json
from edge.core.recipe import Recipe, load_recipe
from edge.core.weight import Compressed, CompressedTensor
from edge.models.checkpoint import Checkpoint, open_checkpoint
from edge.models.safetensors_store import SafetensorsStore
from edge.models.torch_model import empty_model

GRADIENTS = ".gradients"


def compress(
    source: str | Path,
    recipe: Recipe | str,
    output: Path,
    *,
    calibration_text: Path | None = None,
    force: bool = False,
    task_loss: TaskLoss | None = None,
) -> Path:
    """Compress the checkpoint at `source` and write a Hugging Face folder; return it.

    recipe: a preset's name, a TOML file or a `Recipe`. calibration_text goes before the file that the recipe names.
    task_loss: what training steps lower in the place of next-token cross entropy; an interrupted run knows its name.
    A run that was interrupted goes on where it was when it is started again with the same inputs. Raises `EdgeError`.
    """
    recipe = recipe if isinstance(recipe, Recipe) else load_recipe(recipe)
    output = Path(output)
    refuse_existing(output, force=force)
    checkpoint = open_checkpoint(source)
    if checkpoint.compressed:
        raise EdgeError("compress.twice", f"{source} is compressed already", "start from the original checkpoint")
    original, checkpoint = checkpoint, rewritten(checkpoint, recipe)
    planned = plan(recipe, checkpoint.spec.matrices(), tied=bool(checkpoint.spec.tied_copies))
    if planned.needs_text and checkpoint.spec.task != "decoder":
        message = (
            f"{recipe.name} needs calibration, which walks through decoders only: this is {checkpoint.spec.model_type}"
        )
        raise EdgeError("compress.calibration", message, "use a recipe without calibration, such as int4 or int8")
    _refuse_missing_device(planned)
    text = read_text(recipe.calibration, calibration_text) if planned.needs_text else None
    job = Job(original, checkpoint, recipe, planned, text, task_loss)
    with atomic_folder(output, force=force, resume=True) as folder:
        job.run(folder)
    return output


def _refuse_missing_device(planned: Plan) -> None:
    """Now, not when the step that wants it has its turn."""
    options = [task.options for task in planned.tasks.values()] + [options for _, _, options in planned.finishing]
    if any(getattr(own, "device", "cpu") == "cuda" for own in options) and not torch.cuda.is_available():
        raise UsageError("compress.device", "torch sees no CUDA device here", 'leave device = "cuda" out')


@dataclass
class Job:
    """One compression of one checkpoint, which is `original` as the recipe's first steps rewrote it."""

    original: Checkpoint
    checkpoint: Checkpoint
    recipe: Recipe
    plan: Plan
    text: CalibrationText | None
    task_loss: TaskLoss | None = None
    planning: Planning | None = None
    gradients: SafetensorsStore | None = None

    @cached_property
    def units(self) -> list[list[str]]:
        """Names of the tensors of every unit, in the order of the data."""
        return self.checkpoint.spec.units(self.checkpoint.names())

    def run(self, folder: Path) -> None:
        """Fill `folder`, leaving out the units that are there."""
        partial = PartialModel(folder, self._key(), len(self.units))
        self.checkpoint.save_tokenizer(folder)
        windows = None
        if self.text is not None:
            windows = self._windows(self.text, folder, self.recipe.calibration.samples)
            self._carry_out_planning(folder, windows)
            self._find_gradients(folder, windows)
        with progress(f"Compressing to {self.recipe.name}", len(self.units)) as tick:
            if windows is None or not self.plan.calibrated:
                self._run_plain(partial, tick)
            else:
                LayerwiseRun(self, partial, windows).run(tick)
        if self.text is not None and windows is not None:
            self._finish(partial, self.text, windows)
        formats = partial.cache_formats()
        self._write_config(folder, partial.close(), formats)
        (folder / PLAN).unlink(missing_ok=True)
        shutil.rmtree(folder / GRADIENTS, ignore_errors=True)

    def _windows(self, text: CalibrationText, folder: Path, samples: int) -> torch.Tensor:
        calibration = msgspec.structs.replace(self.recipe.calibration, samples=samples)
        return token_windows(text.text, folder, calibration, self.checkpoint.spec.context_length)

    def _finish(self, partial: PartialModel, text: CalibrationText, windows: torch.Tensor) -> None:
        """What follows once all units are there, step by step; a step that is done leaves a mark."""
        many = self.recipe.calibration.training_samples
        marks = {index: partial.folder / f".finished-{index}" for index, _, _ in self.plan.finishing}
        for index, method, options in self.plan.finishing:
            if marks[index].is_file():
                continue
            own = {name: task.options for name, task in self.plan.tasks.items() if task.resolved.step == index}
            seed, folder = self.recipe.seed, partial.folder
            seen = self._windows(text, folder, many) if many and getattr(method, "TRAINED", False) else windows
            finished = Finished(self.checkpoint, self.original, seen, folder, seed, own, self, partial)
            method.finish(finished, options)
            marks[index].touch()
        for mark in marks.values():
            mark.unlink()

    def _carry_out_planning(self, folder: Path, windows: torch.Tensor) -> None:
        """From here on the recipe and the plan have the steps that a planning one became."""
        found = planned_recipe(self.checkpoint, self.recipe, self.plan.tasks, windows, folder)
        if found is not None:
            self.planning = Planning(self.recipe, found.summary)
            self.recipe = found.recipe
            spec = self.checkpoint.spec
            self.plan = plan(self.recipe, spec.matrices(), tied=bool(spec.tied_copies))
            _refuse_missing_device(self.plan)

    def _find_gradients(self, folder: Path, windows: torch.Tensor) -> None:
        """Those that steps ask for, before anything is compressed."""
        asked = self.plan.fisher
        if any(asked & set(tasks) for tasks in self.plan.preparations):
            message = f"{self.recipe.name} changes weights before they are compressed: their gradients are others then"
            raise UsageError("recipe.gradients", message, 'leave the preparing step out, or `importance = "fisher"`')
        if asked:
            found = squared_gradients(self.checkpoint, asked, windows, folder / GRADIENTS, self.recipe.seed)
            self.gradients = found

    def _run_plain(self, partial: PartialModel, tick: Ticker) -> None:
        for unit in range(len(self.units)):
            self.plain_unit(unit, partial)
            tick()

    def plain_unit(self, unit: int, partial: PartialModel, inputs: Inputs | None = None) -> None:
        """Write a unit that is no decoder layer, unless it is there. inputs: what its matrix sees in calibration."""
        if partial.finished(unit):
            return
        tensors = UnitTensors()
        for name in self.units[unit]:
            if name in self.plan.tasks:
                weight = torch.from_numpy(self.checkpoint.matrix(name).dequantize())
                tensors.add(self.compress_matrix(name, weight, inputs))
            else:
                tensors.stored[name] = self.checkpoint.tensor(name)
        partial.write(unit, tensors)
        self.checkpoint.release()

    def compress_matrix(self, name: str, weight: torch.Tensor, inputs: Inputs | None) -> CompressedTensor:
        """A matrix by its own method. inputs: what it sees in calibration, where that is asked for."""
        task = self.plan.tasks[name]
        known = Gradients(self.gradients.read(name)) if task.fisher and self.gradients else inputs
        return task.run(name, weight, known)

    def _key(self) -> str:
        text = self.text.sha256 if self.text else None
        resolved = {name: task.resolved for name, task in self.plan.tasks.items()}
        config = self._plain_config()
        loss = self.task_loss and f"{self.task_loss.__module__}.{self.task_loss.__qualname__}"
        return job_key(self.checkpoint.sha256, config, self.recipe, resolved, text, tool_versions(), loss)

    def _plain_config(self) -> dict[str, Any]:
        """The checkpoint's own configuration as JSON, without paths."""
        config: dict[str, Any] = msgspec.json.decode(self.checkpoint.config.to_json_string(use_diff=False))
        config.pop("_name_or_path", None)
        config["dtype"] = config.get("dtype") or "float32"
        return config

    def _write_config(self, folder: Path, encodings: dict[str, Compressed], cache: list[CacheFormat] | None) -> None:
        checkpoint = self.checkpoint
        config = self._plain_config()
        config["architectures"] = [type(empty_model(checkpoint.config, checkpoint.spec)).__name__]
        if encodings or cache is not None:
            config["quantization_config"] = {
                "quant_method": "edge",
                "schema": SCHEMA,
                "activations": self.recipe.activations,
                "encodings": encodings,
            }
        if cache is not None:
            config["quantization_config"]["kv_cache"] = cache
        config["edge"] = {
            "schema": SCHEMA,
            "recipe": self.recipe,
            "resolved": {name: task.resolved for name, task in self.plan.tasks.items()},
            "source": checkpoint.origin,
            "source_sha256": checkpoint.sha256,
            "parameters": checkpoint.parameters,
            "calibration_sha256": self.text.sha256 if self.text else None,
            "tool_versions": tool_versions(),
        }
        if self.planning is not None:
            config["edge"]["planning"] = self.planning
        write_json(folder / "config.json", config)


def tool_versions() -> dict[str, str]:
    """Versions of what decides the result."""
    import transformers

    return {"edge": __version__, "torch": str(torch.__version__), "transformers": transformers.__version__}
