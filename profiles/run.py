"""`edge profile`: from what a user asks to a plan, to whoever runs it, to a result in a file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from edge.core.bundle import Bundle
from edge.core.errors import UsageError
from edge.core.measurement import Measurement
from edge.profiles import local, sustained
from edge.profiles.outcome import Outcome
from edge.profiles.plan import CALLS, DEFAULT_TURNS, Plan, check_room

HERE = ("cpu", "local")


def profile(
    bundle: Bundle,
    *,
    device: str = "cpu",
    fresh: bool = False,
    output: Path | None = None,
    onnxruntime: Path | None = None,
    prepare: bool = False,
    **options: Any,
) -> Measurement:
    """Measure a bundle on a device. `options` are the fields of `Plan`.

    fresh: don't take up what an earlier process has finished. output: where the result is written, also of a run that
    failed on its way. onnxruntime: the library for the native runner, where not edge's own choice. prepare: bring the
    device into a steady state meanwhile. Raises `UsageError` for an option out of range or a conversation longer than
    the context, and the `EdgeError` of a run that failed.
    """
    plan = plan_of(bundle, **options)
    return measured(bundle, plan, device, fresh=fresh, library=onnxruntime, prepare=prepare).deliver(output)


def measured(
    bundle: Bundle, plan: Plan, device: str, *, fresh: bool = False, library: Path | None = None, prepare: bool = False
) -> Outcome:
    """Have a plan run by whoever can: a Python session on this machine, the native runner elsewhere."""
    if device in HERE and plan.engine != "runner":
        return local.run(bundle, plan, fresh=fresh)
    from edge.profiles.remote import profile_on

    if plan.engine == "python":
        hint = "leave --engine away: a Python session there is what it falls back on"
        raise UsageError("profile.engine", "a Python session is what `cpu` measures with", hint)
    return profile_on(device, bundle, plan, library=library, prepare=prepare, fresh=fresh)


def plan_of(bundle: Bundle, **options: Any) -> Plan:
    """The plan for these options, with what the model and the mode ask for where nothing is said."""
    task, mode = bundle.manifest.task, options.get("mode", "repetitions")
    if task != "decoder" and mode == "conversation":
        hint = "its prompts don't go on from each other: profile it without --turns"
        raise UsageError("profile.mode", f"a model of the task '{task}' holds no conversation", hint)
    if task in ("encoder", "vision"):
        repetitions = CALLS * options.get("repetitions", Plan().repetitions)
        options |= {"calls": True, "generated_tokens": 0, "repetitions": repetitions}
        options |= {"prompt_tokens": 0} if task == "vision" else {}
    if mode == "sustained":
        least = {"warm_ups": 0, "generated_tokens": sustained.GENERATED_TOKENS, "min_seconds": sustained.LEAST_SECONDS}
        options = least | options
        options["min_seconds"] = min(options["min_seconds"], options.get("max_seconds", Plan().max_seconds))
    if mode == "conversation":
        options = {"turns": DEFAULT_TURNS} | options
    if options.get("cores") and not options.get("threads"):
        options["threads"] = len(options["cores"])  # engines that choose for themselves would choose for all cores
    plan = Plan(**options)
    check_room(plan, bundle.manifest.context_length)
    return plan
