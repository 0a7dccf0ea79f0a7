"""Hessian spectra of the training objective, and a cross-check of them against PyHessian."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from stability.curvature import Spectrum, pyhessian_check, spectrum
from stability.curvature.products import at_index
from stability.probes.registry import GROWS_WITH_LOSS, Measure, Replica, in_towers, probe


def negative_curvature_share(nodes: Tensor, weights: Tensor) -> Tensor:
    """Return the share of sum |lambda| due to negative eigenvalues, (R,), from quadrature nodes and weights (R, k).

    Unlike the mass below zero, it does not depend on the sign of the many eigenvalues near zero.

    >>> negative_curvature_share(torch.tensor([[-1.0, 0.0, 3.0]]), torch.full((1, 3), 1 / 3))
    tensor([0.2500])
    """
    size = nodes.abs() * weights
    return torch.where(nodes < 0, size, 0.0).sum(-1) / size.sum(-1)


def in_scalars(name: str) -> bool:
    """Return whether a parameter is one of the loss's trained scalars."""
    return not in_towers(name)


@probe(
    stacked=True,
    fixed_batches=True,
    holds=("batches",),
    least={"batches": 1, "steps": 1, "edge_steps": 1, "trace_probes": 1},
    measures=(
        Measure(
            "hessian_max_eigenvalue",
            "Top Hessian eigenvalue",
            "Largest eigenvalue over all parameters.",
            barred_between_losses=GROWS_WITH_LOSS,
        ),
        Measure(
            "hessian_max_eigenvalue_residual",
            "Residual of the top eigenvalue",
            "|H v - lambda v| of its Ritz pair.",
            error_of="hessian_max_eigenvalue",
            barred_between_losses=GROWS_WITH_LOSS,
            transform="log",
        ),
        Measure(
            "hessian_min_eigenvalue",
            "Lowest Hessian eigenvalue",
            "Smallest eigenvalue (the most negative) over all parameters.",
            barred_between_losses=GROWS_WITH_LOSS,
        ),
        Measure(
            "hessian_min_eigenvalue_residual",
            "Residual of the lowest eigenvalue",
            "|H v - lambda v| of its Ritz pair.",
            error_of="hessian_min_eigenvalue",
            barred_between_losses=GROWS_WITH_LOSS,
            transform="log",
        ),
        Measure(
            "hessian_trace",
            "Hessian trace",
            "Hutchinson estimate of the sum of all eigenvalues.",
            barred_between_losses=GROWS_WITH_LOSS,
        ),
        Measure(
            "hessian_trace_stderr",
            "Standard error of the trace",
            "Over the Hutchinson probes.",
            error_of="hessian_trace",
            barred_between_losses=GROWS_WITH_LOSS,
            transform="log",
        ),
        Measure(
            "hessian_negative_share",
            "Negative curvature",
            "Share of sum |lambda| that negative eigenvalues hold.",
            "share",
        ),
        Measure(
            "hessian_max_eigenvalue_towers",
            "Top eigenvalue, towers",
            "Largest eigenvalue of the encoders' block.",
            barred_between_losses=GROWS_WITH_LOSS,
        ),
        Measure(
            "hessian_max_eigenvalue_scalars",
            "Top eigenvalue, scalars",
            "Largest eigenvalue of the block of the loss's scalars.",
            barred_between_losses=GROWS_WITH_LOSS,
        ),
        Measure(
            "hessian_min_eigenvalue_scalars",
            "Lowest eigenvalue, scalars",
            "Smallest eigenvalue of the block of the loss's scalars.",
            barred_between_losses=GROWS_WITH_LOSS,
        ),
        Measure(
            "preconditioned_sharpness",
            "Preconditioned sharpness",
            "Largest eigenvalue of P^-1/2 H P^-1/2 over the encoders, P = Adam's bias-corrected sqrt(v_hat) + eps, or "
            "1 under SGD; none under an optimizer that divides its steps by no diagonal.",
            transform="log",
        ),
        Measure(
            "preconditioned_sharpness_residual",
            "Residual of the preconditioned sharpness",
            "|H v - lambda v| of its Ritz pair, in the preconditioned problem.",
            error_of="preconditioned_sharpness",
            transform="log",
        ),
        Measure(
            "sharpness_ratio",
            "Sharpness / threshold",
            "Preconditioned sharpness over the adaptive edge of stability, (2 + 2 beta1) / ((1 - beta1) lr), under SGD "
            "sharpness over (2 + 2 momentum) / lr; only in a phase of constant rate, and only under an optimizer whose "
            "threshold is known.",
            transform="log",
        ),
        Measure(
            "hessian_nodes",
            "Eigenvalue",
            "Nodes of the Lanczos quadrature of the spectral density.",
            listed=True,
        ),
        Measure(
            "hessian_weights",
            "Spectral mass",
            "Weights of the Lanczos quadrature, summing to 1.",
            listed=True,
        ),
    ),
)
def curvature(
    replica: Replica, *, batches: int = 16, steps: int = 16, edge_steps: int = 10, trace_probes: int = 4
) -> dict[str, Tensor]:
    """Measure extremes, trace and density of the Hessian of the mean loss over fixed batches, in total and by block.

    The objective is the mean over *batches* fixed batches of the training size: a single batch overestimates the top
    eigenvalue. Lanczos with full reorthogonalization (*steps* products) and *trace_probes* Hutchinson vectors, both
    seeded. Raw eigenvalues scale with the loss; the sharpness ratio does not. Cohen et al. (2022), arXiv:2207.14484.

    Args:
        replica: the stacked replicas.
        batches: batches of the objective.
        steps: Lanczos steps for the whole Hessian.
        edge_steps: Lanczos steps for the encoders' block, plain and preconditioned.
        trace_probes: Hutchinson vectors for the whole Hessian.
    """
    # On an accelerator all batches share one graph, as far as it fits in memory.
    chunk_size = 1 if replica.learning_rate.device.type == "cpu" else None

    def spectrum_of(**options: Any) -> Spectrum:
        return spectrum(
            replica.objective, replica.params, batched=True, batches=replica.batches, chunk_size=chunk_size, **options
        )

    whole = spectrum_of(steps=steps, trace_probes=trace_probes)
    towers = spectrum_of(steps=edge_steps, trace_probes=1, block=in_towers)
    count = sum(map(in_scalars, replica.params))
    scalars = spectrum_of(steps=count, trace_probes=1, block=in_scalars) if count else None
    absent = torch.full_like(towers.eigenvalues_high[:, 0], torch.nan)
    sharpness = residual = absent
    if replica.preconditioner:
        adam = spectrum_of(steps=edge_steps, trace_probes=1, block=in_towers, preconditioner=replica.preconditioner)
        sharpness, residual = adam.eigenvalues_high[:, 0], adam.residuals_high[:, 0]
    threshold = replica.stability_threshold / replica.learning_rate
    return {
        "hessian_max_eigenvalue": whole.eigenvalues_high[:, 0],
        "hessian_max_eigenvalue_residual": whole.residuals_high[:, 0],
        "hessian_min_eigenvalue": whole.eigenvalues_low[:, 0],
        "hessian_min_eigenvalue_residual": whole.residuals_low[:, 0],
        "hessian_trace": whole.trace,
        "hessian_trace_stderr": whole.trace_stderr,
        "hessian_negative_share": negative_curvature_share(whole.nodes.flatten(1), whole.weights.flatten(1)),
        "hessian_max_eigenvalue_towers": towers.eigenvalues_high[:, 0],
        "hessian_max_eigenvalue_scalars": scalars.eigenvalues_high[:, 0] if scalars else absent,
        "hessian_min_eigenvalue_scalars": scalars.eigenvalues_low[:, 0] if scalars else absent,
        "preconditioned_sharpness": sharpness,
        "preconditioned_sharpness_residual": residual,
        "sharpness_ratio": sharpness / threshold if replica.constant_rate else absent,
        "hessian_nodes": whole.nodes.flatten(1),
        "hessian_weights": whole.weights.flatten(1) / whole.weights.flatten(1).sum(1, keepdim=True),
    }


