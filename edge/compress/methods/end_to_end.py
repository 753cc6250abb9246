"""End-to-end tuning: what is stored learns from the original model's answers, after all matrices are compressed.

Chen, Shao, Xu, Wang, Gao, Zhang, Luo: "EfficientQAT: Efficient Quantization-Aware Training for Large Language Models",
arXiv:2407.11062: its second phase, E2E-QP, trains the scales of the finished model with all codes fixed; here the
norms' weights and the entries of codebooks too. `rounding` lets codes change as well, by offsets with gradients that
pass straight through, as in LLM-QAT (Liu et al., arXiv:2305.17888). The loss is LLM-QAT's too: the divergence of the
next token's distribution, KL(original || compressed), over all positions of the calibration text; no label is used.

Unlike every other method it holds the whole model: some 40 bytes of memory per weight with `rounding`, 16 without. The
step comes last and takes no tensors.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import msgspec
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save
from torch.func import functional_call

from edge.compress.finish import Finished
from edge.compress.self_generated import self_generated
from edge.compress.trainable import trainable
from edge.core.console import info, progress
from edge.core.errors import UsageError
from edge.core.files import write_atomic
from edge.models.torch_model import build_model, empty_model

CALIBRATED = True
STATE, GENERATED = ".end-to-end.safetensors", ".generated.safetensors"
BETAS = 0.9, 0.95
WARM_UP = 10


class Options(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """steps: of Adam, with `batch` calibration windows in each. rounding: codes may change.

    learning_rate: of the shares by which scales, entries and norms change. rounding_rate: of offsets, in steps between
    two codes. Both rise over 10 steps and fall as a cosine. generated: windows that the original model writes itself,
    beside those of the calibration text. save_minutes: a killed run repeats this much at most.
    """

    steps: int = 200
    batch: int = 4
    rounding: bool = True
    learning_rate: float = 1e-3
    rounding_rate: float = 1e-2
    generated: int = 0
    save_minutes: float = 5.0
    device: Literal["cpu", "cuda"] = "cpu"
    arithmetic: Literal["float32", "bfloat16"] = "float32"

    def __post_init__(self) -> None:
        if min(self.steps, self.batch) < 1 or min(self.learning_rate, self.rounding_rate, self.generated) < 0:
            raise ValueError("`steps` and `batch` are at least 1, learning rates and `generated` at least 0")


def finish(finished: Finished, options: Options) -> None:
    """Tune the model and write it again."""
    if options.device == "cuda" and not torch.cuda.is_available():
        raise UsageError("end_to_end.device", "torch sees no CUDA device here", 'leave device = "cuda" out')
    tuning = _Tuning(finished, options)
    state = finished.folder / STATE
    step = tuning.load(state)
    saved = time.monotonic()
    with progress("Tuning end to end", options.steps) as tick:
        tick(step)
        first = last = math.nan
        while step < options.steps:
            last = tuning.step(step)
            first = last if math.isnan(first) else first
            step += 1
            if step == options.steps or time.monotonic() - saved > 60 * options.save_minutes:
                tuning.save(state, step)
                saved = time.monotonic()
            tick(note=f"KL {last:.4f} nats, {tuning.tokens_per_second:.0f} tokens/s")
    info(f"KL divergence on the calibration text: {first:.4f} at the first step, {last:.4f} at the last")
    finished.replace(*tuning.results())
    for left in (state, finished.folder / GENERATED):
        left.unlink(missing_ok=True)


class _Tuning:
    """The original, the compressed model, and Adam's state."""

    def __init__(self, finished: Finished, options: Options) -> None:
        self.options = options
        self.tokens_per_second = 0.0
        spec, device = finished.checkpoint.spec, options.device
        self.original = build_model(finished.checkpoint).to(device)
        self.windows = self._texts(finished)
        self.model = empty_model(finished.checkpoint.config, spec)
        self.tied, self.transposed = spec.tied_copies, finished.checkpoint.spec.transposed
        compressed = finished.compressed()
        self.matrices = {name: trainable(t, rounding=options.rounding).to(device) for name, t in compressed.items()}
        self.plain = {name: tensor.to(device) for name, tensor in finished.plain().items()}
        norms = {norm.name for layer in spec.layers for norm in (layer.input_norm, layer.mlp_norm)}
        norms.add(spec.final_norm.name)
        self.norm_gains = {
            name: torch.ones_like(tensor, requires_grad=True)
            for name, tensor in self.plain.items()
            if name.removesuffix(".weight") in norms
        }
        for name, buffer in self.model.named_buffers():
            self.plain.setdefault(name, buffer.to(device))
        self.seed = finished.seed
        self.adam = torch.optim.Adam(list(self._groups()), betas=BETAS)

    def _texts(self, finished: Finished) -> torch.Tensor:
        """Token ids [windows, tokens]."""
        count = self.options.generated
        if not count:
            return finished.windows
        state = finished.folder / GENERATED
        return torch.cat(
            [finished.windows, self_generated(self.original, finished.windows, count, finished.seed, state)]
        )

    def _groups(self) -> Iterator[dict[str, Any]]:
        named = self._parameters()
        offsets = [value for name, value in named.items() if name.endswith(".offsets")]
        others = [value for name, value in named.items() if not name.endswith(".offsets")]
        if offsets:
            yield {"params": offsets, "rate": self.options.rounding_rate}
        yield {"params": others, "rate": self.options.learning_rate}

    def _parameters(self) -> dict[str, torch.Tensor]:
        found = {
            f"{m}.{name}": value for m, matrix in self.matrices.items() for name, value in matrix.named_parameters()
        }
        return found | {f"{name}.norm_gains": value for name, value in self.norm_gains.items()}

    def step(self, number: int) -> float:
        """One step of Adam; returns the loss in nats per token.

        A CPU takes one window at a time: gradients by dense weights are summed before they go to the parameters.
        """
        start = time.monotonic()
        options, windows = self.options, self._batch(number)
        with torch.enable_grad():
            dense = self._dense()
            leaves = {name: value.detach().requires_grad_(value.requires_grad) for name, value in dense.items()}
            total = 0.0
            for some in windows.split(1 if options.device == "cpu" else len(windows)):
                loss = self._divergence(leaves, some.to(options.device)) * (len(some) / len(windows))
                loss.backward()
                total += loss.item()
            moved = [name for name, value in dense.items() if value.requires_grad]
            torch.autograd.backward([dense[name] for name in moved], [leaves[name].grad for name in moved])
        for group in self.adam.param_groups:
            group["lr"] = group["rate"] * _rate(number, options.steps)
        self.adam.step()
        self.adam.zero_grad(set_to_none=True)
        self.tokens_per_second = windows.numel() / (time.monotonic() - start)
        return total

    def _batch(self, number: int) -> torch.Tensor:
        """Windows [batch, tokens] of a step: the same after a resume."""
        random = torch.Generator().manual_seed(self.seed * 1_000_003 + number)
        return self.windows[torch.randperm(len(self.windows), generator=random)[: self.options.batch]]

    def _dense(self) -> dict[str, torch.Tensor]:
        """All weights of the model by name."""
        found = dict(self.plain)
        for name, gains in self.norm_gains.items():
            found[name] = self.plain[name] * gains
        for name, matrix in self.matrices.items():
            dense = matrix()
            found[name] = dense.T if name in self.transposed else dense
        return found

    def _divergence(self, weights: dict[str, torch.Tensor], tokens: torch.Tensor) -> torch.Tensor:
        """KL(original || compressed) in nats per token, for tokens [windows, length]."""
        shared = {copy: weights[name] for copy, name in self.tied.items()}
        reduced = self.options.arithmetic == "bfloat16"
        with torch.autocast(self.options.device, torch.bfloat16, enabled=reduced):
            with torch.no_grad():
                wanted = self.original(input_ids=tokens, use_cache=False).logits.flatten(0, 1).float().log_softmax(-1)
            call = {"input_ids": tokens, "use_cache": False}
            logits = functional_call(self.model, weights | shared, (), call, tie_weights=False).logits
        answers = logits.flatten(0, 1).float().log_softmax(-1)
        return F.kl_div(answers, wanted, log_target=True, reduction="batchmean")

    def results(self) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
        norms = {name: (self.plain[name] * gains).detach().cpu() for name, gains in self.norm_gains.items()}
        return {name: matrix.tensor() for name, matrix in self.matrices.items()}, norms

    def save(self, path: Path, step: int) -> None:
        """Parameters and Adam's moments after `step` steps."""
        found = {"step": torch.tensor(step)}
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
        for name, value in self._parameters().items():
            value.data.copy_(found[f"{name}:value"])
            moments = {"exp_avg": found[f"{name}:mean"], "exp_avg_sq": found[f"{name}:square"]}
            kept = {key: moment.to(value.device) for key, moment in moments.items()}
            self.adam.state[value] = {**kept, "step": found[f"{name}:steps"]}
        return int(found["step"])


def _rate(step: int, steps: int) -> float:
    return min(1.0, (step + 1) / WARM_UP) * 0.5 * (1 + math.cos(math.pi * step / steps))
