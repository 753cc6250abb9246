"""Orthogonal matrices that spread what lies on one channel over all: Hadamard matrices, or random ones."""

from __future__ import annotations

from functools import lru_cache

import torch

SYLVESTER = torch.tensor([[1.0, 1], [1, -1]])


@lru_cache(maxsize=4)
def rotation(size: int, seed: int) -> torch.Tensor:
    """A random orthogonal matrix [size, size], float32: Hadamard's with random signs where there is one that we know,
    else uniformly distributed. Deterministic by seed.
    """
    generator = torch.Generator().manual_seed(seed)
    known = hadamard(size)
    if known is None:
        q, r = torch.linalg.qr(torch.randn(size, size, generator=generator, dtype=torch.float64))
        return (q * r.diagonal().sign()).float()
    signs = torch.randint(0, 2, (size, 1), generator=generator) * 2 - 1
    return known * signs / size**0.5


def hadamard(order: int) -> torch.Tensor | None:
    """A matrix [order, order] of +-1 with H H^T = order I, or None where these constructions give none.

    Sylvester's doubling, then Paley's of quadratic residues modulo a prime: 12, 20, 28, 36, 44, 60, 68 ... times 2^n.
    """
    if order in (1, 2):
        return SYLVESTER[:order, :order]
    half = hadamard(order // 2) if order % 2 == 0 else None
    if half is not None:
        return torch.kron(SYLVESTER, half)
    if order % 4:
        return None
    if _is_prime(order - 1):  # 3 modulo 4
        return _conference(order - 1, -1) + torch.eye(order)
    prime = order // 2 - 1
    if _is_prime(prime) and prime % 4 == 1:
        corner = torch.tensor([[1.0, -1], [-1, -1]])
        return torch.kron(_conference(prime, 1), SYLVESTER) + torch.kron(torch.eye(prime + 1), corner)
    return None


def _conference(prime: int, border: int) -> torch.Tensor:
    """Paley's matrix [prime + 1, prime + 1]: zero diagonal, inside whether differences are residues of the prime."""
    residues = {i * i % prime for i in range(1, prime)}
    values = torch.tensor([0.0 if i == 0 else 1.0 if i in residues else -1.0 for i in range(prime)])
    differences = (torch.arange(prime)[:, None] - torch.arange(prime)) % prime
    matrix = torch.zeros(prime + 1, prime + 1)
    matrix[0, 1:], matrix[1:, 0], matrix[1:, 1:] = 1, border, values[differences]
    return matrix


def _is_prime(number: int) -> bool:
    return number > 1 and all(number % divisor for divisor in range(2, int(number**0.5) + 1))
