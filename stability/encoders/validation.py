"""Validation of custom towers: checks of everything that training a population requires, each with its own error."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap
from torch.nn.parameter import UninitializedParameter

from stability.encoders.registry import Modality
from stability.registry import InputError
from stability.streams import stream

SIZE = 3
"""Number of samples in the batch on which a tower is tested."""


def check_no_batch_coupling(tower: nn.Module) -> None:
    """Raise `InputError` for a BatchNorm that uses batch statistics; in ``eval()`` with stored statistics it does not.

    >>> check_no_batch_coupling(nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2)))
    Traceback (most recent call last):
    stability.registry.InputError: layer '1' is a BatchNorm, which couples the samples of a batch, as in a contrastive
    study only the loss may; use LayerNorm or GroupNorm, or .eval() with the stored statistics of a trained model
    >>> check_no_batch_coupling(nn.BatchNorm1d(2).eval())
    """
    for name, module in tower.named_modules():
        norm = isinstance(module, nn.modules.batchnorm._BatchNorm)
        if norm and (module.training or module.running_mean is None):
            raise InputError(
                f"layer {name!r} is a BatchNorm, which couples the samples of a batch, as in a contrastive study only "
                "the loss may; use LayerNorm or GroupNorm, or .eval() with the stored statistics of a trained model"
            )


def check_tower(tower: object, modality: Modality, embed_dim: int) -> None:
    """Raise `InputError` with one sentence if a population cannot train this tower.

    A tower must

    - be a module with float32 parameters;
    - map a batch to (B, embed_dim) finite reals, with no row all zero;
    - process samples independently (no BatchNorm, nothing else that couples them);
    - give the same values when called again: random numbers of a run come from named streams only;
    - give the same values under ``vmap`` over its weights as in a loop;
    - let gradients reach its weights, unless they are frozen.
    """
    if not isinstance(tower, nn.Module):
        raise InputError(f"it returns a value of type {type(tower).__name__}; allowed: a torch.nn.Module")
    check_no_batch_coupling(tower)
    for name, module in tower.named_modules():
        if isinstance(module, nn.modules.dropout._DropoutNd) and module.training and module.p > 0:
            raise InputError(
                f"layer {name!r} is a Dropout, which draws random numbers beside the run's own; give it p = 0"
            )
    params = {name: value.detach() for name, value in _parameters(tower).items()}
    batch = _samples(modality)

    def embed(weights: dict[str, Tensor], samples: Tensor = batch) -> Tensor:
        embeddings: Tensor = functional_call(tower, weights, samples)
        return embeddings

    with torch.no_grad():
        expected = _call(lambda: embed(params), "it cannot be called")
        _check_output(expected, embed_dim)
        if not torch.equal(batch, _samples(modality)):
            raise InputError("it changes its input in place, which other towers and later steps read")
        if not _close(_call(lambda: embed(params), "it cannot be called twice"), expected):
            raise InputError(
                "called again it gives other values; a tower may draw no random numbers beside the run's own (give a "
                "dropout p = 0) and may keep no state"
            )
        single = _call(lambda: embed(params, batch[:1]), "it cannot be called on one sample")
        if not _close(single, expected[:1]):
            raise InputError(
                "embeddings depend on the other samples in the batch (e.g. BatchNorm); encoders must process samples "
                "independently"
            )
        stacked = {name: torch.stack([value, 0.9 * value]) for name, value in params.items()}
        vmapped = _call(lambda: vmap(embed)(stacked), "it does not run under torch.func.vmap over its weights")
        looped = [embed({name: value[index] for name, value in stacked.items()}) for index in range(2)]
    if not _close(vmapped, torch.stack(looped)):
        raise InputError("under torch.func.vmap over its weights it gives other values than in a loop")
    if any(value.requires_grad for value in tower.parameters()) and not tower(batch).requires_grad:
        raise InputError(
            "no gradient reaches its parameters (is there a detach or a no_grad?); freeze them, or remove the detach"
        )


def _parameters(tower: nn.Module) -> dict[str, nn.Parameter]:
    """Return the parameters by name, or raise `InputError` if the flat vector of a population cannot hold them."""
    params = dict(tower.named_parameters())
    if not params:
        raise InputError("it has no parameters; a tower needs at least one, though it may be locked")
    for name, value in params.items():
        if isinstance(value, UninitializedParameter):
            raise InputError(f"parameter {name!r} has no shape yet; a lazy layer has to be called once by its builder")
        if value.dtype != torch.float32:
            raise InputError(f"parameter {name!r} holds {value.dtype}; allowed: torch.float32")
    return params


def _check_output(embeddings: object, embed_dim: int) -> None:
    """Raise `InputError` unless the output is a batch of finite, non-zero embeddings."""
    allowed = f"allowed: reals of shape ({SIZE}, {embed_dim})"
    if not isinstance(embeddings, Tensor):
        raise InputError(f"it maps {SIZE} samples to {type(embeddings).__name__}; {allowed}")
    if tuple(embeddings.shape) != (SIZE, embed_dim) or not embeddings.is_floating_point():
        raise InputError(f"it maps {SIZE} samples to {tuple(embeddings.shape)} of {embeddings.dtype}; {allowed}")
    if not embeddings.isfinite().all():
        raise InputError("it maps samples of ordinary size to numbers that are not finite")
    if not embeddings.any(-1).all():
        raise InputError("it maps samples to zeros, which have no direction (does its last layer start at zero?)")


def _samples(modality: Modality) -> Tensor:
    generator = stream(0, "soundness")
    if modality.is_tokens:
        return torch.randint(modality.vocabulary, (SIZE, *modality.shape), generator=generator)
    return torch.randn(SIZE, *modality.shape, generator=generator)


def _call(work: Callable[[], Tensor], message: str) -> Tensor:
    try:
        return work()
    except Exception as error:
        first = next((line.strip() for line in str(error).splitlines() if line.strip()), "no message")
        raise InputError(f"{message}: {type(error).__name__}: {first}") from error


def _close(left: Tensor, right: Tensor) -> bool:
    return torch.allclose(left, right, rtol=1e-3, atol=1e-4 * float(right.abs().max()))
