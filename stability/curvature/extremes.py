"""The extreme eigenvectors of a Hessian, by name and shape like the parameters."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor

from stability.curvature.products import Objective, ParamFilter, flatten
from stability.curvature.spectra import spectrum
from stability.registry import InputError, nearest


@dataclass(frozen=True)
class Eigenvectors:
    """Ritz pairs of a Hessian, most extreme first.

    Attributes:
        values: eigenvalues lambda (top,).
        vectors: unit vectors, like the parameters (of the block), each tensor with a leading axis (top,).
        residuals: |H v - lambda v| (top,).
        converged: (top,), as in `stability.curvature.Spectrum`.
    """

    values: Tensor
    vectors: dict[str, Tensor]
    residuals: Tensor
    converged: Tensor


def eigenvectors(
    objective: Objective,
    params: Mapping[str, Tensor],
    top: int = 2,
    *,
    end: Literal["high", "low"] = "high",
    steps: int = 80,
    seed: int = 0,
    batches: Any = None,
    block: ParamFilter | None = None,
    chunk_size: int | None = None,
) -> Eigenvectors:
    """Return the *top* Ritz pairs at one *end* of the Hessian's spectrum: the largest, or the smallest eigenvalues.

    Computed by Lanczos with full reorthogonalization. The sign of each vector is such that its largest entry is
    positive.

    Args:
        objective: ``objective(params) -> scalar``, or ``objective(params, batch)`` with *batches*.
        params: parameters by name.
        top: number of pairs.
        end: the largest ("high") or the smallest ("low") eigenvalues.
        steps: Lanczos steps.
        seed: of the start vector.
        batches: as in `stability.curvature.spectrum`.
        block: as in `stability.curvature.spectrum`.
        chunk_size: as in `stability.curvature.spectrum`.

    Raises:
        InputError: as in `stability.curvature.spectrum`, and for an unknown end.

    >>> import torch
    >>> pairs = eigenvectors(lambda p: (p["w"] ** 2 * torch.tensor([3.0, -1.0, 0.5])).sum() / 2, {"w": torch.ones(3)})
    >>> pairs.values.round(decimals=3), pairs.vectors["w"].round(decimals=3).abs()
    (tensor([3.0000, 0.5000]), tensor([[1., 0., 0.],
            [0., 0., 1.]]))
    """
    if end not in ("high", "low"):
        raise InputError(f"end: unknown end {end!r}{nearest(end, ('high', 'low'))}")
    result = spectrum(
        objective,
        params,
        steps=steps,
        top=top,
        trace_probes=1,
        seed=seed,
        batches=batches,
        block=block,
        chunk_size=chunk_size,
    )
    pairs = {name: getattr(result, f"{name}_{end}") for name in ("eigenvalues", "vectors", "residuals", "converged")}
    # An eigenvector's sign is arbitrary; without this rule it would depend on rounding.
    flat = flatten(pairs["vectors"], 1)
    sign = flat.gather(1, flat.abs().argmax(1, keepdim=True)).sign()[:, 0]
    vectors = {name: tensor * sign.view(-1, *(1,) * (tensor.dim() - 1)) for name, tensor in pairs["vectors"].items()}
    return Eigenvectors(pairs["eigenvalues"], vectors, pairs["residuals"], pairs["converged"])
