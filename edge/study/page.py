"""A study as one HTML file that loads nothing, and as a Markdown card."""

from __future__ import annotations

from pathlib import Path

from edge.core.files import write_text
from edge.report.card import plain, table_lines
from edge.report.html import page
from edge.report.method import Facts, device_facts
from edge.report.table import Table
from edge.study.plots import sections
from edge.study.result import Row, Study
from edge.study.table import build


def write(study: Study, html: Path, card: Path) -> None:
    """Write both. Raises `EdgeError` for a path that can't be written."""
    shown = build(study)
    title = f"{study.model}, made small"
    write_text(
        html,
        page(
            title=title,
            subtitle=f"{study.parameters / 1e6:,.0f} million weights · {_counted(study.rows)}",
            tables=[shown],
            sections=sections(study),
            facts=facts(study),
            caveats=caveats(study),
        ),
    )
    write_text(card, _card(study, title, shown))


def _card(study: Study, title: str, shown: Table) -> str:
    lines = [f"# {plain(title)}", "", *table_lines(Table(shown.columns, shown.rows, shown.title))]
    lines += ["## How this was measured", ""]
    for heading, entries in facts(study):
        lines += [f"**{plain(heading)}**", "", *(f"- {plain(name)}: {plain(value)}" for name, value in entries), ""]
    lines += ["## Keep in mind", "", *(f"- {plain(caveat)}" for caveat in caveats(study))]
    return "\n".join(lines) + "\n"


def _counted(rows: list[Row]) -> str:
    done = sum(row.status == "done" for row in rows)
    return f"{len(rows)} rows" if done == len(rows) else f"{done} of {len(rows)} rows are whole"


def facts(study: Study) -> list[tuple[str, Facts]]:
    """Headed lists of name and value: the device, the text, the calibration, the timing."""
    settings, calibration = study.settings, study.settings.calibration
    part = "" if settings.max_bytes is None else f", first {settings.max_bytes:,} bytes"
    quality = [
        ("Text", f"{Path(settings.text).name}{part}, sha256 {settings.text_sha256[:12]}"),
        ("Windows", f"{settings.context_length or 'at most 1024'} positions, not overlapping"),
        ("Against", "the original in PyTorch, window by window; KL is KL(original ‖ compressed) per token"),
        ("Ours", "in PyTorch, computing as the kernels do, with the activations that the recipe names"),
        ("Other toolkits", "in their own runtime"),
    ]
    compression = [
        ("Groups", str(settings.group_size)),
        ("Embedding and head", _head(settings.head_bits)),
        ("Calibration", f"{calibration.samples} windows of {calibration.sequence_length} tokens"),
    ]
    if settings.calibration_text is not None:
        digest = (settings.calibration_sha256 or "")[:12]
        compression.append(("Calibration text", f"{Path(settings.calibration_text).name}, sha256 {digest}"))
    timing = [
        ("Conversation", f"{settings.prompt_tokens} prompt tokens, then {settings.generated_tokens}, batch 1"),
        ("Threads", str(settings.threads or "the runtime's choice")),
        ("Versions", ", ".join(f"{name} {found}" for name, found in settings.versions.items())),
    ]
    device = [("Device", device_facts(study.device))]
    return [*device, ("Quality", quality), ("Compression of methods", compression), ("Speed", timing)]


def _head(bits: int | str) -> str:
    return (
        "as the layers, where the method can" if bits == "same" else f"{bits} bits, round to nearest, for every method"
    )


def caveats(study: Study) -> list[str]:
    """What a reader should know before using the numbers."""
    said = ["Bits per weight count every tensor with its scales, embedding and head too; a tied head counts once."]
    if any(row.compress_peak_bytes for row in study.rows):
        said.append("Memory to compress is the peak of the whole process, libraries included.")
    if any(row.decode_tokens_per_s for row in study.rows):
        said.append("Speeds were taken one after the other on this machine: what else ran then is in them.")
    if any(row.kind == "peer" for row in study.rows):
        said.append(
            "Other toolkits choose their own types for embedding and head, and fall back where columns don't fit."
        )
    if any(row.status != "done" for row in study.rows):
        said.append("Rows that are not whole say what is missing; the same command tries it again.")
    return said
