"""Extremes, trace and density of a Hessian's spectrum, each with an error estimate."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from stability.curvature.lanczos import Decomposition, lanczos
from stability.curvature.products import (
    Hessian,
    Objective,
    ParamFilter,
    at_index,
    hessian_of,
    replicas_at_once,
    unflatten,
)
from stability.devices import to_device
from stability.registry import InputError
from stability.streams import stream

PROBES_AT_ONCE = 8  # Hutchinson probes per product, so that memory does not grow with their number

VECTORS = 2 * PROBES_AT_ONCE
"""Memory of one replica in addition to its Lanczos basis, in vectors of the size of its parameters."""


@dataclass(frozen=True)
class Spectrum:
    """Estimates of a Hessian's spectrum by Lanczos and Hutchinson probes.

    If the parameters are batched, the first axis of each tensor is that of the replicas. All values are NaN, and not
    converged, if the objective or its derivatives are not finite.

    Attributes:
        eigenvalues_high, eigenvalues_low: extremes by sign (top,), from the largest down and from the smallest up.
        residuals_high, residuals_low: |H v - lambda v| (top,); some eigenvalue is within a residual of lambda.
        converged_high, converged_low: whether the residual is below sqrt(eps) of the largest |lambda| found.
        vectors_high, vectors_low: unit Ritz vectors, like the parameters with a leading axis (top,).
        trace: sum of all eigenvalues.
        trace_stderr: standard error over the probes; rounding error alone with as many steps as parameters, 0 with as
            many probes as parameters (the trace is then exact).
        nodes, weights: Gauss quadratures of the spectral density (probes, steps).
        hvps: Hessian-vector products per replica.
        dtype: of the parameters.
    """

    eigenvalues_high: Tensor
    eigenvalues_low: Tensor
    residuals_high: Tensor
    residuals_low: Tensor
    converged_high: Tensor
    converged_low: Tensor
    vectors_high: dict[str, Tensor]
    vectors_low: dict[str, Tensor]
    trace: Tensor
    trace_stderr: Tensor
    nodes: Tensor
    weights: Tensor
    hvps: int
    dtype: torch.dtype

    def density(self, grid: Tensor, width: float) -> Tensor:
        """Return the spectral density at *grid* (G,), smoothed by a Gaussian of standard deviation *width*.

        phi(x) = mean over probes of sum_i w_i N(x; node_i, width^2); it integrates to 1. Lin, Saad and Yang
        (2016), "Approximating spectral densities of large matrices", section 3.2.
        """
        if not width > 0:
            raise InputError(f"width is {width}; allowed: a positive standard deviation")
        z = (grid.to(self.nodes)[:, None, None] - self.nodes[..., None, :, :]) / width
        bumps = torch.exp(-(z**2) / 2) / (width * math.sqrt(2 * math.pi))
        return (self.weights[..., None, :, :] * bumps).sum(-1).mean(-1)

    @property
    def negative_share(self) -> Tensor:
        """Return the share of the spectral density below zero, in [0, 1].

        Nodes within rounding of zero (100 eps of the largest) count as zero: a low-rank Hessian has many of them.
        """
        scale = self.nodes.abs().amax(dim=(-2, -1), keepdim=True)
        negative = self.nodes < -100 * torch.finfo(self.dtype).eps * scale
        share = (self.weights * negative).sum(-1).mean(-1)
        return share.clamp(max=1)

    def _repr_html_(self) -> str:
        """Return an HTML table of extremes and trace with their errors, one row per replica, for a notebook."""
        head = "".join(f"<th>{word}</th>" for word in ("", "largest", "smallest", "trace", "below zero"))
        pairs = (
            (self.eigenvalues_high[..., 0], self.residuals_high[..., 0]),
            (self.eigenvalues_low[..., 0], self.residuals_low[..., 0]),
            (self.trace, self.trace_stderr),
        )
        columns = [torch.stack(pair, -1).reshape(-1, 2).tolist() for pair in pairs]
        shares = self.negative_share.reshape(-1).tolist()
        rows = "".join(
            f"<tr><th>{index if self.trace.dim() else ''}</th>"
            + "".join(f"<td>{value:.4g} ± {error:.2g}</td>" for value, error in row)
            + f"<td>{share:.1%}</td></tr>"
            for index, (*row, share) in enumerate(zip(*columns, shares, strict=True))
        )
        caption = f"Hessian spectrum, {self.hvps} Hessian-vector products; ± residual or standard error"
        return f"<table><caption>{caption}</caption><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>"


def spectrum(
    objective: Objective,
    params: Mapping[str, Tensor],
    *,
    steps: int = 80,
    probes: int = 1,
    top: int = 1,
    trace_probes: int = 16,
    seed: int = 0,
    batched: bool = False,
    batches: Any = None,
    preconditioner: Mapping[str, Tensor] | None = None,
    block: ParamFilter | None = None,
    chunk_size: int | None = None,
    retain_graph: bool = True,
) -> Spectrum:
    """Return the extremes, trace and density of the Hessian of ``objective(params) -> scalar`` at *params*.

    Extremes and density are by stochastic Lanczos quadrature (Ubaru, Chen and Saad 2017). The trace is exact inside the
    first start's Krylov space and estimated by Hutchinson probes (Hutchinson 1990) outside it, so more Lanczos steps
    also sharpen the trace. The Lanczos basis takes probes x R x steps x P numbers.

    Args:
        objective: written for one replica; ``objective(params, batch)`` with *batches*.
        params: parameters by name.
        steps: Lanczos steps per start, at most P, the number of parameters.
        probes: Gaussian start vectors.
        top: eigenvalues at each end of the spectrum.
        trace_probes: Rademacher vectors for the trace.
        seed: of starts and probes, which are the same for every replica.
        batched: whether each tensor of *params* has a leading replica axis R.
        batches: a pytree of tensors of M whole batches, (M, ...) or (R, M, ...); the Hessian is that of the mean over
            the batches.
        preconditioner: the diagonal P > 0, like *params*; the operator is then P^-1/2 H P^-1/2, whose largest
            eigenvalue is Adam's sharpness for P = sqrt(v) + eps (Cohen et al. 2022, arXiv:2207.14484).
        block: names, or a predicate on names: the Hessian with respect to these parameters, the others constant.
        chunk_size: batches that share one graph (None: as many as a cache, or an accelerator's memory, holds).
        retain_graph: keep the graphs between products; otherwise each product rebuilds them and memory holds one chunk.

    Raises:
        InputError: if arguments do not match the parameters. An objective that is not finite gives NaN instead.

    >>> s = spectrum(lambda p: (p["w"] ** 2 * torch.tensor([3.0, -1.0, 0.5])).sum() / 2, {"w": torch.ones(3)})
    >>> s.eigenvalues_high.round(decimals=3), s.eigenvalues_low.round(decimals=3), s.trace
    (tensor([3.]), tensor([-1.]), tensor(2.5000))
    """
    options: dict[str, Any] = {"block": block, "chunk_size": chunk_size, "retain_graph": retain_graph}
    counts = {"steps": steps, "probes": probes, "top": top, "trace_probes": trace_probes, "seed": seed}
    if not batched:
        hessian = hessian_of(objective, params, batches=batches, preconditioner=preconditioner, **options)
        result = _spectrum_of(hessian, **counts)
        return replace(result, **tree_map(lambda tensor: tensor[0], _tensors(result)))
    vectors = probes * (steps + VECTORS)
    groups = replicas_at_once(objective, params, batches=batches, vectors=vectors, **options)
    inputs = (dict(params), batches, None if preconditioner is None else dict(preconditioner))

    def of_group(group: slice) -> Spectrum:
        group_params, group_batches, diagonal = at_index(inputs, group) if len(groups) > 1 else inputs
        hessian = hessian_of(
            objective, group_params, batched=True, batches=group_batches, preconditioner=diagonal, **options
        )
        return _spectrum_of(hessian, **counts)

    # Group by group: the graph and the basis of one group are freed before the next one starts.
    return _concat([of_group(group) for group in groups])


def _spectrum_of(hessian: Hessian, steps: int, probes: int, top: int, trace_probes: int, seed: int) -> Spectrum:
    """Return the spectrum of each replica of the operator, tensors (R, ...)."""
    size = hessian.point.shape[1]
    steps = _check_counts(steps, probes, top, trace_probes, size)
    run = _lanczos_of(hessian, steps, probes, seed)
    trace, trace_stderr, trace_hvps = _trace(hessian, run, trace_probes, seed)
    return Spectrum(
        **_extremes(hessian, run, top),
        trace=trace,
        trace_stderr=trace_stderr,
        nodes=_by_replica(run.theta, probes).to(hessian.point),
        weights=_by_replica(run.weights, probes).to(hessian.point),
        hvps=steps * probes + trace_hvps + 2 * top,
        dtype=hessian.point.dtype,
    )


def _tensors(spectrum: Spectrum) -> dict[str, Any]:
    """Return the fields with a replica axis: tensors, or tensors by parameter."""
    values = {field.name: getattr(spectrum, field.name) for field in fields(spectrum)}
    return {name: value for name, value in values.items() if isinstance(value, Tensor | dict)}


def _concat(spectra: list[Spectrum]) -> Spectrum:
    """Return the spectra of several groups of replicas as one."""
    tensors = tree_map(lambda *parts: torch.cat(parts), *map(_tensors, spectra))
    return replace(spectra[0], **tensors)


def _check_counts(steps: int, probes: int, top: int, trace_probes: int, size: int) -> int:
    """Return *steps*, at most *size*; raise `InputError` for a count that is not allowed."""
    counts = {"steps": steps, "probes": probes, "top": top, "trace_probes": trace_probes}
    for name, count in counts.items():
        if count < 1:
            raise InputError(f"{name} is {count}; allowed: a whole number of at least 1")
    steps = min(steps, size)
    if top > steps:
        raise InputError(f"top is {top}; allowed: 1 to {steps}, the Lanczos steps that {size} parameters admit")
    return steps


def _lanczos_of(hessian: Hessian, steps: int, probes: int, seed: int) -> Decomposition:
    """Run Lanczos on probes x R lanes; all replicas share each start."""
    replicas, size = hessian.point.shape
    starts = torch.randn(probes, 1, size, generator=stream(seed, "lanczos"), dtype=torch.float64)
    starts = to_device(starts.to(hessian.point.dtype), hessian.point.device)
    starts = starts.expand(probes, replicas, size).reshape(-1, size)

    def product(vectors: Tensor) -> Tensor:
        return hessian.product(vectors.view(probes, replicas, size)).view(-1, size)

    return lanczos(product, starts, steps, seed)


def _extremes(hessian: Hessian, run: Decomposition, top: int) -> dict[str, Any]:
    """Return the eigenvalues at both ends from the first start, with their true residuals."""
    replicas = len(hessian.point)
    first = Decomposition(run.theta[:replicas], run.vectors[:replicas], run.basis[:replicas])
    theta, vectors = first.extremes(top)
    values = theta.to(hessian.point)
    vectors = vectors + (0 * values)[..., None]
    images = hessian.product(vectors.transpose(0, 1)).transpose(0, 1)
    residuals = (images - values[..., None] * vectors).norm(dim=-1)
    scale = first.theta.abs().amax(-1, keepdim=True).to(hessian.point)
    converged = residuals <= math.sqrt(torch.finfo(residuals.dtype).eps) * scale
    named = {"eigenvalues": values, "residuals": residuals, "converged": converged}
    extremes: dict[str, Any] = {}
    for end, part in (("high", slice(top)), ("low", slice(top, None))):
        extremes |= {f"{name}_{end}": value[:, part] for name, value in named.items()}
        extremes[f"vectors_{end}"] = unflatten(vectors[:, part], hessian.shapes)
    return extremes


def _trace(hessian: Hessian, run: Decomposition, count: int, seed: int) -> tuple[Tensor, Tensor, int]:
    """Return the trace (R,), its standard error and the number of further products.

    tr H = tr Q H Q' + E[z' H z], where Q is the first start's orthonormal basis and z a Rademacher vector projected out
    of Q. The first term is the sum of the Ritz values; only the second is estimated (as in Hutch++, Meyer et al. 2021,
    arXiv:2010.09649, with Krylov directions). Its variance is at most 2 |H'|_F^2 for the remainder H', which lacks the
    large eigenvalues: a spectrum with few of them takes tens of times fewer probes.
    """
    replicas, size = hessian.point.shape
    basis, theta = run.basis[:replicas], run.theta[:replicas]
    krylov_trace = theta.sum(-1).to(hessian.point)
    zero_or_nan = 0 * krylov_trace
    if count >= size:
        if basis.shape[1] == size:
            return krylov_trace, zero_or_nan, 0
        identity = torch.eye(size, dtype=hessian.point.dtype, device=hessian.point.device)
        forms = _forms(hessian, identity, basis[:, :0])
        return forms.sum(0), zero_or_nan, size
    # Exact trace: only rounding error remains.
    rounding = torch.finfo(hessian.point.dtype).eps * theta.abs().sum(-1).to(hessian.point)
    if basis.shape[1] == size:
        return krylov_trace, rounding, 0
    directions = torch.randint(2, (count, size), generator=stream(seed, "trace")).double() * 2 - 1
    forms = _forms(hessian, to_device(directions.to(hessian.point.dtype), hessian.point.device), basis)
    spread = forms.std(0) if count > 1 else zero_or_nan + torch.nan
    return krylov_trace + forms.mean(0), torch.hypot(spread / math.sqrt(count), rounding), count


def _forms(hessian: Hessian, directions: Tensor, basis: Tensor) -> Tensor:
    """Return z' H z (count, R) for each row z of *directions* (count, P), projected out of the *basis* (R, k, P)."""
    forms = []
    for group in directions.split(PROBES_AT_ONCE):
        rest = (group - group @ basis.mT @ basis).transpose(0, 1)
        forms.append((rest * hessian.product(rest)).sum(-1))
    return torch.cat(forms)


def _by_replica(lanes: Tensor, probes: int) -> Tensor:
    return lanes.view(probes, -1, lanes.shape[-1]).transpose(0, 1)
