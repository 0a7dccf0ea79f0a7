"""Where a tower breaks: largest logits, and sizes of activations and updates layer by layer."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from stability.encoders.transformers import Attention
from stability.probes.registry import Measure, Params, Replica, probe

SIDES = ("image", "text")
"""The towers that are measured."""


def layers_of(tower: nn.Module) -> dict[str, nn.Module]:
    """Return the layers of a tower by name: its parts that have parameters, in order.

    The members of a list or a sequence each are a part. A tower without such parts is one layer.

    >>> list(layers_of(nn.Sequential(nn.Flatten(), nn.Sequential(nn.Linear(4, 2), nn.GELU()), nn.Linear(2, 2))))
    ['1.0', '2']
    >>> list(layers_of(nn.Linear(4, 2)))
    ['']
    """
    layers = {name: part for name, part in _parts(tower) if any(True for _ in part.parameters())}
    return layers or {"": tower}


def _parts(module: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    for name, child in module.named_children():
        if isinstance(child, nn.Sequential | nn.ModuleList):
            yield from ((f"{name}.{inner}", part) for inner, part in _parts(child))
        else:
            yield name, child


def rms(values: Tensor) -> Tensor:
    """Return the root mean square of all entries, a scalar.

    >>> rms(torch.tensor([[3.0, -4.0]])) ** 2
    tensor(12.5000)
    """
    return values.square().mean().sqrt()


@contextmanager
def recorded(tower: nn.Module) -> Iterator[tuple[dict[str, Tensor], list[Tensor]]]:
    """Yield what calls of a tower fill in: the RMS of each layer's output by name, and largest |attention logits|.

    Both are recorded by forward hooks, of which none is left at the end, so the tower may run under ``vmap`` within.
    Attention logits are computed again from the input of each attention of `stability.encoders.transformers`.
    """
    sizes: dict[str, Tensor] = {}
    logits: list[Tensor] = []

    def record_size(name: str, output: object) -> None:
        if isinstance(output, Tensor):
            sizes[name] = rms(output)

    handles = [
        part.register_forward_hook(lambda module, args, output, name=name: record_size(name, output))
        for name, part in layers_of(tower).items()
    ]
    handles += [
        part.register_forward_hook(lambda module, args, output: logits.append(module.logits(args[0]).abs().amax()))
        for part in tower.modules()
        if isinstance(part, Attention)
    ]
    try:
        yield sizes, logits
    finally:
        for handle in handles:
            handle.remove()


def _measures(side: str) -> tuple[Measure, ...]:
    of = f"of the {side} tower"
    return (
        Measure(
            f"attention_logit_{side}",
            f"Largest attention logit, {side}s",
            f"Largest |<q, k>| / sqrt(d) {of} over held-out samples, heads, layers and pairs of positions; NaN for a "
            "tower without attention.",
            transform="log",
        ),
        Measure(
            f"activation_rms_{side}_max",
            f"Largest RMS of activations, {side}s",
            f"Largest of the root mean squares of the outputs of the layers {of} on held-out samples.",
            transform="log",
        ),
        Measure(
            f"activation_rms_{side}",
            f"RMS of activations by layer, {side}s",
            f"Root mean square of the output of each layer {of} on held-out samples, from input to output.",
            listed=True,
        ),
        Measure(
            f"update_rms_{side}",
            f"RMS of the update by layer, {side}s",
            f"Root mean square of the last step over the parameters of each layer {of}, from input to output; NaN "
            "before the first step.",
            listed=True,
        ),
    )


@probe(
    update=True,
    holds=("similarities",),
    measures=(
        *(measure for side in SIDES for measure in _measures(side)),
        Measure(
            "output_logit",
            "Largest output logit",
            "Largest |t <image, text> + b| over all pairs of held-out samples, without the loss's clamp or cap.",
            transform="log",
            scalar="log_scale",
        ),
    ),
)
def activations(replica: Replica) -> dict[str, Tensor]:
    """Measure the largest attention and output logits, and the RMS of activations and updates layer by layer.

    Growth of the attention logits and of the output logits are the two instabilities of large transformers that small
    ones show at high learning rates. Wortsman et al. (2023), arXiv:2309.14322, Sec. 3.1; both are largest absolute
    values here. The sizes by layer against the width of the towers are a coordinate check, Yang et al. (2022),
    arXiv:2203.03466, App. D.1: what grows or vanishes with width has a scale that does not fit it. Under cross-entropy
    output logits may diverge while activations do not, Haas et al. (2025), arXiv:2505.22491.

    The layers of a tower are its parts that have parameters, for a transformer the embedding, each block, the final
    norm and the projection; for a perceptron its linear maps. Positions belong to no layer. Held-out samples, so that
    the largest values do not depend on the batch size; towers beyond image and text are not measured.
    """
    values: dict[str, Tensor] = {}
    units: dict[str, Tensor] = {}
    for side, samples in (("image", replica.held_out.image), ("text", replica.held_out.text)):
        tower, params = replica.towers[side], _of_tower(side, replica.params)
        with recorded(tower) as (sizes, logits):
            output = functional_call(tower, params, (samples,))
        units[side] = F.normalize(output, dim=-1)
        absent = torch.full_like(rms(output), math.nan)
        by_layer = torch.stack([*sizes.values()])
        values |= {
            f"attention_logit_{side}": torch.stack(logits).amax() if logits else absent,
            f"activation_rms_{side}": by_layer,
            f"activation_rms_{side}_max": by_layer.amax(),
            f"update_rms_{side}": _update_by_layer(_of_tower(side, replica.update), [*sizes], absent),
        }
    return values | {"output_logit": _largest_logit(units["image"], units["text"], replica.params)}


def _of_tower(side: str, params: Params) -> Params:
    return {name.removeprefix(f"{side}."): value for name, value in params.items() if name.startswith(f"{side}.")}


def _update_by_layer(update: Params, layers: list[str], absent: Tensor) -> Tensor:
    """Return the RMS of the update over the parameters of each layer; *absent* for each before the first step."""
    parts = [[value.flatten() for name, value in update.items() if _is_within(layer, name)] for layer in layers]
    return torch.stack([rms(torch.cat(values)) if values else absent for values in parts])


def _is_within(layer: str, name: str) -> bool:
    return not layer or name.startswith(f"{layer}.")


def _largest_logit(image: Tensor, text: Tensor, params: Params) -> Tensor:
    if "loss.log_scale" not in params:
        return torch.full_like(image.sum(), math.nan)
    scale, zero = params["loss.log_scale"].exp(), image.new_zeros(())
    bias = params.get("loss.bias", -scale * params.get("loss.relative_bias", zero))
    return (scale * image @ text.mT + bias).abs().amax()
