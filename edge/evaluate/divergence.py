"""Distances between the next-token distributions of two models, from logits, in row blocks and in float64."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edge.core.errors import EdgeError

# A block of float64 rows that stays in the cache: 1024 x 49152 logits at once would take 400 MB and twice the time.
BLOCK_BYTES = 4 << 20


@dataclass
class Divergence:
    """Sums over rows. KL is KL(reference || subject) in nats; agreement is of the most probable tokens.

    information is KL(reference || uniform): how much the reference says at all, the scale to read a KL against.
    """

    rows: int = 0
    kl: float = 0.0
    agreeing: int = 0
    information: float = 0.0
    max_abs_error: float = 0.0

    def add(self, reference: NDArray[np.float32], subject: NDArray[np.float32]) -> None:
        """Take in logits [rows, vocab] of both models at the same positions."""
        for start in range(0, len(reference), block_rows(reference.shape[1])):
            block = slice(start, start + block_rows(reference.shape[1]))
            self._add_block(reference[block], subject[block])

    def _add_block(self, reference: NDArray[np.float32], subject: NDArray[np.float32]) -> None:
        log_p, log_q = log_softmax(reference), log_softmax(subject)
        p = np.exp(log_p)
        self.rows += len(p)
        self.kl += float(np.einsum("rv,rv->", p, log_p - log_q))
        self.information += float(np.einsum("rv,rv->", p, log_p)) + len(p) * float(np.log(p.shape[1]))
        self.agreeing += int(np.count_nonzero(reference.argmax(axis=1) == subject.argmax(axis=1)))
        self.max_abs_error = max(self.max_abs_error, float(np.abs(reference - subject).max()))

    @property
    def kl_mean(self) -> float:
        """Mean over rows; rounding may leave a tiny negative sum, which stands for 0."""
        return max(0.0, self.kl / self.rows)

    @property
    def top1_agreement(self) -> float:
        return self.agreeing / self.rows


def block_rows(vocab_size: int) -> int:
    return max(1, BLOCK_BYTES // (8 * vocab_size))


def log_softmax(logits: NDArray[np.float32]) -> NDArray[np.float64]:
    """Log-probabilities [rows, vocab] in float64. Raises `EdgeError` for NaN or infinite logits."""
    shifted = logits.astype(np.float64)
    shifted -= shifted.max(axis=1, keepdims=True)
    totals = np.exp(shifted).sum(axis=1, keepdims=True)
    if not np.isfinite(totals).all():
        raise EdgeError("evaluate.not_finite", "the model's logits have NaN or infinite values", "check its weights")
    shifted -= np.log(totals)
    return shifted


def negative_log_likelihood(logits: NDArray[np.float32], targets: NDArray[np.int64]) -> float:
    """Sum over rows of -log p(target) in nats: logits [rows, vocab], targets [rows]."""
    total = 0.0
    step = block_rows(logits.shape[1])
    for start in range(0, len(targets), step):
        block = log_softmax(logits[start : start + step])
        total -= float(block[np.arange(len(block)), targets[start : start + step]].sum())
    return total
