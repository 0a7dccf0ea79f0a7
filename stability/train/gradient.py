"""The gradients of a population: towers there, the loss and its derivative, towers back."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from functools import partial

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap
from torch.nn import functional as F

from stability.probes import Batch, Params
from stability.train.chains import Chain
from stability.train.layers import LINE, Pull
from stability.train.population import Blueprint, within

State = dict[str, Tensor]

NOTHING: Mapping[str, Tensor] = {}


def room_for(theta: Tensor) -> Tensor:
    """Return a tensor like *theta* (R, P), with anything in it, whose rows all begin a line of the cache.

    Matrix products that are written to other places in a line may sum in another order, and then a replica's bits
    would depend on its place among the others.
    """
    replicas, size = theta.shape
    return theta.new_empty(replicas, -(-size // LINE) * LINE)[:, :size]


def slopes(
    plan: Blueprint, params: Params, batch: Batch, places: Params, features: Mapping[str, Tensor] = NOTHING
) -> tuple[Tensor, State]:
    """Return the training objective of all replicas, (R,), and their losses' state; write the gradients to *places*.

    Parameters, places and batch have the axis of replicas in front. The same numbers as autograd's of
    ``vmap(plan.training_objective)``, sooner where towers are chains of known layers (transformers to rounding), and to
    rounding where the derivative of the loss is known (`stability.train.stacked_losses`). Fixed parameters get zeros.
    Of a tower whose *features* (R, B, ...) are given, by modality, only what follows its cut is run.
    """
    for name in plan.fixed:
        places[name].zero_()
    trained = {name: place for name, place in places.items() if name not in plan.fixed}
    ways = [_way(plan, name, params, trained, batch, features) for name in plan.towers]
    scalars = {name: value.detach() for name, value in within("loss.", params).items()}
    into = within("loss.", trained)
    judge = (plan.loss.judged if len(ways) == 2 else None) or partial(_judged, plan, batch)
    losses, state, by_end, by_scalar = judge([end for end, _ in ways], scalars, into.keys())
    while ways:
        # Popped, so that what a tower keeps is freed before the next one goes back.
        ways.pop()[1](by_end.pop())
    for name, place in into.items():
        place.copy_(by_scalar[name])
    return losses, state


def _way(
    plan: Blueprint, modality: str, params: Params, trained: Params, batch: Batch, features: Mapping[str, Tensor]
) -> tuple[Tensor, Pull]:
    """Return the output (R, B, D) of a tower, and the way back; of one with features, from its cut on."""
    own, into = within(f"{modality}.", params), within(f"{modality}.", trained)
    if modality in features:
        cut = plan.cuts[modality]
        return _there_and_back(cut.rest, cut.chain, own, into, features[modality])
    return _there_and_back(plan.towers[modality], plan.chains.get(modality), own, into, batch[modality])


def _there_and_back(
    tower: nn.Module, chain: Chain | None, params: Params, into: Params, samples: Tensor
) -> tuple[Tensor, Pull]:
    """Return the output (R, B, D) of a tower, and what takes its derivative back to the places *into*."""
    if chain is not None:
        return chain(params, into, samples)
    named = {name for name, _ in tower.named_parameters()}
    leaves = {name: value.detach().requires_grad_(name in into) for name, value in params.items() if name in named}
    with torch.enable_grad():
        end = vmap(partial(functional_call, tower))(leaves, samples)

    def back(slope: Tensor) -> None:
        wanted = [leaves[name] for name in into]
        if wanted:
            found = torch.autograd.grad(end, wanted, slope, allow_unused=True, materialize_grads=True)
            for place, value in zip(into.values(), found, strict=True):
                place.copy_(value)

    return end.detach(), back


def _judged(
    plan: Blueprint, batch: Batch, ends: list[Tensor], scalars: Params, trained: Collection[str]
) -> tuple[Tensor, State, list[Tensor], Params]:
    """Return any loss of the towers' ends, its state, and its derivatives by ends and *trained* scalars."""
    ends = [end.requires_grad_() for end in ends]
    leaves = [scalars[name].requires_grad_() for name in trained]
    with torch.enable_grad():
        units = [F.normalize(end, dim=-1) for end in ends]
        asked = {name: batch[name] for name in plan.loss.reserved}
        losses, state = vmap(plan.loss_of)(units, {f"loss.{name}": value for name, value in scalars.items()}, asked)
        found = torch.autograd.grad(losses.sum(), [*ends, *leaves], allow_unused=True, materialize_grads=True)
    by_scalar = dict(zip(trained, found[len(ends) :], strict=True))
    return losses.detach(), {name: value.detach() for name, value in state.items()}, list(found[: len(ends)]), by_scalar
