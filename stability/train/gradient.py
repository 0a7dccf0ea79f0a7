"""The loss and the gradient of all replicas: towers forward, the loss with its derivative, towers backward."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap
from torch.nn import functional as F

from stability.losses.batched import loss_and_grads
from stability.probes import Batch, Params
from stability.train.batched_layers import Forward
from stability.train.population import ModelSpec, within

State = dict[str, Tensor]

NO_FEATURES: Mapping[str, Tensor] = {}


def value_and_grad(
    plan: ModelSpec, theta: Tensor, batch: Batch, grad: Tensor, features: Mapping[str, Tensor] = NO_FEATURES
) -> tuple[Tensor, State]:
    """Return the training objective of all replicas, (R,), and their losses' new state; write the gradient.

    The same numbers as autograd's of ``vmap(plan.training_objective)``: bit for bit for perceptrons, to rounding for
    transformers and for losses with a kernel of their own (`stability.losses.batched`).

    Args:
        plan: what all replicas share.
        theta: flat parameters (R, P, padded to whole cache lines).
        batch: what the towers and the loss read, each tensor with a leading replica axis.
        grad: where the gradient is written, like *theta*; zero for frozen parameters and padding.
        features: outputs of the frozen part of a tower (R, B, ...), by modality: only what follows it is run.
    """
    leaves, params = _leaves(plan, theta)
    with torch.enable_grad():
        embeddings = [_forward_tower(plan, name, params, batch, features) for name in plan.towers]
    scalars = within("loss.", params)
    if plan.loss.kernel is not None and len(embeddings) == 2:
        detached = {name: value.detach() for name, value in scalars.items()}
        losses, grad_embeddings, grad_scalars = loss_and_grads(
            plan.loss.kernel, [x.detach() for x in embeddings], detached
        )
        state: State = {}
    else:
        losses, state, grad_embeddings, grad_scalars = _autograd_loss_and_grads(plan, embeddings, scalars, batch)
    grads = {f"loss.{name}": value for name, value in grad_scalars.items()}
    for name in plan.towers:
        # Tower by tower, so that what one keeps is freed before the next one goes back.
        own = {key: leaf for key, leaf in leaves.items() if key.startswith(f"{name}.") and leaf.requires_grad}
        output, grad_output = embeddings.pop(0), grad_embeddings.pop(0)
        if own:
            parts = torch.autograd.grad(output, list(own.values()), grad_output, allow_unused=True)
            grads |= {key: part for key, part in zip(own, parts, strict=True) if part is not None}
        del output
    _write(plan, grads, grad)
    return losses, state


def _leaves(plan: ModelSpec, theta: Tensor) -> tuple[Params, Params]:
    """Return the parameters as leaves in their order and orientation in memory, and as the towers see them."""
    stored = {
        name: part.detach().requires_grad_(name not in plan.frozen)
        for name, part in plan.layout.stored(theta.detach()).items()
    }
    turned = plan.layout.turned
    with torch.enable_grad():
        return stored, {name: stored[name].mT if name in turned else stored[name] for name in plan.layout.shapes}


def _write(plan: ModelSpec, grads: Params, grad: Tensor) -> None:
    """Write gradients, by name and as stored, side by side into *grad* (R, P); what is missing is zero."""
    nothing = grad.new_zeros(1, 1)
    replicas = len(grad)
    parts = [
        grads[name].reshape(replicas, size)
        if name in grads and name not in plan.frozen
        else nothing.expand(replicas, size)
        for name, size in plan.layout.sizes.items()
    ]
    padding = grad.shape[1] - plan.layout.size
    torch.cat([*parts, *([nothing.expand(replicas, padding)] if padding else [])], dim=1, out=grad)


def _forward_tower(
    plan: ModelSpec, modality: str, params: Params, batch: Batch, features: Mapping[str, Tensor]
) -> Tensor:
    """Return the embeddings (R, B, D) of a tower, before rows are normalized; of one with features, from these on."""
    own = within(f"{modality}.", params)
    if modality in features:
        cut = plan.cuts[modality]
        return _forward(cut.rest, cut.forward, own, features[modality])
    return _forward(plan.towers[modality], plan.forwards.get(modality), own, batch[modality])


def _forward(tower: nn.Module, forward: Forward | None, params: Params, samples: Tensor) -> Tensor:
    if forward is not None:
        return forward(params, samples)
    own = {name: params[name] for name, _ in tower.named_parameters()}
    output: Tensor = vmap(partial(functional_call, tower))(own, samples)
    return output


def _autograd_loss_and_grads(
    plan: ModelSpec, embeddings: list[Tensor], scalars: Params, batch: Batch
) -> tuple[Tensor, State, list[Tensor], Params]:
    """Return any loss of the towers' embeddings, its state, and its gradients with respect to these and to scalars."""
    inputs = [x.detach().requires_grad_() for x in embeddings]
    # A frozen tower's embeddings need no gradient, but a loss may be differentiated with respect to any of them.
    trained = {name: value for name, value in scalars.items() if value.requires_grad}
    with torch.enable_grad():
        units = [F.normalize(x, dim=-1) for x in inputs]
        reserved = {name: batch[name] for name in plan.loss.reserved}
        named = {f"loss.{name}": value for name, value in scalars.items()}
        losses, state = vmap(plan.loss_of)(units, named, reserved)
        grads = torch.autograd.grad(
            losses.sum(), [*inputs, *trained.values()], allow_unused=True, materialize_grads=True
        )
    grad_scalars = dict(zip(trained, grads[len(inputs) :], strict=True))
    new_state = {name: value.detach() for name, value in state.items()}
    return losses.detach(), new_state, list(grads[: len(inputs)]), grad_scalars
