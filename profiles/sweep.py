"""Several measurements in one command: over prompt and generation lengths, threads and cores."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from edge.core.bundle import Bundle
from edge.core.console import console, info
from edge.core.errors import EdgeError
from edge.core.measurement import Measurement
from edge.profiles.clusters import core_sets, cores_text
from edge.profiles.plan import Plan
from edge.profiles.run import HERE, plan_of, profile

AUTO = "auto"


@dataclass(frozen=True)
class Variant:
    """One measurement of a sweep: its options, and a suffix of what differs, such as `p512-t4`."""

    suffix: str
    options: dict[str, Any]

    def file(self, output: Path) -> Path:
        """`result.json` becomes `result-p512-t4.json`."""
        return output.with_name(f"{output.stem}-{self.suffix}{output.suffix}") if self.suffix else output


def variants(
    *,
    prompt_tokens: Sequence[int] = (),
    generated_tokens: Sequence[int] = (),
    threads: Sequence[int] = (),
    cores: Sequence[Sequence[int]] = (),
) -> list[Variant]:
    """All combinations, cores and threads outermost. An empty sequence leaves the default."""
    axes: list[tuple[str, str, Sequence[Any]]] = [
        ("cores", "c", cores),
        ("threads", "t", threads),
        ("prompt_tokens", "p", prompt_tokens),
        ("generated_tokens", "n", generated_tokens),
    ]
    given = [axis for axis in axes if axis[2]]
    found = []
    for values in product(*(axis[2] for axis in given)):
        pairs = list(zip(given, values, strict=True))
        parts = [f"{letter}{_text(value)}" for (_, letter, choices), value in pairs if len(choices) > 1]
        found.append(Variant("-".join(parts), {name: value for (name, _, _), value in pairs}))
    return found


def cores_of(device: str) -> list[list[int]]:
    """The sets of cores that `--cores auto` runs on: see `core_sets`."""
    if device in HERE:
        found = core_sets()
    else:
        from edge.profiles.mirror import mirror
        from edge.runtimes.transports import connect

        with closing(connect(device)) as connection, TemporaryDirectory() as folder:
            found = core_sets(mirror(connection, Path(folder)))
    if found == [[]]:
        info(f"All cores of {device} are alike: there are no clusters to go through")
    return found


def sweep(
    bundle: Bundle, several: Sequence[Variant], *, output: Path | None = None, **common: Any
) -> list[Measurement]:
    """Every variant in turn. output: NAME.json stands for NAME-SUFFIX.json of each. common: what `profile` takes.

    Plans are checked before anything runs. One that fails as a run doesn't keep the rest from running; its error is
    raised at the end. Others (wrong options, a device that is gone, a wrong model) end the sweep.
    """
    options = {name: value for name, value in common.items() if name in Plan.__struct_fields__}
    for variant in several:
        plan_of(bundle, **options | variant.options)
    done: list[Measurement] = []
    failed: EdgeError | None = None
    for variant in several:
        if variant.suffix:
            info(f"{variant.suffix} ({len(done) + 1} of {len(several)})")
        try:
            done.append(profile(bundle, output=variant.file(output) if output else None, **common | variant.options))
        except EdgeError as error:
            if len(several) == 1 or error.exit_code != EdgeError.exit_code or error.code == "disk.full":
                raise
            console.print(f"{variant.suffix}: {error}", markup=False)
            failed = failed or error
    if failed is not None:
        raise failed
    return done


def _text(value: Any) -> str:
    return (cores_text(value).replace(",", "_") or "all") if isinstance(value, Sequence) else str(value)
