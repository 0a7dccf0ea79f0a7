"""The gradient of an objective as a graph that is built once and differentiated again for every product."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

Named = Mapping[str, Tensor]

CPU_BYTES = 2**22
"""What the lanes of one call produce in one evaluation on a CPU: beyond it a processor's caches overflow, and many at
once are slower than one after the other (``benchmarks/README.md``)."""

SECOND_ORDER = 8
"""What a kept graph and one product with it take of an accelerator's memory, as a multiple of one evaluation."""


@dataclass(frozen=True)
class Graph:
    """The *gradient* (parts) of a sum of objectives, as it depends on *leaves*; None where it does not.

    *nothing* (R,) is zero, or NaN where an objective is not finite: such a point has no curvature. Where none is NaN it
    may be left out, unless it *may_be_nan*.
    """

    leaves: list[Tensor]
    gradient: list[Tensor | None]
    nothing: Tensor
    may_be_nan: bool


def graph_of(values_at: Callable[[dict[str, Tensor]], Tensor], point: Named) -> Graph:
    """Return the graph of the gradient of ``values_at(leaves) -> (R,)`` at *point*.

    Replicas do not mix, so the gradient of their sum holds each one's own.
    """
    # The fused attention kernels have no second derivative.
    with torch.inference_mode(False), torch.enable_grad(), sdpa_kernel(SDPBackend.MATH):
        leaves = [value.detach().clone().requires_grad_() for value in point.values()]
        values = values_at(dict(zip(point, leaves, strict=True)))
        parts: Sequence[Tensor | None] = [None] * len(leaves)
        if values.requires_grad:
            parts = torch.autograd.grad(values.sum(), leaves, create_graph=True, allow_unused=True)
    gradient = [part if part is not None and part.requires_grad else None for part in parts]
    nothing = 0 * values.detach()
    # To add it always is cheaper than to wait for what an accelerator computes.
    return Graph(leaves, gradient, nothing, nothing.device.type != "cpu" or bool(nothing.isnan().any()))


def products(graph: Graph, vectors: Sequence[Tensor]) -> Sequence[Tensor | None]:
    """Return the Hessian times *vectors*, each like its leaf with one leading axis (V,); None stands for zeros."""
    pairs = [(part, vector) for part, vector in zip(graph.gradient, vectors, strict=True) if part is not None]
    if not pairs:
        return [None] * len(graph.leaves)
    many = len(vectors[0]) > 1
    found = torch.autograd.grad(
        [part for part, _ in pairs],
        graph.leaves,
        [vector if many else vector[0] for _, vector in pairs],
        retain_graph=True,
        allow_unused=True,
        is_grads_batched=many,
    )
    return [part if many or part is None else part[None] for part in found]


class _ByteCounter(TorchDispatchMode):
    """Adds up the bytes of every tensor that operations make, views apart."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if not func.is_view:
            made = [leaf for leaf in pytree.tree_leaves(result) if isinstance(leaf, Tensor)]
            self.bytes += sum(tensor.numel() * tensor.element_size() for tensor in made)
        return result


def bytes_of(evaluation: Callable[[], object], params: Named) -> int:
    """Return the size of one evaluation's work: *params* and all that it computes from them, in bytes."""
    with torch.no_grad(), _ByteCounter() as produced:
        evaluation()
    return produced.bytes + sum(value.numel() * value.element_size() for value in params.values())
