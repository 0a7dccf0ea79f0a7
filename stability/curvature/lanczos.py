"""The Lanczos method with full reorthogonalization, for many operators at once."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from stability.devices import to_device
from stability.streams import stream

BLOCKED_FROM = 2**16
"""Vector length from which a basis of such vectors no longer fits a processor's cache."""


@dataclass(frozen=True)
class Decomposition:
    """H Q = Q T for each lane (up to the last residual): T = S diag(theta) S', and the orthonormal rows of Q.

    All tensors are on the operator's device.

    Attributes:
        theta: Ritz values (L, k), ascending, float64.
        vectors: S (L, k, k), float64.
        basis: Q (L, k, P), in the operator's dtype.
    """

    theta: Tensor
    vectors: Tensor
    basis: Tensor

    @property
    def weights(self) -> Tensor:
        """Return the Gauss quadrature weights (L, k) at the nodes `theta`: S's squared first components."""
        return self.vectors[:, 0] ** 2

    def extremes(self, top: int) -> tuple[Tensor, Tensor]:
        """Return (L, 2 top) Ritz values, the largest in descending order and then the smallest in ascending order.

        The second result holds their unit Ritz vectors (L, 2 top, P).
        """

        def select(columns: Tensor) -> Tensor:
            return torch.cat([columns[..., -top:].flip(-1), columns[..., :top]], -1)

        ritz = torch.bmm(select(self.vectors).mT.to(self.basis), self.basis)
        return select(self.theta), torch.nn.functional.normalize(ritz, dim=-1)


def lanczos(product: Callable[[Tensor], Tensor], starts: Tensor, steps: int, seed: int) -> Decomposition:
    """Run *steps* Lanczos steps on L symmetric operators at once.

    Every new vector is orthogonalized against all earlier ones, and a second time if the first pass removed so much of
    it that mostly rounding is left (Daniel, Gragg, Kaufman and Stewart 1976). This prevents ghost copies of converged
    eigenvalues. If a lane's Krylov space is exhausted, the next vector is a random one orthogonal to the space, and T
    gets a zero coupling: later Ritz values are still eigenvalues (multiple ones appear), with zero quadrature weight. A
    lane with a NaN has NaN in `theta` and `vectors` and does not affect the other lanes.

    Args:
        product: maps vectors (L, P) to (L, P), lane by lane.
        starts: start vectors (L, P), one per lane.
        steps: number of steps k.
        seed: of the random vectors that continue an exhausted Krylov space.
    """
    device = starts.device
    if device.type == "cpu":

        def restart_if_exhausted(step: int, rest: Tensor, norm: Tensor, exhausted: Tensor, basis: Tensor) -> Tensor:
            if not bool(exhausted.any()):
                return norm
            return _restart(rest, norm, exhausted, basis, _gaussian(starts.shape[1], seed, step).to(starts))

        entries, basis = _recurrence(product, starts, steps, restart_if_exhausted)
        return Decomposition(*_tridiagonal_eigen(entries), basis)
    # One device sync at the end instead of one per step: exhausted lanes are rare, and then the run is repeated.
    entries, basis = _recurrence(product, starts, steps, lambda step, rest, norm, exhausted, basis: norm)
    entries = entries.cpu()
    if bool((entries[1, 1:] == 0).any()):
        noise = torch.stack([_gaussian(starts.shape[1], seed, step) for step in range(steps)])
        noise = to_device(noise.to(starts.dtype), device)
        entries, basis = _recurrence(
            product,
            starts,
            steps,
            lambda step, rest, norm, exhausted, basis: _restart(rest, norm, exhausted, basis, noise[step]),
        )
        entries = entries.cpu()
    theta, vectors = _tridiagonal_eigen(entries)
    packed = to_device(torch.cat([theta[:, None], vectors], 1), device)  # one copy instead of two
    return Decomposition(packed[:, 0], packed[:, 1:], basis)


