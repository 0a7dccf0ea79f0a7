"""The Lanczos method with full reorthogonalisation, for many operators at once."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from stability.devices import to_device
from stability.streams import stream

LONG = 2**16
"""Entries of a vector from which on a basis of them leaves a processor's cache."""


@dataclass(frozen=True)
class Decomposition:
    """H Q = Q T for each lane (up to the last residual): T = S diag(theta) S', and the orthonormal rows of Q.

    `theta` (L, k) ascending and `vectors` S (L, k, k) are float64, `basis` Q (L, k, P) as the operator; all lie on its
    device.
    """

    theta: Tensor
    vectors: Tensor
    basis: Tensor

    @property
    def weights(self) -> Tensor:
        """Return the Gauss quadrature weights (L, k) at the nodes `theta`: S's squared first components."""
        return self.vectors[:, 0] ** 2

    def ends(self, top: int) -> tuple[Tensor, Tensor]:
        """Return (L, 2 top) Ritz values, the largest in descending order and then the smallest in ascending order.

        Also their unit Ritz vectors (L, 2 top, P).
        """

        def both(columns: Tensor) -> Tensor:
            return torch.cat([columns[..., -top:].flip(-1), columns[..., :top]], -1)

        mixing = both(self.vectors).mT.to(self.basis)
        ritz = torch.bmm(mixing, self.basis)
        return both(self.theta), torch.nn.functional.normalize(ritz, dim=-1)


def lanczos(product: Callable[[Tensor], Tensor], starts: Tensor, steps: int, seed: int) -> Decomposition:
    """Return *steps* Lanczos steps of symmetric operators, each from its own row of *starts* (L, P).

    *product* maps (L, P) to (L, P), lane by lane. Every new vector is made orthogonal to all earlier ones, and once
    more where that took away so much of it that rounding is left (Daniel, Gragg, Kaufman and Stewart 1976): so no ghost
    copies of converged eigenvalues. Where a lane's Krylov space is exhausted, the next vector is a random one
    orthogonal to the space and T gets a zero coupling: later Ritz values are still eigenvalues (multiple ones appear),
    with zero quadrature weight. A lane with a NaN has NaN in `theta` and `vectors`, and leaves the others as they are.
    """
    device = starts.device
    if device.type == "cpu":

        def looked_at(step: int, rest: Tensor, norm: Tensor, exhausted: Tensor, basis: Tensor) -> Tensor:
            return _begun_anew(rest, norm, exhausted, basis, drawn(step)) if bool(exhausted.any()) else norm

        def drawn(step: int) -> Tensor:
            return _gaussian(starts.shape[1], seed, step).to(starts)

        entries, basis = _recurrence(product, starts, steps, looked_at)
        return Decomposition(*_tridiagonal_eigen(entries), basis)
    # An accelerator is not asked at every step whether a lane is exhausted, but once, at the end: it seldom is.
    entries, basis = _recurrence(product, starts, steps, lambda step, rest, norm, exhausted, basis: norm)
    entries = entries.cpu()
    if bool((entries[1, 1:] == 0).any()):
        noise = torch.stack([_gaussian(starts.shape[1], seed, step) for step in range(steps)])
        noise = to_device(noise.to(starts.dtype), device)
        entries, basis = _recurrence(
            product,
            starts,
            steps,
            lambda step, rest, norm, exhausted, basis: _begun_anew(rest, norm, exhausted, basis, noise[step]),
        )
        entries = entries.cpu()
    theta, vectors = _tridiagonal_eigen(entries)
    both = to_device(torch.cat([theta[:, None], vectors], 1), device)
    return Decomposition(both[:, 0], both[:, 1:], basis)


def _recurrence(
    product: Callable[[Tensor], Tensor],
    starts: Tensor,
    steps: int,
    replaced: Callable[[int, Tensor, Tensor, Tensor, Tensor], Tensor],
) -> tuple[Tensor, Tensor]:
    """Return T's diagonal and the coupling of each step to the one before, (2, k, L), and the basis (L, k, P).

    A coupling of exactly 0 says that the space is exhausted. There *replaced* may put other vectors in place of the
    next ones; called with the step, these (L, P), their norms, which lanes are exhausted and the basis, it returns the
    norms.
    """
    lanes, size = starts.shape
    basis = starts.new_empty(steps, lanes, size)
    entries = starts.new_zeros(2, steps, lanes)
    diagonal, coupling = entries
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
        norm = replaced(step, rest, norm, exhausted, so_far)
        rest /= norm[:, None]
    return entries, basis.transpose(0, 1)


def _gaussian(size: int, seed: int, step: int) -> Tensor:
    return torch.randn(size, generator=stream(seed, f"lanczos/{step}"), dtype=torch.float64)


def _begun_anew(rest: Tensor, norm: Tensor, exhausted: Tensor, basis: Tensor, noise: Tensor) -> Tensor:
    """Put *noise* (P,) without its part in the *basis* in place of the *exhausted* rows of *rest*; return all norms."""
    fresh = noise.repeat(len(rest), 1)
    fresh_norm = _orthogonalise(fresh, basis)
    rest.copy_(torch.where(exhausted[:, None], fresh, rest))
    return torch.where(exhausted, fresh_norm, norm)


def _orthogonalise(vectors: Tensor, basis: Tensor) -> Tensor:
    """Return the norms (L,) of *vectors* (L, P), from which their part in the rows of *basis* (L, k, P) was taken.

    A pass that halves a vector leaves rounding in the span that counts beside the rest: such a lane takes another.
    """
    before = torch.linalg.vector_norm(vectors, dim=-1)
    _project_out(vectors, basis, before)
    norm = torch.linalg.vector_norm(vectors, dim=-1)
    again = norm < 0.5 * before
    # An accelerator takes the second pass always: to ask whether a lane needs it would be to wait for all lanes.
    if vectors.device.type != "cpu" or bool(again.any()):
        twice = vectors.clone()
        _project_out(twice, basis, norm)
        vectors.copy_(torch.where(again[:, None], twice, vectors))
        norm = torch.linalg.vector_norm(vectors, dim=-1)
    return norm


def _project_out(vectors: Tensor, basis: Tensor, norms: Tensor) -> None:
    """Take from *vectors*, of these *norms*, their part in the span of the rows of *basis*, in place."""
    coefficients = torch.bmm(basis, vectors[:, :, None])
    if vectors.shape[1] < LONG or vectors.device.type != "cpu":
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


def _tridiagonal_eigen(entries: Tensor) -> tuple[Tensor, Tensor]:
    """Return eigenvalues and eigenvectors of the matrices of `_recurrence`, float64, NaN where not finite."""
    diagonal, coupling = entries[0].T.double(), entries[1, 1:].T.double()
    matrix = diagonal.diag_embed() + coupling.diag_embed(1) + coupling.diag_embed(-1)
    finite = matrix.isfinite().all(-1).all(-1)
    theta, vectors = torch.linalg.eigh(torch.where(finite[:, None, None], matrix, 0.0))
    nan = torch.where(finite, 0.0, torch.nan)
    return theta + nan[:, None], vectors + nan[:, None, None]
