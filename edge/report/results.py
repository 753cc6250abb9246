"""Results of `edge evaluate` and `edge profile`, read from files and joined into the rows of a report."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec

from edge.core.bundle import MANIFEST, Gates, Manifest
from edge.core.errors import EdgeError, UsageError
from edge.core.files import decode_json, read_json, sha256
from edge.core.measurement import Agreement, Evaluation, Measurement
from edge.profiles.clusters import cores_text
from edge.profiles.compare import Comparison
from edge.profiles.statistics import together

Pair = tuple[Evaluation | Agreement | None, Measurement | None]


@dataclass(frozen=True)
class Results:
    """Of a comparison both the comparison itself and a measurement for each side, all its runs together."""

    evaluations: list[Evaluation | Agreement]
    measurements: list[Measurement]
    comparisons: list[Comparison]


@dataclass(frozen=True)
class Row:
    """One model of a report: what is known of its quality, its speed, or both.

    told: what tells it from the rows of the same model, such as the device first, the threads. `label`, of both, is
    unique in a report.
    """

    model: str
    quality: Evaluation | Agreement | None
    measurement: Measurement | None
    told: tuple[str, ...] = ()

    @property
    def label(self) -> str:
        return " · ".join([self.model, *self.told])

    @property
    def evaluation(self) -> Evaluation | None:
        """Of a language model."""
        return self.quality if isinstance(self.quality, Evaluation) else None

    @property
    def agreement(self) -> Agreement | None:
        """Of an encoder or a vision model."""
        return self.quality if isinstance(self.quality, Agreement) else None

    @property
    def timed(self) -> Measurement | None:
        """The measurement, where it has times that mean something: it went well enough, and on real hardware."""
        found = self.measurement
        return None if found is None or found.emulated or not found.repetitions else found

    @property
    def emulated(self) -> bool:
        return self.measurement is not None and self.measurement.emulated

    @property
    def stored_bytes(self) -> int:
        return _either(self).stored_bytes

    @property
    def bits_per_weight(self) -> float:
        return _either(self).bits_per_weight


class _Fields(msgspec.Struct):
    """Tells the kinds of file apart."""

    perplexity: float | None = None
    relative_error: float | None = None
    repetitions: list[msgspec.Raw] | None = None
    changes: list[msgspec.Raw] | None = None


def load_results(paths: Sequence[Path]) -> Results:
    """Read result files: of one result, of a list of them (a sweep), or of a comparison.

    Raises `EdgeError` for a file that is missing, damaged or of another kind.
    """
    results = Results([], [], [])
    for path in paths:
        try:
            _take(results, path.read_bytes(), path)
        except OSError as error:
            raise UsageError("report.missing", f"can't read {path}: {error.strerror}", "check the path") from error
    return results


def _take(results: Results, raw: bytes | msgspec.Raw, path: Path) -> None:
    hint = "give the JSON files that `edge evaluate`, `edge profile`, `edge compare` and `edge import` write with -o"
    kind = _kind(raw, path)
    if isinstance(kind, list):
        for one in kind:
            _take(results, one, path)
    elif kind.changes is not None:
        found = decode_json(raw, Comparison, path)
        results.comparisons.append(found)
        results.measurements.extend(together(side) for side in (found.runs[::2], found.runs[1::2]) if side)
    elif kind.perplexity is not None:
        results.evaluations.append(decode_json(raw, Evaluation, path))
    elif kind.relative_error is not None:
        results.evaluations.append(decode_json(raw, Agreement, path))
    elif kind.repetitions is not None:
        results.measurements.append(decode_json(raw, Measurement, path))
    else:
        raise UsageError("report.kind", f"{path} is neither an evaluation nor a measurement", hint)


def _kind(raw: bytes | msgspec.Raw, path: Path) -> _Fields | list[msgspec.Raw]:
    try:
        found: _Fields | list[msgspec.Raw] = msgspec.json.decode(raw, type=_Fields | list[msgspec.Raw])
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise EdgeError("file.corrupt", f"{path}: {error}", "the file is damaged or of another kind") from error
    if found == []:
        raise UsageError("report.kind", f"{path} has no results in it", "profile or evaluate a bundle first")
    return found


def join(
    evaluations: Sequence[Evaluation | Agreement], measurements: Sequence[Measurement], *, alone: bool = True
) -> list[Row]:
    """A row per measurement, with the evaluation of the same bundle; then a row per evaluation left over.

    alone: there is nothing else to report. Then `UsageError` is raised where there is no row.
    """
    if alone and not evaluations and not measurements:
        raise UsageError("report.empty", "there are no results to report", "evaluate or profile a bundle first")
    pairs: list[Pair] = []
    for measurement in measurements:
        pairs.append((next((e for e in evaluations if _same(e, measurement)), None), measurement))
    used = {id(evaluation) for evaluation, _ in pairs}
    pairs += [(evaluation, None) for evaluation in evaluations if id(evaluation) not in used]
    names = {(m or e).name for e, m in pairs if m or e}  # type: ignore[union-attr]
    return _unique([_label(e, m, one_model=len(names) == 1) for e, m in pairs], pairs)


def gates_of(measurement: Measurement) -> Gates | None:
    """What the export gates of the measured bundle found, where the very bundle is still there."""
    manifest = Path(measurement.bundle) / MANIFEST
    if not manifest.is_file() or sha256(manifest) != measurement.bundle_sha256:
        return None
    return read_json(manifest, Manifest).gates


def _same(evaluation: Evaluation | Agreement, measurement: Measurement) -> bool:
    if evaluation.kind != "artefact":
        return False
    named = evaluation.name == measurement.name and evaluation.recipe == _recipe(measurement)
    return evaluation.subject == measurement.bundle or named


def _recipe(measurement: Measurement) -> str:
    ours = measurement.engine != "imported"
    kernels = f"{measurement.kernels} kernels" if ours else ""
    return ", ".join(filter(None, [measurement.recipe, kernels]))


def device_name(measurement: Measurement) -> str:
    """What people call the device."""
    known = (measurement.device.get(key) for key in ("model", "soc", "cpu"))
    return next((str(name) for name in known if name), "an unknown device")


def _label(evaluation: Evaluation | Agreement | None, measurement: Measurement | None, *, one_model: bool) -> str:
    known = measurement or evaluation
    recipe = _recipe(measurement) if measurement else evaluation.recipe if evaluation else ""
    where = " in PyTorch" if evaluation and not measurement and evaluation.kind == "torch" else ""
    name = known.name if known else ""
    return f"{recipe}{where}" if one_model and recipe else f"{name} · {recipe}{where}".strip(" ·")


def conditions(measurement: Measurement) -> list[str]:
    """How it was measured, in few words: what tells runs of one bundle apart."""
    plan = measurement.protocol
    return [
        device_name(measurement) + (" (emulated)" if measurement.emulated else ""),
        measurement.runtime,
        {"python": "Python", "runner": "native runner", "imported": "imported"}[measurement.engine],
        plan.mode if plan.mode != "repetitions" else "",
        f"{plan.prompt_tokens}+{plan.generated_tokens} tokens",
        f"cores {cores_text(plan.cores)}" if plan.cores else "",
        f"{plan.threads} thread{'s' if plan.threads > 1 else ''}" if plan.threads else "",
    ]


def _unique(labels: Sequence[str], pairs: Sequence[Pair]) -> list[Row]:
    """Rows of one label get what they differ in, and a number where that is nothing."""
    told: list[tuple[str, ...]] = [()] * len(labels)
    for label in {label for label in labels if labels.count(label) > 1}:
        found = {i: conditions(m) for i, (_, m) in enumerate(pairs) if labels[i] == label and m}
        columns = list(zip(*found.values(), strict=True))
        differing = [k for k, column in enumerate(columns) if len(set(column)) > 1]
        for i, condition in found.items():
            told[i] = tuple(condition[k] for k in differing if condition[k])
    rows, seen = [], Counter[tuple[str, tuple[str, ...]]]()
    for label, tells, (quality, measurement) in zip(labels, told, pairs, strict=True):
        seen[label, tells] += 1
        again = f" ({seen[label, tells]})" if seen[label, tells] > 1 else ""
        rows.append(Row(label + again, quality, measurement, tells))
    return rows


def judged(rows: Sequence[Row]) -> list[Row]:
    """A row per evaluation, without measurements: one model may have been measured many times."""
    found: dict[int, Row] = {}
    for row in rows:
        if row.quality:
            found.setdefault(id(row.quality), Row(row.model, row.quality, None))
    return list(found.values())


def _either(row: Row) -> Evaluation | Agreement | Measurement:
    known = row.measurement or row.quality
    if known is None:
        raise EdgeError("report.row", f"{row.label} has no results")
    return known
