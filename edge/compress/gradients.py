"""Gradients of a model's weights with a layer in memory at a time: one walk forwards, one backwards.

The loss is on labels that the model itself draws: the expectation of a gradient's products is then the Fisher
information; with the text's own labels it would not be.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from torch import nn

from edge.compress.calibrate import HiddenStates
from edge.compress.methods._trial import HEAD_ROWS, Head, OneLayerModel
from edge.core.console import Ticker, progress
from edge.models.checkpoint import Checkpoint
from edge.models.safetensors_store import SafetensorsStore
from edge.models.spec import Layer, Linear

BACKWARD, HEAD = 3, 6  # ticks of a layer on the way back and of the head: a layer on the way there has one
Observer = Callable[[torch.Tensor], None]
HeadObserver = Callable[[torch.Tensor, torch.Tensor], None]


class GradientWalk:
    """Runs `windows` [samples, tokens] through the model and back. Subclasses say what becomes of the gradients.

    scratch: a folder for the states at the boundaries of the layers, which wait there for the way back. seed: of the
    labels.
    """

    def __init__(self, checkpoint: Checkpoint, windows: torch.Tensor, *, scratch: Path, seed: int) -> None:
        self.loader = OneLayerModel(checkpoint)
        self.spec = self.loader.spec
        self.windows, self.scratch, self.seed = windows, scratch, seed

    def ticks(self) -> int:
        """Steps of the progress bar."""
        return (1 + BACKWARD) * len(self.spec.layers) + HEAD

    def walk(self, tick: Ticker) -> None:
        """All the way there and back."""
        walk = self.loader.start(self.windows)
        for index in range(len(self.spec.layers)):
            np.save(self._boundary(index), torch.cat(walk.states).numpy())
            with self.loader.layer(index) as module:
                walk.advance(index, module)
            tick()
        gradients = self._head(walk)
        tick(HEAD)
        for index, layer in reversed(list(enumerate(self.spec.layers))):
            with self.loader.layer(index) as module:
                self._layer(walk, index, layer, module, gradients)
            self._boundary(index).unlink()
            tick(BACKWARD)
        self.at_embedding(gradients)

    def head_observer(self, head: Head) -> HeadObserver | None:
        """What gets a window's logit gradients [tokens, vocabulary] with the states [tokens, hidden], in parts."""
        return None

    def after_window_of_head(self) -> None:
        """A window has gone through the head."""

    def at_head(self, walk: HiddenStates, norm: nn.Module, head: Head) -> None:
        """All windows have; `walk` has what leaves the last layer."""

    def observers(self, walk: HiddenStates, index: int, layer: Layer, module: nn.Module) -> Mapping[Linear, Observer]:
        """What gets each window's gradient [out_features, in_features] by a matrix of a layer."""
        raise NotImplementedError

    def after_layer(self, index: int) -> None:
        """All windows have run back through it."""

    def at_embedding(self, gradients: list[torch.Tensor]) -> None:
        """gradients: at what enters the first layer, [1, tokens, hidden] for each window."""

    def _boundary(self, index: int) -> Path:
        return self.scratch / f"states-{index}.npy"

    def _head(self, walk: HiddenStates) -> list[torch.Tensor]:
        """Gradients at what leaves the last layer."""
        norm, head = self.loader.final_norm(), Head(self.loader.checkpoint)
        generator = torch.Generator().manual_seed(self.seed)
        observe = self.head_observer(head)
        gradients = []
        for states in walk.states:
            gradients.append(loss_gradient(norm, head, states, generator, observe))
            self.after_window_of_head()
        with torch.no_grad():
            self.at_head(walk, norm, head)
        return gradients

    def _layer(
        self, walk: HiddenStates, index: int, layer: Layer, module: nn.Module, gradients: list[torch.Tensor]
    ) -> None:
        """`gradients` at the layer's outputs become those at its inputs."""
        walk.states = list(torch.from_numpy(np.load(self._boundary(index))).split(1))
        with torch.no_grad():
            observers = self.observers(walk, index, layer, module)
        with self._observed(observers):
            for window, state in enumerate(walk.states):
                entering = state.requires_grad_()
                walk.run(index, module, entering).backward(gradients[window])
                gradients[window] = entering.grad
        self.after_layer(index)

    @contextmanager
    def _observed(self, observers: Mapping[Linear, Observer]) -> Iterator[None]:
        """While it is open, observers get the gradients of every window that runs back."""

        def hook(linear: Linear, observer: Observer) -> torch.utils.hooks.RemovableHandle:
            def forward(_: nn.Module, args: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
                inputs = args[0].detach().flatten(0, -2)
                output.register_hook(lambda gradient: observer(gradient.flatten(0, -2).T @ inputs))

            return self.loader.model.get_submodule(linear.name).register_forward_hook(forward)

        handles = [hook(linear, observer) for linear, observer in observers.items()]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()


def loss_gradient(
    norm: nn.Module,
    head: Head,
    states: torch.Tensor,
    generator: torch.Generator,
    observe: HeadObserver | None = None,
) -> torch.Tensor:
    """Gradient of the summed loss, on labels that the model draws, at states [1, tokens, hidden] before the norm."""
    states = states.detach().requires_grad_()
    normed = norm(states)
    parts = normed.detach()[0].split(HEAD_ROWS)
    gradient = torch.cat([_logit_gradient(head, rows, generator, observe) for rows in parts])
    normed.backward(gradient[None])
    assert states.grad is not None
    return states.grad


def _logit_gradient(
    head: Head, states: torch.Tensor, generator: torch.Generator, observe: HeadObserver | None
) -> torch.Tensor:
    """The same after the norm, for [tokens, hidden]: softmax less the label, through the cap, through the head."""
    logits = head.logits(states)
    slope = 1 - (logits / head.spec.logit_softcap).square() if head.spec.logit_softcap else None
    probabilities = logits.softmax(-1)
    labels = torch.multinomial(probabilities, 1, generator=generator)
    error = probabilities.scatter_add_(-1, labels, torch.full(labels.shape, -1.0))
    error = error if slope is None else error * slope
    if observe is not None:
        observe(error, states)
    return error @ head.weight


class SquaredGradients(GradientWalk):
    """Sums over windows of the squared gradients of the weights `names`, a file of safetensors for each layer.

    A window's gradient is that of its summed loss. An embedding that is the head as well counts as two matrices with
    the same values: what the two do to each other is left out.
    """

    def __init__(
        self, checkpoint: Checkpoint, names: set[str], windows: torch.Tensor, *, folder: Path, scratch: Path, seed: int
    ) -> None:
        super().__init__(checkpoint, windows, scratch=scratch, seed=seed)
        self.names, self.folder = names, folder
        self.squares: dict[str, torch.Tensor] = {}
        self._window: torch.Tensor | None = None
        self._head_name = f"{self.spec.embedding if self.spec.tied else self.spec.head}.weight"
        self._ends: dict[str, torch.Tensor] = {}

    def head_observer(self, head: Head) -> HeadObserver | None:
        if self._head_name not in self.names:
            return None
        self._window, self._ends[self._head_name] = torch.zeros_like(head.weight), torch.zeros_like(head.weight)

        def add(error: torch.Tensor, states: torch.Tensor) -> None:
            assert self._window is not None
            self._window.addmm_(error.T, states)

        return add

    def after_window_of_head(self) -> None:
        if self._window is not None:
            self._ends[self._head_name] += self._window.square_()
            self._window.zero_()

    def at_head(self, walk: HiddenStates, norm: nn.Module, head: Head) -> None:
        self._window = None

    def observers(self, walk: HiddenStates, index: int, layer: Layer, module: nn.Module) -> Mapping[Linear, Observer]:
        self.squares = {}
        linears = [linear for group in layer.linears() for linear in group if linear.weight in self.names]
        return {linear: self._adder(linear.weight) for linear in linears}

    def _adder(self, name: str) -> Observer:
        def add(gradient: torch.Tensor) -> None:
            squared = gradient.square()
            self.squares[name] = self.squares[name] + squared if name in self.squares else squared

        return add

    def after_layer(self, index: int) -> None:
        save_file(self.squares, self.folder / f"{index}.safetensors")

    def at_embedding(self, gradients: list[torch.Tensor]) -> None:
        name = f"{self.spec.embedding}.weight"
        if name in self.names:
            for tokens, gradient in zip(self.windows, gradients, strict=True):
                kept, place = tokens.unique(return_inverse=True)
                rows = torch.zeros(len(kept), gradient.shape[-1]).index_add_(0, place, gradient[0])
                known = self._ends.setdefault(name, torch.zeros(self.spec.vocab_size, gradient.shape[-1]))
                known[kept] += (rows * self.spec.embedding_scale).square_()
        save_file(self._ends, self.folder / "ends.safetensors")


def squared_gradients(
    checkpoint: Checkpoint, names: set[str], windows: torch.Tensor, folder: Path, seed: int
) -> SafetensorsStore:
    """Squared gradients by the weights `names`, float32 [out_features, in_features], in files under `folder`.

    Kept there for a run that goes on where it was.
    """
    if not folder.is_dir():
        growing = folder.with_name(f"{folder.name}-growing")
        shutil.rmtree(growing, ignore_errors=True)
        scratch = growing / "scratch"
        scratch.mkdir(parents=True)
        walk = SquaredGradients(checkpoint, names, windows, folder=growing, scratch=scratch, seed=seed)
        with progress("Finding out which weights matter", walk.ticks()) as tick:
            walk.walk(tick)
        scratch.rmdir()
        growing.rename(folder)
    return SafetensorsStore(sorted(folder.glob("*.safetensors")))
