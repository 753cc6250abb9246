"""A study as a table, for the page and for the card: a row per cell, a column per figure that any of them has."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from edge.evaluate.tasks import TaskScore
from edge.report.table import NONE, Cell, Table, digits, megabytes, number, perplexity
from edge.study.result import Row, Study

Show = Callable[[Row], Cell | None]


def build(study: Study) -> Table:
    """Missing figures are dashes; what failed says why beside the row's name."""
    reference = original(study.rows)
    columns = [*_columns(reference), *_task_columns(study.rows)]
    shown = [(title, [show(row) for row in study.rows]) for title, show in columns]
    kept = [(title, [cell or NONE for cell in cells]) for title, cells in shown if any(cells)]
    rows = [(_head(row), [cells[index] for _, cells in kept]) for index, row in enumerate(study.rows)]
    note = "A click on a column's head sorts by it." if len(rows) > 1 else ""
    return Table([title for title, _ in kept], rows, "Results", note, sortable=True)


def original(rows: Sequence[Row]) -> Row | None:
    return next((row for row in rows if row.kind == "original"), None)


def _head(row: Row) -> Cell:
    said = [f"no {failure.stage}: {failure.message}" for failure in row.failures]
    if row.status != "done" and not said:
        said = ["not measured yet"]
    return Cell(row.label, "; ".join([*said, *row.notes]))


def _columns(reference: Row | None) -> list[tuple[str, Show]]:
    """reference: the original's row, whose perplexity others are held against."""
    return [
        ("Bits per weight", _bits),
        ("Perplexity", lambda row: _perplexity(row, reference)),
        ("KL divergence", lambda row: _plain(row.kl_divergence, _nats)),
        ("Top-1 agreement", lambda row: _plain(row.top1_agreement, lambda value: f"{value:.1%}")),
        ("Size", lambda row: _plain(row.stored_bytes, megabytes)),
        ("Artefact", lambda row: _plain(row.artefact_bytes, megabytes)),
        ("Decode", _decode),
        ("Prefill", lambda row: _plain(row.prefill_tokens_per_s, lambda value: f"{number(value)} tokens/s")),
        ("Memory at run time", lambda row: _plain(row.run_peak_bytes, megabytes)),
        ("Time to compress", lambda row: _plain(row.compress_s, _duration)),
        ("Memory to compress", lambda row: _plain(row.compress_peak_bytes, megabytes)),
    ]


def _plain(value: float | None, show: Callable[[float], str]) -> Cell | None:
    return None if value is None else Cell(show(value), order=value)


def _nats(value: float) -> str:
    return f"{value:.2f}" if value >= 1 else f"{value:.3f}" if value >= 0.01 else digits(value)


def _bits(row: Row) -> Cell | None:
    if row.bits_per_weight is None:
        return None
    note = "" if row.layer_bits_per_weight is None else f"{row.layer_bits_per_weight:.2f} in the layers"
    return Cell(f"{row.bits_per_weight:.2f}", note, row.bits_per_weight)


def _perplexity(row: Row, reference: Row | None) -> Cell | None:
    if row.perplexity is None:
        return None
    note = ""
    if reference is not None and reference.perplexity and row is not reference:
        lost = 100 * (row.perplexity / reference.perplexity - 1)
        note = f"{lost:+.1f}%" if lost < 1000 else f"{row.perplexity / reference.perplexity:.0f} times the original's"
    return Cell(perplexity(row.perplexity), note, row.perplexity)


def _decode(row: Row) -> Cell | None:
    if row.decode_tokens_per_s is None or row.decode_p10 is None or row.decode_p90 is None:
        return None
    note = f"p10–p90 {number(row.decode_p10)}–{number(row.decode_p90)}"
    return Cell(f"{number(row.decode_tokens_per_s)} tokens/s", note, row.decode_tokens_per_s)


def _duration(seconds: float) -> str:
    return f"{seconds:.1f} s" if seconds < 100 else f"{seconds / 60:.1f} min"


def _task_columns(rows: Sequence[Row]) -> list[tuple[str, Show]]:
    names = dict.fromkeys(score.task for row in rows for score in row.tasks)
    return [(name, lambda row, name=name: _task(row.tasks, name)) for name in names]


def _task(scores: Sequence[TaskScore], name: str) -> Cell | None:
    found = next((score for score in scores if score.task == name), None)
    if found is None:
        return None
    if found.value is None:
        return Cell("–", found.problem)
    doubt = "" if found.stderr is None else f" ± {found.stderr:.3f}"
    return Cell(f"{found.value:.3f}", f"{found.metric}{doubt}", found.value)
