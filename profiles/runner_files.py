"""The files that the native runner reads: its plan, prompts and samples; kernels/runner has the formats."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath

import numpy as np

from edge.core.bundle import Bundle
from edge.core.errors import EdgeError
from edge.profiles.parity import SAMPLES, limit_of
from edge.profiles.plan import CV_GATE, EXTENSION, Plan, turn_prompts, turns_of
from edge.profiles.sustained import STEADY_CV


def runner_plan(
    plan: Plan, bundle: Bundle, digest: str, files: Mapping[str, str], watched: Mapping[str, Sequence[str]]
) -> str:
    """The text of a plan. files: `model`, `onnxruntime`, `kernels`, `samples` and `turn0` .. as paths on the device.

    watched: `temperature`, `frequency` and `cap`, each the paths of small files there.
    """
    manifest = bundle.manifest
    lines = ["edge-plan 1", f"digest {digest}"]
    lines += [f"{name} {files[name]}" for name in ("model", "onnxruntime", "kernels", "samples") if name in files]
    lines += [f"kl_limit {limit_of(bundle)!r}", f"vocab {manifest.vocab_size}"]
    lines += [f"context {manifest.context_length}", f"threads {plan.threads}"]
    lines += [f"cores {','.join(map(str, plan.cores))}"] if plan.cores else []
    lines += [f"warm_ups {plan.warm_ups}", f"repetitions {plan.repetitions}"]
    lines += [f"most_repetitions {plan.repetitions * EXTENSION}", f"min_ns {round(1e9 * plan.min_seconds)}"]
    lines += [
        f"most_ns {round(1e9 * plan.max_seconds)}",
        f"cv_gate {STEADY_CV if plan.mode == 'sustained' else CV_GATE}",
        f"mode {plan.mode}",
    ]
    lines += [f"turn {files[f'turn{i}']} {made}" for i, (_, made) in enumerate(turns_of(plan))]
    lines += [f"cool_down_ns {round(1e9 * plan.cool_down_s)}", f"idle_ns {round(1e9 * plan.idle_s)}"]
    lines += [f"wait_ns {round(1e9 * plan.wait_s)}"]  # also after a throttled repetition
    lines += [f"start_below_mc {round(1000 * plan.start_below_c)}"] if plan.start_below_c is not None else []
    lines += [f"{kind} {path}" for kind in ("temperature", "frequency", "cap") for path in watched.get(kind, ())]
    if bad := [line for line in lines if "\n" in line]:
        raise EdgeError("profile.path", f"a path has a line break in it: {bad[0]!r}", "rename the folder")
    return "\n".join(lines) + "\n"


def prompts(plan: Plan, vocab_size: int) -> list[bytes]:
    """The tokens of every turn as little-endian int64: those that a Python session gets."""
    return [np.asarray(tokens, "<i8").tobytes() for tokens in turn_prompts(vocab_size, plan)]


def samples(bundle: Bundle) -> bytes:
    """The bundle's sample tokens and expected logits of the last: int64 n, int64 vocab, n int64, vocab float32."""
    from safetensors.numpy import load_file

    if SAMPLES not in bundle.manifest.files:
        raise EdgeError("profile.samples", f"{bundle.path} has no samples to hold it against", "export it again")
    arrays = load_file(bundle.path / SAMPLES)
    tokens, logits = arrays["tokens"].astype("<i8"), arrays["logits"].astype("<f4")[-1]
    return np.array([len(tokens), len(logits)], "<i8").tobytes() + tokens.tobytes() + logits.tobytes()


def model_files(bundle: Bundle) -> list[Path]:
    """What of a bundle the runner reads: the graph and the weights beside it."""
    names = [name for name in bundle.manifest.files if PurePosixPath(name).name.startswith(bundle.manifest.artefact)]
    return [bundle.path / name for name in names]
