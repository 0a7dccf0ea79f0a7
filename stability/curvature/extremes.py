"""The extreme eigenvectors of a Hessian, by name and shape like the parameters."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor

from stability.curvature.products import Block, Objective, flatten
from stability.curvature.spectra import spectrum
from stability.registry import InputError, nearest


@dataclass(frozen=True)
class Eigenvectors:
    """Ritz pairs of a Hessian, most extreme first: values and residuals |H v - lambda v| (top,), unit vectors.

    `vectors` is like the parameters (of the block), each tensor with a leading axis (top,).
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
    block: Block | None = None,
    chunk: int | None = None,
) -> Eigenvectors:
    """Return the *top* Ritz pairs at one *end* of the Hessian's spectrum: the largest, or the smallest eigenvalues.

    By *steps* of fully reorthogonalised Lanczos; the other arguments are those of `stability.curvature.spectrum`. Each
    vector's largest entry is positive. Raises `InputError` as `spectrum` does, and for an unknown end.

    >>> import torch
    >>> pairs = eigenvectors(lambda p: (p["w"] ** 2 * torch.tensor([3.0, -1.0, 0.5])).sum() / 2, {"w": torch.ones(3)})
    >>> pairs.values.round(decimals=3), pairs.vectors["w"].round(decimals=3).abs()
    (tensor([3.0000, 0.5000]), tensor([[1., 0., 0.],
            [0., 0., 1.]]))
    """
    if end not in ("high", "low"):
        raise InputError(f"end: unknown end {end!r}{nearest(end, ('high', 'low'))}")
    found = spectrum(
        objective, params, steps=steps, top=top, trace_probes=1, seed=seed, batches=batches, block=block, chunk=chunk
    )
    part = {name: getattr(found, f"{name}_{end}") for name in ("eigenvalues", "vectors", "residuals", "converged")}
    # An eigenvector's sign is arbitrary; without a rule it would hang on rounding.
    flat = flatten(part["vectors"], 1)
    sign = flat.gather(1, flat.abs().argmax(1, keepdim=True)).sign()[:, 0]
    vectors = {name: tensor * sign.view(-1, *(1,) * (tensor.dim() - 1)) for name, tensor in part["vectors"].items()}
    return Eigenvectors(part["eigenvalues"], vectors, part["residuals"], part["converged"])
