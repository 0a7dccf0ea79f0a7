"""A cross-check of one Hessian: this package against PyHessian and, for small models, dense linear algebra."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils import _pytree as pytree

from stability.curvature.products import Objective, check_params, flatten, unflatten
from stability.curvature.spectra import spectrum
from stability.devices import to_float64

DENSE_LIMIT = 5_000  # parameters; the dense float64 Hessian then takes 200 MB


@dataclass(frozen=True)
class CrossCheck:
    """Largest eigenvalue by magnitude and trace of one Hessian, in float64, by three independent methods.

    Attributes:
        high: largest eigenvalue by magnitude, by this package's Lanczos.
        residual: |H v - high v|.
        trace: by this package.
        trace_stderr: standard error of *trace*.
        pyhessian_high: by PyHessian's power iteration.
        pyhessian_trace: by PyHessian's Hutchinson probes.
        pyhessian_trace_stderr: standard error of *pyhessian_trace*.
        dense_high: from the dense Hessian, exact; NaN above 5,000 parameters.
        dense_trace: from the dense Hessian, exact; NaN above 5,000 parameters.
    """

    high: float
    residual: float
    trace: float
    trace_stderr: float
    pyhessian_high: float
    pyhessian_trace: float
    pyhessian_trace_stderr: float
    dense_high: float
    dense_trace: float


def pyhessian_check(
    objective: Objective,
    params: Mapping[str, Tensor],
    *,
    batches: Any = None,
    steps: int = 80,
    trace_probes: int = 100,
    iterations: int = 200,
    seed: int = 0,
) -> CrossCheck:
    """Return the top eigenvalue and the trace of a Hessian by all three methods, in float64 on the CPU.

    PyHessian's power iteration converges to the eigenvalue of largest magnitude and has no error estimate: if the
    spectrum is nearly symmetric, its result can be anything between the extremes. Yao et al. (2020), "PyHessian:
    neural networks through the lens of the Hessian", arXiv:1912.07145.

    Args:
        objective: as in `stability.curvature.spectrum`.
        params: parameters of one replica, by name.
        batches: as in `stability.curvature.spectrum`.
        steps: Lanczos steps.
        trace_probes: number of Hutchinson vectors, of both packages.
        iterations: most steps of the power iteration.
        seed: of both packages; PyHessian draws from it inside a fork of the global generator.
    """
    check_params(params, batched=False)
    params = {name: to_float64(value.cpu()) for name, value in params.items()}
    batches = pytree.tree_map_only(Tensor, lambda leaf: to_float64(leaf.cpu()), batches)
    ours = spectrum(objective, params, batches=batches, steps=steps, trace_probes=trace_probes, seed=seed)
    from_high = bool(ours.eigenvalues_high.abs() >= ours.eigenvalues_low.abs())
    values, residuals = (
        (ours.eigenvalues_high, ours.residuals_high) if from_high else (ours.eigenvalues_low, ours.residuals_low)
    )
    top, traces = _pyhessian(_ObjectiveModule(objective, params, batches), iterations, trace_probes, seed)
    dense_high, dense_trace = _dense(objective, params, batches)
    return CrossCheck(
        high=values.item(),
        residual=residuals.item(),
        trace=ours.trace.item(),
        trace_stderr=ours.trace_stderr.item(),
        pyhessian_high=top,
        pyhessian_trace=traces.mean().item(),
        pyhessian_trace_stderr=traces.std().item() / math.sqrt(len(traces)),
        dense_high=dense_high,
        dense_trace=dense_trace,
    )


class _ObjectiveModule(nn.Module):
    """An objective with all its parameters, trained scalars included, as one module for PyHessian."""

    def __init__(self, objective: Objective, params: Mapping[str, Tensor], batches: Any) -> None:
        super().__init__()
        self.objective, self.batches, self.names = objective, batches, list(params)
        self.values = nn.ParameterList(value.clone() for value in params.values())

    def forward(self, _: Any) -> Tensor:
        params = dict(zip(self.names, self.values, strict=True))
        # PyHessian differentiates each gradient again: even a constant or missing gradient needs a graph.
        anchor = torch.stack([(0 * value**2).sum() for value in self.values]).sum()
        return anchor + _mean(self.objective, params, self.batches)


def _pyhessian(module: _ObjectiveModule, iterations: int, probes: int, seed: int) -> tuple[float, Tensor]:
    """Return PyHessian's top eigenvalue and one trace estimate per probe."""
    from pyhessian import hessian

    with torch.random.fork_rng(devices=[]), warnings.catch_warnings(), sdpa_kernel(SDPBackend.MATH):
        warnings.filterwarnings("ignore", message="Using backward.. with create_graph=True")
        torch.default_generator.manual_seed(seed)
        saved_grads = [(leaf, leaf.grad) for leaf in _leaves(module(None)) - set(module.parameters())]
        reference = hessian(module, lambda loss, _: loss, data=(None, None), cuda=False)
        (top, *_), _ = reference.eigenvalues(maxIter=iterations, tol=1e-6)
        # Disable its stopping rule: it divides by the running trace, and a negative trace ends it after two probes.
        traces = reference.trace(maxIter=probes, tol=-math.inf)
    module.zero_grad(set_to_none=True)  # breaks the reference cycle of parameter and gradient
    for leaf, grad in saved_grads:  # its backward pass also fills `grad` of tensors that the objective closes over
        leaf.grad = grad
    return float(top), torch.tensor(traces, dtype=torch.float64)


def _leaves(output: Tensor) -> set[Tensor]:
    """Return the tensors whose `grad` a backward pass from *output* would fill."""
    leaves: set[Tensor] = set()
    seen, stack = set(), [output.grad_fn]
    while stack:
        node = stack.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if hasattr(node, "variable"):
            leaves.add(node.variable)
        stack += [parent for parent, _ in node.next_functions]
    return leaves


def _dense(objective: Objective, params: Mapping[str, Tensor], batches: Any) -> tuple[float, float]:
    """Return the exact top eigenvalue by magnitude and trace; NaN for a large or non-finite Hessian."""
    shapes = {name: value.shape for name, value in params.items()}
    flat = flatten(params, 0)
    if len(flat) > DENSE_LIMIT:
        return math.nan, math.nan
    gradient = torch.func.grad(lambda point: _mean(objective, unflatten(point, shapes), batches))
    with sdpa_kernel(SDPBackend.MATH):
        matrix = torch.func.jacrev(gradient, chunk_size=64)(flat)
    if not bool(matrix.isfinite().all()):
        return math.nan, math.nan
    eigenvalues = torch.linalg.eigvalsh((matrix + matrix.T) / 2)
    return eigenvalues[eigenvalues.abs().argmax()].item(), matrix.trace().item()


def _mean(objective: Objective, params: dict[str, Tensor], batches: Any) -> Tensor:
    """Return the objective's mean over whole *batches*, evaluated in a loop."""
    if batches is None:
        return objective(params)
    count = pytree.tree_leaves(batches)[0].shape[0]
    losses = [objective(params, pytree.tree_map(lambda leaf, k=k: leaf[k], batches)) for k in range(count)]
    return torch.stack(losses).mean()
