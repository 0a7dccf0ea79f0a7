"""The cost of a step: time and memory of one replica's loss and gradient on this machine."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from stability.probes.registry import Batch, Measure, Params, Replica, probe


def saved_bytes(work: Callable[[], Tensor]) -> int:
    """Return the bytes that autograd saves between the forward and the backward pass of *work*, each storage once.

    >>> x = torch.ones(1000, requires_grad=True)
    >>> saved_bytes(lambda: x.exp().sum())  # exp keeps its result
    4000
    """
    sizes: dict[int, int] = {}

    def count(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        sizes[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
        result = work()
    del result
    return sum(sizes.values())


def seconds_of(work: Callable[[], object], device: torch.device) -> float:
    """Return the seconds of one call of *work*, including what it started on *device*."""
    start = time.perf_counter()
    work()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - start


def seconds(work: Callable[[], object], repeats: int, device: torch.device) -> float:
    """Return the median seconds of *repeats* calls of *work*, after one warm-up call."""
    return statistics.median([seconds_of(work, device) for _ in range(repeats + 1)][1:])


@probe(
    stacked=True,
    alone=True,
    fixed_batches=True,
    timed=True,
    holds=(),
    least={"batches": 1, "repeats": 1},
    measures=(
        Measure(
            "step_milliseconds",
            "Time of a step",
            "Median time of one replica's loss and gradient on one batch, alone, on the machine that ran the study.",
            "ms",
            transform="log",
            better="lower",
        ),
        Measure(
            "step_megabytes",
            "Memory of a step",
            "What automatic differentiation holds between the forward and the backward pass of one replica.",
            "MB",
            transform="log",
            better="lower",
        ),
    ),
)
def cost(replica: Replica, *, batches: int = 1, repeats: int = 20) -> dict[str, Tensor]:
    """Measure time and memory of loss and gradient of one replica, towers and loss together, without the optimizer.

    Times depend on the machine and its load: compare arms within one run only. They are the only measures that differ
    between two runs of the same study.
    """
    times, sizes = [], []
    for index in range(len(replica.learning_rate)):

        def select(tree: Any, index: int = index) -> Any:
            return pytree.tree_map(lambda leaf: leaf[index].clone(), tree)  # a view would keep all replicas' memory

        params: Params = {name: value.detach().requires_grad_() for name, value in select(replica.params).items()}
        batch: Batch = pytree.tree_map(lambda leaf: leaf[0], select(replica.batches))
        leaves = list(params.values())

        def forward(params: Params = params, batch: Batch = batch) -> Tensor:
            return replica.objective(params, batch)

        def step(forward: Callable[[], Tensor] = forward, leaves: list[Tensor] = leaves) -> object:
            return torch.autograd.grad(forward(), leaves, allow_unused=True)

        sizes.append(saved_bytes(forward) / 1e6)
        times.append(1e3 * seconds(step, repeats, replica.learning_rate.device))
    return {"step_milliseconds": torch.tensor(times), "step_megabytes": torch.tensor(sizes)}