@probe(
    stacked=True,
    alone=True,
    fixed_batches=True,
    holds=(),
    least={"batches": 1, "trace_probes": 1},
    measures=(
        Measure("crosscheck_high", "Largest eigenvalue by magnitude", "By this package's Lanczos, float64."),
        Measure(
            "crosscheck_residual",
            "Its residual",
            "|H v - lambda v| of the Ritz pair.",
            error_of="crosscheck_high",
            transform="log",
        ),
        Measure("crosscheck_trace", "Trace", "By this package's Hutchinson estimate, float64."),
        Measure(
            "crosscheck_trace_stderr",
            "Standard error of the trace",
            "Over the probes.",
            error_of="crosscheck_trace",
            transform="log",
        ),
        Measure(
            "pyhessian_high",
            "Largest eigenvalue, PyHessian",
            "By PyHessian's power iteration on the same objective.",
        ),
        Measure("pyhessian_trace", "Trace, PyHessian", "By PyHessian's Hutchinson estimate on the same objective."),
        Measure(
            "pyhessian_trace_stderr",
            "Standard error of PyHessian's trace",
            "Over its probes.",
            error_of="pyhessian_trace",
            transform="log",
        ),
        Measure(
            "dense_high",
            "Largest eigenvalue, exact",
            "From the dense float64 Hessian, where it is small enough.",
        ),
        Measure("dense_trace", "Trace, exact", "From the dense float64 Hessian, where it is small enough."),
    ),
)
def cross_check(replica: Replica, *, batches: int = 1, trace_probes: int = 50) -> dict[str, Tensor]:
    """Compare top eigenvalue and trace with the PyHessian package and, for small models, with the dense Hessian.

    All three use the same float64 objective: the mean loss over *batches* fixed batches. Yao et al. (2020),
    arXiv:1912.07145.
    """
    count = len(replica.learning_rate)
    # Computed on the CPU: copy all replicas at once.
    params, stacked = tree_map(Tensor.cpu, (replica.params, replica.batches))
    checks = [
        pyhessian_check(
            replica.objective, at_index(params, index), batches=at_index(stacked, index), trace_probes=trace_probes
        )
        for index in range(count)
    ]
    columns = {
        "crosscheck_high": "high",
        "crosscheck_residual": "residual",
        "crosscheck_trace": "trace",
        "crosscheck_trace_stderr": "trace_stderr",
        "pyhessian_high": "pyhessian_high",
        "pyhessian_trace": "pyhessian_trace",
        "pyhessian_trace_stderr": "pyhessian_trace_stderr",
        "dense_high": "dense_high",
        "dense_trace": "dense_trace",
    }
    return {column: torch.tensor([getattr(check, field) for check in checks]) for column, field in columns.items()}