def _recurrence(
    product: Callable[[Tensor], Tensor],
    starts: Tensor,
    steps: int,
    restart: Callable[[int, Tensor, Tensor, Tensor, Tensor], Tensor],
) -> tuple[Tensor, Tensor]:
    """Return T's diagonal and the coupling of each step to the one before, (2, k, L), and the basis (L, k, P).

    A coupling of exactly 0 means that the lane's Krylov space is exhausted. *restart* may then overwrite the next
    vectors in place: it is called with the step, these vectors (L, P), their norms, a mask of the exhausted lanes and
    the basis, and returns the norms.
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
        # The recurrence first: it removes all but rounding, and one pass over the basis removes the rest.
        rest = torch.addcmul(image, diagonal[step, :, None], current, value=-1, out=basis[step + 1])
        if step:
            rest.addcmul_(coupling[step, :, None], basis[step - 1], value=-1)
        norm = _orthogonalize(rest, so_far)
        largest = torch.maximum(largest, diagonal[step].abs() + norm)
        exhausted = norm <= 10 * torch.finfo(norm.dtype).eps * largest
        coupling[step + 1] = norm.masked_fill(exhausted, 0)
        norm = restart(step, rest, norm, exhausted, so_far)
        rest /= norm[:, None]
    return entries, basis.transpose(0, 1)


def _gaussian(size: int, seed: int, step: int) -> Tensor:
    return torch.randn(size, generator=stream(seed, f"lanczos/{step}"), dtype=torch.float64)


def _restart(rest: Tensor, norm: Tensor, exhausted: Tensor, basis: Tensor, noise: Tensor) -> Tensor:
    """Overwrite the *exhausted* rows of *rest* by *noise* (P,) projected out of the *basis*; return all norms."""
    fresh = noise.repeat(len(rest), 1)
    fresh_norm = _orthogonalize(fresh, basis)
    rest.copy_(torch.where(exhausted[:, None], fresh, rest))
    return torch.where(exhausted, fresh_norm, norm)


def _orthogonalize(vectors: Tensor, basis: Tensor) -> Tensor:
    """Project *vectors* (L, P) out of the rows of *basis* (L, k, P) in place; return their new norms (L,).

    If a pass halves a vector, the rounding left in the span is no longer negligible: such a lane takes a second pass.
    """
    before = torch.linalg.vector_norm(vectors, dim=-1)
    _project_out(vectors, basis, before)
    norm = torch.linalg.vector_norm(vectors, dim=-1)
    again = norm < 0.5 * before
    # Avoid a device sync: an accelerator always takes the second pass and masks it.
    if vectors.device.type != "cpu" or bool(again.any()):
        twice = vectors.clone()
        _project_out(twice, basis, norm)
        vectors.copy_(torch.where(again[:, None], twice, vectors))
        norm = torch.linalg.vector_norm(vectors, dim=-1)
    return norm


def _project_out(vectors: Tensor, basis: Tensor, norms: Tensor) -> None:
    """Subtract from *vectors*, whose norms are *norms*, their projection onto the rows of *basis*, in place."""
    coefficients = torch.bmm(basis, vectors[:, :, None])
    if vectors.shape[1] < BLOCKED_FROM or vectors.device.type != "cpu":
        vectors[:, None].baddbmm_(coefficients.mT, basis, alpha=-1)
        return
    # Most coefficients are at rounding level; a second full pass would dominate the cost, so skip them.
    significant = coefficients[:, :, 0].abs() > torch.finfo(norms.dtype).eps * norms[:, None]
    for vector, rows, row_coefficients, mask in zip(vectors, basis, coefficients[:, :, 0], significant, strict=True):
        indices = mask.nonzero()[:, 0].tolist()
        if len(indices) > len(rows) // 4:
            vector.addmv_(rows.T, row_coefficients, alpha=-1)
        else:
            for index in indices:
                vector.addcmul_(rows[index], row_coefficients[index], value=-1)


def _tridiagonal_eigen(entries: Tensor) -> tuple[Tensor, Tensor]:
    """Return eigenvalues and eigenvectors of the matrices T of `_recurrence`, float64, NaN if T is not finite."""
    diagonal, coupling = entries[0].T.double(), entries[1, 1:].T.double()
    matrix = diagonal.diag_embed() + coupling.diag_embed(1) + coupling.diag_embed(-1)
    finite = matrix.isfinite().all(-1).all(-1)
    theta, vectors = torch.linalg.eigh(torch.where(finite[:, None, None], matrix, 0.0))
    nan = torch.where(finite, 0.0, torch.nan)
    return theta + nan[:, None], vectors + nan[:, None, None]
