"""Calibration: text to token windows, hidden states that walk through the decoder one layer at a time."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec
import torch
from torch import nn
from torch.utils._pytree import tree_map_only

from edge.compress.method import Inputs, InputStatistics
from edge.core.console import info
from edge.core.errors import UsageError
from edge.core.recipe import Calibration
from edge.models.spec import DecoderSpec
from edge.models.tokenizer import tokenizer_of


class CalibrationText(msgspec.Struct, frozen=True):
    """Text that was read, and its digest."""

    text: str
    sha256: str


def read_text(calibration: Calibration, given: Path | None) -> CalibrationText:
    """The text that calibrates: `given`, or the file that the recipe names. Raises `UsageError` without one."""
    path = given or (Path(calibration.text) if calibration.text else None)
    if path is None:
        hint = "give a plain text file: --calibration-text FILE, or `text` under [calibration] in the recipe"
        raise UsageError("calibration.missing", "this recipe needs calibration text", hint)
    try:
        raw = path.read_bytes()
        return CalibrationText(raw.decode(), hashlib.sha256(raw).hexdigest())
    except (OSError, UnicodeDecodeError) as error:
        hint = "give a plain text file in UTF-8"
        raise UsageError("calibration.unreadable", f"can't read {path} as text: {error}", hint) from error


def token_windows(text: str, tokenizer_folder: Path, calibration: Calibration, context_length: int) -> torch.Tensor:
    """Token ids [samples, sequence_length]: windows spread evenly over the text, fewer if it is too short for all."""
    length = min(calibration.sequence_length, context_length)
    tokens = torch.tensor(tokenizer_of(tokenizer_folder)(text)["input_ids"])
    samples = min(calibration.samples, len(tokens) // length)
    if samples < 1:
        message = f"the calibration text has {len(tokens)} tokens; one window needs {length}"
        raise UsageError("calibration.short", message, "give a longer text, or a shorter `sequence_length`")
    if samples < calibration.samples:
        info(f"The calibration text is short: {samples} windows of {length} tokens, not {calibration.samples}")
    starts = torch.linspace(0, len(tokens) - length, samples).long()
    return torch.stack([tokens[start : start + length] for start in starts.tolist()])


class HiddenStates:
    """What enters the next decoder layer: float32 [1, tokens, hidden] for every window.

    Layers run on the weights that they hold at that moment, so that what is compressed already is what later layers
    see. Activations stay float here even for recipes with int8 activations: the weights' error is what a method fits.

    `originals` are the states of the model that nothing is done to, None unless a method compares with them: first what
    enters the layer, and after `advance_originals` what should leave it.
    """

    def __init__(self, model: nn.Module, spec: DecoderSpec, windows: torch.Tensor) -> None:
        """`model` has its embeddings, its layers may be on the meta device: they are not run yet."""
        self.states: list[torch.Tensor] = []
        self._arguments: list[tuple[tuple[Any, ...], dict[str, Any]]] = []
        base, layers = model.get_submodule(spec.base_path), model.get_submodule(spec.layers_path)
        final_norm = model.get_submodule(spec.final_norm.name)
        model.set_submodule(spec.final_norm.name, nn.Identity())
        for layer in layers:
            layer.forward = self._catch
        with torch.no_grad():
            for window in windows:
                self._arguments.clear()
                base(input_ids=window[None], use_cache=False)
        for layer in layers:
            del layer.forward
        model.set_submodule(spec.final_norm.name, final_norm)
        self.originals: list[torch.Tensor] | None = None

    def _catch(self, states: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        """Stands in for every layer: keeps what enters the first and how each is called (all windows alike)."""
        if not self._arguments:
            self.states.append(states)
        self._arguments.append((args, kwargs))
        return states

    @torch.no_grad()
    def advance(self, index: int, layer: nn.Module) -> None:
        """Run `layer` on all windows; its outputs are the new states."""
        self._advance(self.states, index, layer)

    @torch.no_grad()
    def advance_originals(self, index: int, layer: nn.Module) -> None:
        """Run `layer`, with the weights of the original, on `originals` where they are kept."""
        if self.originals is not None:
            self._advance(self.originals, index, layer)

    def _advance(self, states: list[torch.Tensor], index: int, layer: nn.Module) -> None:
        for window, state in enumerate(states):
            states[window] = self.run(index, layer, state)

    @torch.no_grad()
    def inputs_of(self, index: int, layer: nn.Module, module: nn.Module, width: int) -> Inputs:
        """What `module`, somewhere inside `layer`, gets to see. The layer runs only as far as `module`."""
        statistics = InputStatistics(width)

        def collect(_: nn.Module, args: tuple[torch.Tensor, ...]) -> None:
            statistics.add(args[0])
            raise _Reached

        handle = module.register_forward_pre_hook(collect)
        try:
            for state in self.states:
                with _until_reached():
                    self.run(index, layer, state)
        finally:
            handle.remove()
        return statistics.inputs()

    @torch.no_grad()
    def inputs_of_head(self, final_norm: nn.Module) -> Inputs:
        """What the head sees, once the states have left the last layer."""
        statistics = InputStatistics(self.states[0].shape[-1])
        for state in self.states:
            statistics.add(final_norm(state))
        return statistics.inputs()

    def run(self, index: int, layer: Callable[..., Any], states: torch.Tensor) -> torch.Tensor:
        """What leaves `layer` for states [windows, tokens, hidden], which lie where the layer does."""
        args, kwargs = tree_map_only(torch.Tensor, lambda tensor: tensor.to(states.device), self._arguments[index])
        out = layer(states, *args, **kwargs)
        return out[0] if isinstance(out, tuple) else out


class _Reached(Exception):
    """The module whose inputs are wanted was reached: the rest of the layer needn't run."""


@contextmanager
def _until_reached() -> Iterator[None]:
    try:
        yield
    except _Reached:
        return
