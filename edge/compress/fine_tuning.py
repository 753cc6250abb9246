"""Fine-tuning of a whole model whose matrices are modules that make dense weights: the loop that methods share.

Dense weights are made without a graph; once their gradients are known, matrix after matrix is made again with one and
takes its own (Chen, Xu, Zhang, Guestrin: "Training Deep Nets with Sublinear Memory Cost", arXiv:1604.06174): whatever
a matrix saves for its gradient is in memory for one matrix at a time.

The loss is next-token cross entropy on the text or the caller's own (`task_loss`), the divergence KL(original || tuned)
of the next token's distribution (Hinton, Vinyals, Dean: "Distilling the Knowledge in a Neural Network",
arXiv:1503.02531, at temperature 1), or a mix.
"""

from __future__ import annotations

import math
import shutil
import time
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import msgspec
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save
from torch.func import functional_call

from edge.compress.finish import Finished
from edge.compress.freed_memory import keep_freed_memory
from edge.compress.joined import alike
from edge.compress.self_generated import self_generated
from edge.compress.trainable import Trainable
from edge.core.console import info, progress
from edge.core.errors import EdgeError
from edge.core.files import write_atomic
from edge.core.weight import CompressedTensor, Dense
from edge.models.spec import Spec
from edge.models.torch_model import build_model, empty_model

BETAS = 0.9, 0.95
WARM_UP = 10
WEIGHTS_TOGETHER = {"cpu": 0, "cuda": 1 << 25}  # bounds the memory of what matrices that are alike keep for gradients
NOTE_SECONDS, NOTE_SHARE = 1.0, 0.05  # at least this long between two progress notes, and at most this share for them


