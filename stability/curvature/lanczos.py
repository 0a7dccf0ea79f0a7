"""The Lanczos method with full reorthogonalisation, for many operators at once."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from stability.streams import stream

LONG = 2**16
"""Entries of a vector from which on a basis of them leaves the cache."""


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

    *product* maps (L, P) to (L, P), lane by lane. Every new vector is made orthogonal to all earlier ones, and once
    more where that took away so much of it that rounding is left (Daniel, Gragg, Kaufman and Stewart 1976): so no ghost
    copies of converged eigenvalues. Where a lane's Krylov space is exhausted, the next vector is a random one
    orthogonal to the space and T gets a zero coupling: later Ritz values are still eigenvalues (multiple ones appear),
    with zero quadrature weight. A lane with a NaN has NaN in `theta` and `vectors`, and leaves the others as they are.
    """
    lanes, size = starts.shape
    basis = starts.new_empty(steps, lanes, size)
    diagonal, coupling = starts.new_zeros(2, steps, lanes)
    largest = starts.new_zeros(lanes)
    spare = torch.empty_like(starts)
    torch.div(starts, starts.norm(dim=-1, keepdim=True), out=basis[0])
    for step in range(steps):
        current, so_far = basis[step], basis[: step + 1].transpose(0, 1)
        image = product(current)
        diagonal[step] = torch.mul(current, image, out=spare).sum(-1)
        if step + 1 == steps:
            break
        # The recurrence first: it takes away all but rounding, and one pass over the basis does the rest.
        rest = torch.addcmul(image, diagonal[step, :, None], current, value=-1, out=basis[step + 1])
        if step:
            rest.addcmul_(coupling[step, :, None], basis[step - 1], value=-1)
        norm = _orthogonalise(rest, so_far)
        largest = torch.maximum(largest, diagonal[step].abs() + norm)
        exhausted = norm <= 10 * torch.finfo(norm.dtype).eps * largest
        coupling[step + 1] = norm.masked_fill(exhausted, 0)
        if bool(exhausted.any()):
            fresh = _gaussian(size, seed, step).to(starts).repeat(lanes, 1)
            fresh_norm = _orthogonalise(fresh, so_far)
            rest[exhausted], norm[exhausted] = fresh[exhausted], fresh_norm[exhausted]
        rest /= norm[:, None]
    theta, vectors = _tridiagonal_eigen(diagonal.T, coupling[1:].T)
    return Decomposition(theta, vectors, basis.transpose(0, 1))


def _gaussian(size: int, seed: int, step: int) -> Tensor:
    return torch.randn(size, generator=stream(seed, f"lanczos/{step}"), dtype=torch.float64)


def _orthogonalise(vectors: Tensor, basis: Tensor) -> Tensor:
    """Return the norms (L,) of *vectors* (L, P), from which their part in the rows of *basis* (L, k, P) was taken.

    A pass that halves a vector leaves rounding in the span that counts beside the rest: such a lane takes another.
    """
    before = torch.linalg.vector_norm(vectors, dim=-1)
    _project_out(vectors, basis, before)
    norm = torch.linalg.vector_norm(vectors, dim=-1)
    again = norm < 0.5 * before
    if bool(again.any()):
        twice = vectors.clone()
        _project_out(twice, basis, norm)
        vectors[again] = twice[again]
        norm = torch.linalg.vector_norm(vectors, dim=-1)
    return norm


def _project_out(vectors: Tensor, basis: Tensor, norms: Tensor) -> None:
    """Take from *vectors*, of these *norms*, their part in the span of the rows of *basis*, in place."""
    coefficients = torch.bmm(basis, vectors[:, :, None])
    if vectors.shape[1] < LONG:
        vectors[:, None].baddbmm_(coefficients.mT, basis, alpha=-1)
        return
    # Most of the span is absent but for rounding, and to read all of it a second time is what would cost.
    present = coefficients[:, :, 0].abs() > torch.finfo(norms.dtype).eps * norms[:, None]
    for vector, rows, parts, some in zip(vectors, basis, coefficients[:, :, 0], present, strict=True):
        few = some.nonzero()[:, 0].tolist()
        if len(few) > len(rows) // 4:
            vector.addmv_(rows.T, parts, alpha=-1)
        else:
            for place in few:
                vector.addcmul_(rows[place], parts[place], value=-1)


def _tridiagonal_eigen(diagonal: Tensor, coupling: Tensor) -> tuple[Tensor, Tensor]:
    """Return eigenvalues and eigenvectors of tridiagonal matrices in float64, NaN where not finite."""
    diagonal, coupling = diagonal.double().cpu(), coupling.double().cpu()
    matrix = diagonal.diag_embed() + coupling.diag_embed(1) + coupling.diag_embed(-1)
    finite = matrix.isfinite().all(-1).all(-1)
    theta, vectors = torch.linalg.eigh(torch.where(finite[:, None, None], matrix, 0.0))
    nan = torch.where(finite, 0.0, torch.nan)
    return theta + nan[:, None], vectors + nan[:, None, None]
