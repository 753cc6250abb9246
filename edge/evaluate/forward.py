"""What an encoder or a vision model lost: its outputs held against the original's, text by text or image by image."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge.core.console import progress
from edge.core.errors import UsageError
from edge.core.measurement import Agreement
from edge.core.session import ForwardSession
from edge.evaluate.divergence import Divergence
from edge.evaluate.forward_gates import image_noise
from edge.evaluate.run import Subject
from edge.models.forward import TOP, ImageModel, TextModel
from edge.models.images import image_files, image_shape

SENTENCES, IMAGES = 200, 32
SENTENCE_END = re.compile(r"(?<=[.!?])\s+|\n+")
LEAST_WORDS = 4


@dataclass
class Distance:
    """Sums over samples: of vectors their cosines, of logits their divergence."""

    errors: list[float] = field(default_factory=list)
    cosines: list[float] = field(default_factory=list)
    divergence: Divergence = field(default_factory=Divergence)
    top5: int = 0

    def add(self, found: NDArray[np.float32], expected: NDArray[np.float32], vectors: Any, is_logits: bool) -> None:
        """Take in both first outputs [1, ..] of one sample. vectors: makes one vector of such an output.

        Raises `UsageError` for outputs of different shapes.
        """
        if found.shape != expected.shape:
            message = f"the models give different things: {list(found.shape)}, {list(expected.shape)} in the original"
            raise UsageError("evaluate.original", message, "compare a model with the checkpoint that it was made from")
        self.errors.append(float(np.linalg.norm(found - expected) / max(float(np.linalg.norm(expected)), 1e-30)))
        if not is_logits:
            a, b = vectors(found), vectors(expected)
            self.cosines.append(float(a @ b / max(float(np.linalg.norm(a) * np.linalg.norm(b)), 1e-30)))
            return
        rows, truth = (x.reshape(-1, x.shape[-1]) for x in (found, expected))
        self.divergence.add(truth, rows)
        best = np.argsort(-rows, axis=1, kind="stable")[:, :TOP]
        self.top5 += int((best == truth.argmax(axis=1)[:, None]).any(axis=1).sum())


def sentences_of(text: str) -> list[str]:
    """At most 200 sentences or lines of four words or more, spread evenly over the text. `UsageError` for none."""
    found = [part.strip() for part in SENTENCE_END.split(text) if len(part.split()) >= LEAST_WORDS]
    if not found:
        raise UsageError("evaluate.no_text", "there is no sentence to evaluate on", "give a text file with some prose")
    return [found[i] for i in np.linspace(0, len(found) - 1, min(SENTENCES, len(found))).astype(int)]


def compare_texts(
    subject: TextModel, original: ForwardSession, about: Subject, text: str, *, name: str, original_name: str
) -> Agreement:
    """Both models on the same tokens: cosine of embeddings, or agreement of the words or classes they predict."""
    sentences, distance = sentences_of(text), Distance()
    is_logits = subject.head in ("masked_lm", "classes", "token_classes")
    pooled = _pooled(subject) if subject.head == "hidden" else np.ravel
    with progress(f"evaluate {about.name} {about.recipe}".strip(), len(sentences)) as tick:
        for sentence in sentences:
            inputs = subject.inputs(sentence)
            distance.add(subject.session.run(inputs), original.run(inputs), pooled, is_logits)
            tick(1, "")
    digest = hashlib.sha256("\n".join(sentences).encode("utf-8", "surrogatepass")).hexdigest()
    return _agreement(about, distance, f"{name}, {len(sentences)} sentences", digest, original_name)


def compare_images(
    subject: ImageModel, original: ForwardSession, about: Subject, images: Path | None, *, original_name: str
) -> Agreement:
    """Both models on the same pixels: of the images in a folder, or of synthetic ones, named so, for None."""
    files: Sequence[Any] = image_files(images) if images is not None else range(IMAGES)
    name = f"{images.name}, {len(files)} images" if images is not None else f"{IMAGES} synthetic images, no photographs"
    distance, digest = Distance(), hashlib.sha256()
    with progress(f"evaluate {about.name} {about.recipe}".strip(), len(files)) as tick:
        for file in files:
            pixels = subject.read(file) if images is not None else image_noise(image_shape(subject.config), file)
            digest.update(pixels.tobytes())
            inputs = {"pixel_values": pixels}
            found, expected = subject.session.run(inputs), original.run(inputs)
            distance.add(found, expected, _mean_state, subject.head == "classes")
            tick(1, "")
    return _agreement(about, distance, name, digest.hexdigest(), original_name)


def _pooled(model: TextModel) -> Any:
    return lambda output: model.pooling(output[0])


def _mean_state(output: NDArray[np.float32]) -> NDArray[np.float32]:
    """Of hidden states [1, n, width] or feature maps [1, width, height, width]."""
    state = output[0]
    return state.mean(axis=(1, 2)) if state.ndim == 3 else state.mean(axis=0) if state.ndim == 2 else state.ravel()


def _agreement(about: Subject, distance: Distance, data: str, digest: str, original: str) -> Agreement:
    rows = distance.divergence.rows
    return Agreement(
        subject=about.path,
        kind=about.kind,
        name=about.name,
        recipe=about.recipe,
        data=data,
        data_sha256=digest,
        samples=len(distance.errors),
        original=original,
        relative_error=float(np.mean(distance.errors)),
        cosine_mean=float(np.mean(distance.cosines)) if distance.cosines else None,
        cosine_min=min(distance.cosines) if distance.cosines else None,
        top1_agreement=distance.divergence.top1_agreement if rows else None,
        top5_agreement=distance.top5 / rows if rows else None,
        kl_divergence=distance.divergence.kl_mean if rows else None,
        stored_bytes=about.stored_bytes,
        bits_per_weight=about.bits_per_weight,
    )
