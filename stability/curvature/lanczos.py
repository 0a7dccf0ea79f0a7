"""The Lanczos method with full reorthogonalisation, for many operators at once."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from stability.streams import stream


@dataclass(frozen=True)
class Decomposition:
    """H Q = Q T for each lane (up to the last residual): T = S diag(theta) S', and the orthonormal rows of Q.

    `theta` (L, k) ascending and `vectors` S (L, k, k) are float64 on the CPU, `basis` Q (L, k, P) as the
    operator.
    """

    theta: Tensor
    vectors: Tensor
    basis: Tensor

    @property
    def weights(self) -> Tensor:
        """Return the Gauss quadrature weights (L, k) at the nodes `theta`: S's squared first components."""
        return self.vectors[:, 0] ** 2

    def ritz_vectors(self, indices: list[int]) -> Tensor:
        """Return the unit Ritz vectors (L, len(indices), P) of the chosen `theta`."""
        mixing = self.vectors[:, :, indices].mT.to(self.basis)
        ritz = torch.bmm(mixing, self.basis)
        return torch.nn.functional.normalize(ritz, dim=-1)


def lanczos(product: Callable[[Tensor], Tensor], starts: Tensor, steps: int, seed: int) -> Decomposition:
    """Return *steps* Lanczos steps of symmetric operators, each from its own row of *starts* (L, P).

    *product* maps (L, P) to (L, P), lane by lane. Every new vector is made orthogonal to all earlier ones, and
    once more where that took away so much of it that rounding is left (Daniel, Gragg, Kaufman and Stewart
    1976): so no ghost copies of converged eigenvalues. Where a lane's Krylov space is exhausted, the
    next vector is a random one orthogonal to the space and T gets a zero coupling: later Ritz values are
    still eigenvalues (multiple ones appear), with zero quadrature weight. A lane with a NaN has NaN in
    `theta` and `vectors`, and leaves the others as they are.
    """
    lanes, size = starts.shape
    basis = starts.new_zeros(lanes, steps, size)
    diagonal, coupling = starts.new_zeros(2, lanes, steps)
    largest = starts.new_zeros(lanes)
    basis[:, 0] = starts / starts.norm(dim=-1, keepdim=True)
    for step in range(steps):
        current, so_far = basis[:, step], basis[:, : step + 1]
        image = product(current)
        diagonal[:, step] = (current * image).sum(-1)
        # The recurrence first: it takes away all but rounding, and one pass over the basis does the rest.
        rest = image - diagonal[:, step, None] * current
        if step:
            rest -= coupling[:, step, None] * basis[:, step - 1]
        rest = _orthogonal_part(rest, so_far)
        norm = rest.norm(dim=-1)
        largest = torch.maximum(largest, diagonal[:, step].abs() + norm)
        if step + 1 < steps:
            exhausted = norm <= 10 * torch.finfo(norm.dtype).eps * largest
            coupling[:, step + 1] = norm.masked_fill(exhausted, 0)
            if bool(exhausted.any()):
                fresh = _orthogonal_part(_gaussian(size, seed, step).to(starts).expand(lanes, size), so_far)
                rest = torch.where(exhausted[:, None], fresh / fresh.norm(dim=-1, keepdim=True), rest)
            basis[:, step + 1] = rest / rest.norm(dim=-1, keepdim=True)
    theta, vectors = _tridiagonal_eigen(diagonal, coupling[:, 1:])
    return Decomposition(theta, vectors, basis)


def _gaussian(size: int, seed: int, step: int) -> Tensor:
    return torch.randn(size, generator=stream(seed, f"lanczos/{step}"), dtype=torch.float64)


def _orthogonal_part(vectors: Tensor, basis: Tensor) -> Tensor:
    """Return (L, P) *vectors* without their part in the span of the rows of *basis* (L, k, P).

    A pass that halves a vector leaves rounding in the span that counts beside the rest: such a lane takes another.
    """
    once = _projected_out(vectors, basis)
    again = once.norm(dim=-1) < 0.5 * vectors.norm(dim=-1)
    return torch.where(again[:, None], _projected_out(once, basis), once) if bool(again.any()) else once


def _projected_out(vectors: Tensor, basis: Tensor) -> Tensor:
    coefficients = torch.bmm(basis, vectors[:, :, None])
    return torch.baddbmm(vectors[:, None], coefficients.mT, basis, alpha=-1)[:, 0]


def _tridiagonal_eigen(diagonal: Tensor, coupling: Tensor) -> tuple[Tensor, Tensor]:
    """Return eigenvalues and eigenvectors of tridiagonal matrices in float64, NaN where not finite."""
    diagonal, coupling = diagonal.double().cpu(), coupling.double().cpu()
    matrix = diagonal.diag_embed() + coupling.diag_embed(1) + coupling.diag_embed(-1)
    finite = matrix.isfinite().all(-1).all(-1)
    theta, vectors = torch.linalg.eigh(torch.where(finite[:, None, None], matrix, 0.0))
    nan = torch.where(finite, 0.0, torch.nan)
    return theta + nan[:, None], vectors + nan[:, None, None]
