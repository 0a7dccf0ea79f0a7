"""The loss and gradient of all replicas: towers forward, loss with its gradient, towers backward."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap
from torch.nn import functional as F

from stability.devices import is_aligned
from stability.losses.batched import sharded_loss_and_grads
from stability.precision import autocast
from stability.probes import Batch, Params
from stability.train.batched_layers import Forward
from stability.train.model import ModelSpec, subtree

State = dict[str, Tensor]

NO_FEATURES: Mapping[str, Tensor] = {}


def value_and_grad(
    spec: ModelSpec,
    theta: Tensor,
    batch: Batch,
    grad: Tensor,
    features: Mapping[str, Tensor] = NO_FEATURES,
    loss_scale: Tensor | None = None,
) -> tuple[Tensor, State]:
    """Compute the training objective of all replicas and write its gradient.

    The gradient equals that of ``vmap(spec.training_objective)`` by autograd: bit for bit for perceptrons, up to
    rounding for transformers and for losses with a batched kernel (`stability.losses.batched`).

    Args:
        spec: what all replicas share.
        theta: flat parameters (R, P, padded to whole cache lines).
        batch: the inputs of the towers and the loss, each tensor with a leading replica axis.
        grad: output for the gradient, like *theta*; zero for frozen parameters and padding.
        features: outputs of the frozen part of a tower (R, B, ...), by modality: only the layers behind it are run.
        loss_scale: powers of two (R,) by which the gradients that the towers pass on, and those written to *grad*, are
            larger, so that fewer of them vanish in float16; None: not scaled.

    Returns:
        The objective (R,), and the new state of the losses.
    """
    leaves, params = _leaves(spec, theta)
    with torch.enable_grad():
        with autocast(spec.precision.towers, theta.device):
            embeddings = [_forward_tower(spec, name, params, batch, features) for name in spec.towers]
        # On an accelerator those of a 16-bit product have its format.
        embeddings = [embedding.to(theta.dtype) for embedding in embeddings]
    scalars = subtree("loss.", params)
    if spec.loss.kernel is not None and len(embeddings) == 2:
        detached = {name: value.detach() for name, value in scalars.items()}
        losses, grad_embeddings, grad_scalars = sharded_loss_and_grads(
            spec.loss.kernel, [x.detach() for x in embeddings], detached, spec.shards
        )
        state: State = {}
        if loss_scale is not None:
            grad_embeddings = [part * loss_scale[:, None, None] for part in grad_embeddings]
            grad_scalars = {name: value * loss_scale for name, value in grad_scalars.items()}
    else:
        losses, state, grad_embeddings, grad_scalars = _autograd_loss_and_grads(
            spec, embeddings, scalars, batch, loss_scale
        )
    grads = {f"loss.{name}": value for name, value in grad_scalars.items()}
    for name in spec.towers:
        # Tower by tower, so that the saved tensors of one are freed before the backward pass of the next.
        trained = {key: leaf for key, leaf in leaves.items() if key.startswith(f"{name}.") and leaf.requires_grad}
        output, grad_output = embeddings.pop(0), grad_embeddings.pop(0)
        if trained:
            parts = torch.autograd.grad(output, list(trained.values()), grad_output, allow_unused=True)
            grads |= {key: part for key, part in zip(trained, parts, strict=True) if part is not None}
        del output
    _write(spec, grads, grad)
    return losses, state


def _leaves(spec: ModelSpec, theta: Tensor) -> tuple[Params, Params]:
    """Return the parameters as leaf tensors with their memory layout, and as views with the towers' shapes."""
    stored = {
        name: part.detach().requires_grad_(name not in spec.frozen)
        for name, part in spec.layout.stored(theta.detach()).items()
    }
    transposed = spec.layout.transposed
    with torch.enable_grad():
        return stored, {name: stored[name].mT if name in transposed else stored[name] for name in spec.layout.shapes}


def _write(spec: ModelSpec, grads: Params, grad: Tensor) -> None:
    """Concatenate gradients, by name and in memory layout, into *grad* (R, P); missing ones are zero."""
    zero = grad.new_zeros(1, 1)
    replicas = len(grad)
    parts = [
        grads[name].reshape(replicas, size)
        if name in grads and name not in spec.frozen
        else zero.expand(replicas, size)
        for name, size in spec.layout.sizes.items()
    ]
    padding = grad.shape[1] - spec.layout.size
    torch.cat([*parts, *([zero.expand(replicas, padding)] if padding else [])], dim=1, out=grad)


def _forward_tower(
    spec: ModelSpec, modality: str, params: Params, batch: Batch, features: Mapping[str, Tensor]
) -> Tensor:
    """Return the embeddings (R, B, D) of a tower before normalization; start from its *features* if it has any."""
    tower_params = subtree(f"{modality}.", params)
    if modality in features:
        split = spec.splits[modality]
        return _forward(split.rest, split.forward, tower_params, features[modality])
    return _forward(spec.towers[modality], spec.forwards.get(modality), tower_params, batch[modality])


def _forward(tower: nn.Module, forward: Forward | None, params: Params, samples: Tensor) -> Tensor:
    if forward is not None:
        return forward(params, samples)
    tower_params = {name: params[name] for name, _ in tower.named_parameters()}
    output: Tensor = vmap(partial(functional_call, tower))(tower_params, samples)
    return output


def _autograd_loss_and_grads(
    spec: ModelSpec, embeddings: list[Tensor], scalars: Params, batch: Batch, loss_scale: Tensor | None
) -> tuple[Tensor, State, list[Tensor], Params]:
    """Return the loss, its state, and its gradients with respect to embeddings and scalars, by autograd under vmap.

    The gradients are those of the loss times *loss_scale*.
    """
    inputs = [x.detach().requires_grad_() for x in embeddings]
    # A frozen tower's embeddings need no gradient, but a loss may be differentiated with respect to any of them.
    trained = {name: value for name, value in scalars.items() if value.requires_grad}
    with torch.enable_grad():
        units = [F.normalize(x, dim=-1) for x in inputs]
        reserved = {name: batch[name] for name in spec.loss.reserved}
        named = {f"loss.{name}": value for name, value in scalars.items()}
        # Replicas whose rows of numbers end within a cache line are computed one by one, so that their bits do not
        # depend on their position.
        chunk = None if is_aligned(units[0].device, units[0].shape[1] // spec.shards) else 1
        with autocast(spec.precision.logits, units[0].device, carried=True):
            losses, state = vmap(spec.loss_of, chunk_size=chunk)(units, named, reserved)
        losses = losses.to(units[0].dtype)
        scaled = losses if loss_scale is None else losses * loss_scale
        grads = torch.autograd.grad(
            scaled.sum(), [*inputs, *trained.values()], allow_unused=True, materialize_grads=True
        )
    grad_scalars = dict(zip(trained, grads[len(inputs) :], strict=True))
    new_state = {name: value.detach() for name, value in state.items()}
    return losses.detach(), new_state, list(grads[: len(inputs)]), grad_scalars
