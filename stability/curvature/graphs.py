"""The autograd graph of a gradient: built once, differentiated again for every Hessian-vector product."""

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
"""Bytes that the lanes of one call may produce in one evaluation on a CPU. Beyond it the processor's caches overflow,
and batched lanes are slower than a loop over them (``benchmarks/README.md``)."""

SECOND_ORDER = 8
"""Accelerator memory of a kept graph and one product with it, as a multiple of one evaluation."""


@dataclass(frozen=True)
class Graph:
    """The gradient of a sum of objectives, with its autograd graph.

    Attributes:
        leaves: the parameters that the graph starts from.
        gradient: one gradient per leaf; None where it does not depend on any leaf.
        zero_or_nan: (R,), NaN for a replica whose objective is not finite (it has no curvature), else zero.
        may_be_nan: whether *zero_or_nan* has to be added to products; False where it is known to be all zero.
    """

    leaves: list[Tensor]
    gradient: list[Tensor | None]
    zero_or_nan: Tensor
    may_be_nan: bool


def graph_of(values_at: Callable[[dict[str, Tensor]], Tensor], point: Named) -> Graph:
    """Return the graph of the gradient of ``values_at(leaves) -> (R,)`` at *point*.

    Replicas are independent, so the gradient of the sum over replicas holds the gradient of each replica.
    """
    # The fused attention kernels have no second derivative.
    with torch.inference_mode(False), torch.enable_grad(), sdpa_kernel(SDPBackend.MATH):
        leaves = [value.detach().clone().requires_grad_() for value in point.values()]
        values = values_at(dict(zip(point, leaves, strict=True)))
        grads: Sequence[Tensor | None] = [None] * len(leaves)
        if values.requires_grad:
            grads = torch.autograd.grad(values.sum(), leaves, create_graph=True, allow_unused=True)
    gradient = [grad if grad is not None and grad.requires_grad else None for grad in grads]
    zero_or_nan = 0 * values.detach()
    # On an accelerator, always adding it is cheaper than a device sync to check for NaN.
    may_be_nan = zero_or_nan.device.type != "cpu" or bool(zero_or_nan.isnan().any())
    return Graph(leaves, gradient, zero_or_nan, may_be_nan)


def graph_hvp(graph: Graph, vectors: Sequence[Tensor]) -> Sequence[Tensor | None]:
    """Return the Hessian times *vectors*, each like its leaf with one leading axis (V,); None stands for zeros."""
    pairs = [(grad, vector) for grad, vector in zip(graph.gradient, vectors, strict=True) if grad is not None]
    if not pairs:
        return [None] * len(graph.leaves)
    several = len(vectors[0]) > 1
    products = torch.autograd.grad(
        [grad for grad, _ in pairs],
        graph.leaves,
        [vector if several else vector[0] for _, vector in pairs],
        retain_graph=True,
        allow_unused=True,
        is_grads_batched=several,
    )
    return [product if several or product is None else product[None] for product in products]


class _ByteCounter(TorchDispatchMode):
    """Adds up the bytes of every tensor that an operation allocates; views are not counted."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if not func.is_view:
            tensors = [leaf for leaf in pytree.tree_leaves(result) if isinstance(leaf, Tensor)]
            self.bytes += sum(tensor.numel() * tensor.element_size() for tensor in tensors)
        return result


def bytes_of(evaluation: Callable[[], object], params: Named) -> int:
    """Return the bytes of *params* and of every tensor that one *evaluation* allocates."""
    with torch.no_grad(), _ByteCounter() as counter:
        evaluation()
    return counter.bytes + sum(value.numel() * value.element_size() for value in params.values())
