"""How much memory a replica takes while it trains: what decides how many train side by side."""

from __future__ import annotations

import torch
from torch import Tensor

from stability.datasets import Pairs
from stability.probes import probe
from stability.study import Study
from stability.train.features import bytes_kept
from stability.train.population import blueprint, initial_parameters

STATE_COPIES = 8
"""Flat copies of the parameters that a step holds: parameters, gradient, two moments, update and its temporaries."""

FORK_COPIES = 5
"""What a fork holds beside them: the copies' own parameters and moments, and where their two ends are kept."""

SLACK = 2.0
"""Activations are held once for the backward pass; its temporaries need about as much again."""


def bytes_per_replica(study: Study, arm: str, batch_size: int, pairs: Pairs) -> int:
    """Return an estimate of the bytes that one replica needs for a training step.

    Counts what autograd saves in one forward pass of one replica (each storage once) and the features of locked towers
    (those of all its pairs, though replicas may share them), so it depends on the study alone.
    """
    plan = blueprint(study, arm, batch_size, pairs)
    theta = initial_parameters(study, plan, pairs, [0])[0].requires_grad_()
    index = pairs.train[:batch_size]
    saved: dict[int, int] = {}

    def count(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        saved[storage.data_ptr()] = storage.nbytes()
        return tensor

    batch = {
        **{name: samples[index] for name, samples in pairs.modalities.items()},
        "index": torch.arange(batch_size),
        "step": torch.tensor(0),
        "uniform": torch.zeros(batch_size, batch_size),
        "state": plan.loss.initial_state(len(pairs.train)),
    }
    with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
        loss = plan.objective(plan.layout.unflatten(theta), batch)
    del loss
    features = sum(bytes_kept(cut, len(pairs.train)) for cut in plan.cuts.values())
    features *= study.data.corruption == "fixed"
    forks = any(probe[name].traits.get("forks") for name in study.probes)
    copies = STATE_COPIES + (FORK_COPIES if forks else 0)
    return int(SLACK * sum(saved.values())) + copies * theta.numel() * theta.element_size() + features
