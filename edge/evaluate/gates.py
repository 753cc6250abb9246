"""The parity gate: an exported artefact must say what the torch reference of the same compressed model says."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass

from edge.core.bundle import Gates
from edge.core.errors import GateFailed, UsageError
from edge.core.session import Session
from edge.core.target import Kernels
from edge.core.weight import Dense, Encoding
from edge.evaluate.divergence import Divergence

DECODE_STEPS = 8
FLOAT_LIMIT = 1e-6  # measured 1e-11 to 1e-8: rounding stays rounding
EDGE_LIMIT = 0.01  # measured 0.006 on SmolLM2-135M at 4 bits
# measured 0.006 there too; more where a whole row has one scale while the runtime's blocks have their own
BUILTIN_LIMIT = 0.05
NOISE_FACTOR = 3.0
NOISE_TOKENS = 16


@dataclass(frozen=True)
class Parity:
    """What the gate measured, over a prefill and a few decode steps. KL in nats, of KL(reference || candidate).

    kl_divergence_limit is what `parity` made of the encoding's limit.
    """

    kl_divergence_mean: float
    kl_divergence_limit: float
    top1_agreement: float
    max_abs_logit_error: float

    def gates(self, codes_equal: bool, slow_nodes: Sequence[str]) -> Gates:
        """The record for the manifest, with what other gates found."""
        return Gates(**asdict(self), codes_equal=codes_equal, slow_nodes=list(slow_nodes))

    def check(self, subject: str) -> None:
        """Raise `GateFailed` where the artefact diverges from the reference by more than its limit."""
        if self.kl_divergence_mean <= self.kl_divergence_limit:
            return
        message = (
            f"{subject} doesn't say what its reference says: KL divergence {self.kl_divergence_mean:.2e} nats, "
            f"limit {self.kl_divergence_limit:.2e}; top-1 agreement {self.top1_agreement:.1%}, "
            f"largest logit error {self.max_abs_logit_error:.3g}"
        )
        raise GateFailed("gate.parity", message, "don't deploy it; report the model, and try the other --kernels")


def kl_limit(encodings: Iterable[Encoding], kernels: Kernels, float_limit: float = FLOAT_LIMIT) -> float:
    """The largest mean KL divergence, in nats, of an artefact from its reference, by what may differ between them.

    Float weights: only the order of sums differs. Compressed weights have int8 activations; ours are those of the
    reference, the runtime's builtin ones have scales of their own. float_limit: for a runtime that rounds floats too.
    """
    if all(isinstance(encoding, Dense) for encoding in encodings):
        return float_limit
    return EDGE_LIMIT if kernels == "edge" else BUILTIN_LIMIT


def parity(
    reference: Session,
    candidate: Session,
    tokens: Sequence[int],
    limit: float,
    *,
    decode_steps: int = DECODE_STEPS,
) -> Parity:
    """Prefill `tokens`, then decode the reference's next tokens as far as the context goes; compare all logits.

    `limit` comes from `kl_limit`. It is for a model that has learnt something. One with random weights predicts
    almost uniformly, and a wrong graph hardly moves its distribution: so the limit shrinks with
    KL(reference || uniform) where that is under 1 nat. With int8 activations the reference's own noise is allowed for.
    Raises `UsageError` for no tokens, more than the context holds, and vocabularies that differ.
    """
    _check_tokens(reference, candidate, tokens)
    divergence = Divergence()
    logits = reference.prefill(tokens, all_logits=True)
    divergence.add(logits, candidate.prefill(tokens, all_logits=True))
    for _ in range(min(decode_steps, reference.context_length - len(tokens))):
        token = int(logits[-1].argmax())
        logits = reference.decode(token)
        divergence.add(logits, candidate.decode(token))
    allowed = limit * min(1.0, divergence.information / divergence.rows)
    if limit > FLOAT_LIMIT:
        allowed += NOISE_FACTOR * rounding_noise(reference, tokens[:NOISE_TOKENS])
    return Parity(divergence.kl_mean, allowed, divergence.top1_agreement, divergence.max_abs_error)


def rounding_noise(session: Session, tokens: Sequence[int]) -> float:
    """Mean KL divergence, in nats, of a session from itself: a prefill against the same tokens one at a time.

    Both compute the same sums in another order, apart by 1e-7. Where activations are rounded to int8 that flips a few
    of them, and the layers that follow amplify it: on SmolLM2-135M at 4 bits to 0.006 nats, against 1e-11 in float.
    No artefact can be held closer to its reference than this.
    """
    divergence = Divergence()
    rows = session.prefill(tokens, all_logits=True).copy()  # a session may hand out a buffer that it writes to again
    for position, row in enumerate(rows):
        step = session.decode(tokens[position]) if position else session.prefill(tokens[:1])
        divergence.add(row[None], step)
    return divergence.kl_mean


def _check_tokens(reference: Session, candidate: Session, tokens: Sequence[int]) -> None:
    room = min(reference.context_length, candidate.context_length)
    if not 1 <= len(tokens) <= room:
        raise UsageError("gate.tokens", f"the gate has {len(tokens)} sample tokens", f"give it 1 to {room}")
    if reference.vocab_size != candidate.vocab_size:
        message = f"the artefact has {candidate.vocab_size} tokens, the reference {reference.vocab_size}"
        raise UsageError("gate.vocabulary", message, "export the model again")