class Training(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """steps: of Adam, with `batch` windows of the calibration text in each.

    learning_rate: of the shares by which scales, tables' entries and norms change. All rates rise over 10 steps and
    fall as a cosine. distillation: the weight between 0 and 1 of the divergence from the original model; the rest is
    next-token cross entropy. clip: the largest norm of the gradient by dense weights, 0 for none. generated: windows
    that the original model writes itself, beside those of the text. save_minutes: a killed run repeats this much.
    compiled: layers and loss by torch.compile, which takes a minute and then pays, most of all on a GPU.
    """

    steps: int = 200
    batch: int = 4
    learning_rate: float = 1e-3
    distillation: float = 1.0
    clip: float = 0.0
    generated: int = 0
    save_minutes: float = 5.0
    device: Literal["cpu", "cuda"] = "cpu"
    arithmetic: Literal["float32", "bfloat16"] = "float32"
    compiled: bool = False

    def __post_init__(self) -> None:
        if min(self.steps, self.batch) < 1 or min(self.learning_rate, self.generated, self.clip) < 0:
            raise ValueError("`steps` and `batch` are at least 1, learning rates, `generated` and `clip` at least 0")
        if not 0 <= self.distillation <= 1:
            raise ValueError("`distillation` lies between 0 and 1")


def together(
    tensors: Mapping[str, CompressedTensor],
    training: Training,
    make: Callable[[Sequence[CompressedTensor]], Trainable],
    kinds: Mapping[str, Hashable] | None = None,
) -> list[Trainable]:
    """Compressed matrices as `make` makes them trainable: on a GPU those that are alike, and of one kind, together."""
    groups = alike(tensors.values(), kinds or {}, WEIGHTS_TOGETHER[training.device])
    return [make(group).joining(group) for group in groups]


def next_token_loss(logits: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
    """Cross entropy in nats per token of logits [windows, length, vocabulary] by the tokens [windows, length] after."""
    return F.cross_entropy(logits[:, :-1].flatten(0, 1).float(), tokens[:, 1:].flatten())


def divergence(logits: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
    """KL(wanted || answered) of the next token, in nats per token, by logits [windows, length, vocabulary]."""
    answered, wanted = (some.flatten(0, 1).float().log_softmax(-1) for some in (logits, wanted))
    return F.kl_div(answered, wanted, log_target=True, reduction="batchmean")


class FineTuning:
    """The model in training, the original where the loss needs it, and Adam's state.

    matrices: each [rows, columns] however the checkpoint stores it, or several alike on top of each other.
    rates: learning rates of parameters by the last part of their names; others have `training.learning_rate`.
    """

    def __init__(
        self, finished: Finished, training: Training, matrices: Sequence[Trainable], rates: Mapping[str, float]
    ) -> None:
        self.training, self.seed = training, finished.seed
        if training.device == "cpu":
            keep_freed_memory()
        self.task_loss = finished.task_loss or next_token_loss
        spec, device = finished.checkpoint.spec, training.device
        self.original = None
        if training.distillation or training.generated:
            self.original = build_model(finished.original).to(device)
        self.windows = self._texts(finished).to(device)
        self.model = empty_model(finished.checkpoint.config, spec)
        self.divergence = divergence
        if training.compiled:
            self._compile(spec)
        self.tied, self.transposed = spec.tied_copies, spec.transposed
        self.matrices = [matrix.to(device) for matrix in matrices]
        names = {member.name for matrix in matrices for member in matrix.members}
        self.plain = {name: tensor.to(device) for name, tensor in finished.plain().items() if name not in names}
        norms = {norm.name for layer in spec.layers for norm in (layer.input_norm, layer.mlp_norm)}
        norms.add(spec.final_norm.name)
        self.norm_gains = {
            name: torch.ones_like(tensor, requires_grad=True)
            for name, tensor in self.plain.items()
            if name.removesuffix(".weight") in norms
        }
        for name, buffer in self.model.named_buffers():
            self.plain.setdefault(name, buffer.to(device))
        self.adam = torch.optim.Adam(list(self._groups(rates)), betas=BETAS, fused=True)

    def _compile(self, spec: Spec) -> None:
        """Layers one by one: all are the same code, so that it is compiled once."""
        if self.training.device == "cpu" and not any(map(shutil.which, ("c++", "g++", "clang++"))):
            message = "`compiled` needs a C++ compiler, and there is none"
            raise EdgeError("tuning.compiler", message, "install one, such as g++, or leave `compiled` out")
        for model in filter(None, (self.model, self.original)):
            for layer in spec.layers:
                model.get_submodule(layer.name).compile()
        self.divergence = torch.compile(divergence)

    def _texts(self, finished: Finished) -> torch.Tensor:
        """Token ids [windows, tokens]."""
        if not self.training.generated or self.original is None:
            return finished.windows
        state = finished.folder / ".generated.safetensors"
        written = self_generated(self.original, finished.windows, self.training.generated, finished.seed, state)
        return torch.cat([finished.windows, written])

    def _groups(self, rates: Mapping[str, float]) -> Iterator[dict[str, Any]]:
        groups: dict[float, list[torch.Tensor]] = {}
        for name, value in self._parameters().items():
            rate = rates.get(name.rpartition(".")[2], self.training.learning_rate)
            groups.setdefault(rate, []).append(value)
        for rate, values in groups.items():
            yield {"params": values, "rate": rate}

    def _parameters(self) -> dict[str, torch.Tensor]:
        found = {f"{m.name}.{name}": value for m in self.matrices for name, value in m.named_parameters()}
        return found | {f"{name}.norm_gains": value for name, value in self.norm_gains.items()}

    def run(self, title: str, state: Path, note: Callable[[], str] = str) -> None:
        """All steps that `state` doesn't have yet. note: what progress says beside loss and speed."""
        training = self.training
        step = self.load(state)
        saved, progressing = time.monotonic(), _Progress(self.windows.shape[1] * training.batch, note)
        with progress(title, training.steps) as tick:
            tick(step)
            while step < training.steps:
                loss = self.step(step)
                step += 1
                progressing.done(loss, tick, last=step == training.steps)
                if step == training.steps or time.monotonic() - saved > 60 * training.save_minutes:
                    self.save(state, step)
                    saved = time.monotonic()
        if progressing.losses:
            first, last = progressing.losses[0], progressing.losses[-1]
            info(f"Loss on the calibration text: {first:.4f} nats at the first step, {last:.4f} at the last")

    def step(self, number: int) -> torch.Tensor:
        """One step of Adam; returns the loss in nats per token, on the device: nothing waits for it.

        A CPU takes one window at a time: gradients by dense weights are summed before they go to the parameters.
        """
        windows, steps = self._batch(number), self.training.steps
        for matrix in self.matrices:
            matrix.advance(number / steps)
        weights = self._dense()
        trained = [*self.norm_gains, *(member.name for matrix in self._trained() for member in matrix.members)]
        for name in trained:
            weights[name].requires_grad_()
        total = torch.zeros((), device=windows.device)
        for some in self._parts(windows):
            loss = self._loss(weights, some) * (len(some) / len(windows))
            loss.backward()  # type: ignore[no-untyped-call]
            total += loss.detach()
        if self.training.clip:
            torch.nn.utils.clip_grad_norm_([weights[name] for name in trained], self.training.clip)
        self._take_gradients({name: weights[name].grad for name in trained})
        for group in self.adam.param_groups:
            group["lr"] = group["rate"] * _rate(number, steps)
        self.adam.step()
        self.adam.zero_grad(set_to_none=True)
        return total

    @torch.no_grad()
    def loss(self, number: int) -> float:
        """Loss on the windows of a step, in nats per token, with the matrices as they are."""
        windows, weights = self._batch(number), self._dense()
        return sum(self._loss(weights, some).item() * len(some) / len(windows) for some in self._parts(windows))

    def _parts(self, windows: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return windows.split(1 if self.training.device == "cpu" else len(windows))

    def _batch(self, number: int) -> torch.Tensor:
        """Windows [batch, tokens] of a step: the text in an order of its own each time through; same after a resume."""
        count = len(self.windows)
        chosen = []
        for position in range(number * self.training.batch, (number + 1) * self.training.batch):
            random = torch.Generator().manual_seed(self.seed * 1_000_003 + position // count)
            chosen.append(self.windows[int(torch.randperm(count, generator=random)[position % count])])
        return torch.stack(chosen)

    def _trained(self) -> list[Trainable]:
        return [matrix for matrix in self.matrices if any(True for _ in matrix.parameters())]

    def _take_gradients(self, gradients: dict[str, torch.Tensor]) -> None:
        """From gradients by dense weights to those by parameters."""
        for name, gains in self.norm_gains.items():
            gains.grad = gradients.pop(name) * self.plain[name]
        for matrix in self._trained():
            parts = [gradients.pop(member.name) for member in matrix.members]
            turned = matrix.name in self.transposed
            gradient = torch.cat([part.T if turned else part for part in parts]) if turned or parts[1:] else parts[0]
            with torch.enable_grad():
                matrix().backward(gradient)

    @torch.no_grad()
    def _dense(self) -> dict[str, torch.Tensor]:
        """All weights of the model by name, without a graph."""
        found = dict(self.plain)
        for matrix in self.matrices:
            for member, dense in zip(matrix.members, matrix().split(matrix.members[0].shape[0]), strict=True):
                found[member.name] = dense.T if member.name in self.transposed else dense
        return found | {name: self.plain[name] * gains for name, gains in self.norm_gains.items()}

    def _loss(self, weights: dict[str, torch.Tensor], tokens: torch.Tensor) -> torch.Tensor:
        """Nats per token, for tokens [windows, length]."""
        share = self.training.distillation
        shared = {copy: weights[name] for copy, name in self.tied.items()}
        call = {"input_ids": tokens, "use_cache": False}
        with torch.autocast(self.training.device, torch.bfloat16, enabled=self.training.arithmetic == "bfloat16"):
            logits = functional_call(self.model, weights | shared, (), call, tie_weights=False).logits
            if share:
                assert self.original is not None
                with torch.no_grad():
                    wanted = self.original(**call).logits
        loss = torch.zeros((), device=tokens.device)
        if share:
            loss = share * self.divergence(logits, wanted)
        if share < 1:
            loss = loss + (1 - share) * self.task_loss(logits, tokens)
        return loss

    @torch.no_grad()
    def results(self) -> tuple[dict[str, CompressedTensor], dict[str, torch.Tensor]]:
        """Compressed matrices and plain tensors, as `Finished.replace` takes them."""
        compressed = {tensor.name: tensor for matrix in self.matrices for tensor in matrix.tensors()}
        plain = {name: (self.plain[name] * gains).cpu() for name, gains in self.norm_gains.items()}
        for name in [name for name, tensor in compressed.items() if isinstance(tensor.encoding, Dense)]:
            dense = torch.from_numpy(compressed.pop(name).dequantize())
            plain[name] = dense.T if name in self.transposed else dense
        return compressed, plain

    def store(self, finished: Finished, state: Path) -> None:
        """Write the model again, and remove what only an interrupted run needs."""
        finished.replace(*self.results())
        for left in (state, finished.folder / ".generated.safetensors"):
            left.unlink(missing_ok=True)

    def _carried(self) -> dict[str, torch.Tensor]:
        """What else the model depends on."""
        found = {f"{m.name}.{name}": value for m in self.matrices for name, value in m.carried().items()}
        return found | {f"{name}.norm": self.plain[name] for name in self.norm_gains}

    def save(self, path: Path, step: int) -> None:
        """Parameters, Adam's moments, and what parameters are relative to, after `step` steps."""
        found = {"step": torch.tensor(step)} | {f"{name}:carried": value for name, value in self._carried().items()}
        for name, value in self._parameters().items():
            state = self.adam.state[value]
            found |= {f"{name}:value": value.detach(), f"{name}:mean": state["exp_avg"]}
            found |= {f"{name}:square": state["exp_avg_sq"], f"{name}:steps": state["step"]}
        write_atomic(path, save({name: value.cpu().contiguous() for name, value in found.items()}))

    def load(self, path: Path) -> int:
        """Go on from what was saved; returns the steps that were done."""
        if not path.is_file():
            return 0
        found = load_file(path)
        for name, value in self._carried().items():
            value.copy_(found[f"{name}:carried"])
        for name, value in self._parameters().items():
            value.data.copy_(found[f"{name}:value"])
            moments = {"exp_avg": found[f"{name}:mean"], "exp_avg_sq": found[f"{name}:square"]}
            moments["step"] = found[f"{name}:steps"]
            self.adam.state[value] = {key: moment.to(value.device) for key, moment in moments.items()}
        return int(found["step"])


class _Progress:
    """Says how training goes, about once a second: to read a loss is to wait for the device."""

    def __init__(self, tokens: int, note: Callable[[], str]) -> None:
        self.tokens, self.note = tokens, note
        self.losses: list[float] = []
        self.since, self.steps, self.pause = time.monotonic(), 0, 0.0

    def done(self, loss: torch.Tensor, tick: Any, *, last: bool) -> None:
        """One more step was taken."""
        self.steps += 1
        if self.losses and not last and time.monotonic() - self.since < self.pause:
            return
        value = loss.item()
        if not math.isfinite(value):
            raise EdgeError(
                "tuning.diverged", "the loss is no longer finite", "lower the learning rates, or set `clip`"
            )
        self.losses.append(value)
        now = time.monotonic()
        speed = self.steps * self.tokens / (now - self.since)
        extra = self.note()
        tick(self.steps, ", ".join(part for part in (f"loss {value:.4f} nats", extra, f"{speed:.0f} tokens/s") if part))
        self.since, self.steps = time.monotonic(), 0
        self.pause = max(NOTE_SECONDS, (self.since - now) / NOTE_SHARE)


def _rate(step: int, steps: int) -> float:
    return min(1.0, (step + 1) / WARM_UP) * 0.5 * (1 + math.cos(math.pi * step / steps))
