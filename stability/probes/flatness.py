"""Flatness: the rise of loss and error when each filter of the encoders is perturbed in proportion to its norm."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import partial

import torch
from torch import Tensor
from torch.func import vmap

from stability.curvature.graphs import bytes_of
from stability.curvature.products import at_index, flatten, unflatten
from stability.devices import room_on, to_device
from stability.landscape.filters import as_filters
from stability.probes.downstream import recall_error
from stability.probes.matched import fitted_scalar
from stability.probes.registry import Batch, Measure, Params, Replica, in_towers, probe
from stability.streams import stream

SLACK = 2
"""Accelerator memory of one direction, as a multiple of one evaluation of all levels."""


def filter_normalized(value: Tensor, noise: Tensor) -> Tensor:
    """Return *noise* with the norm of each filter of *value*, of equal shape: d_f |theta_f| / |d_f|.

    >>> filter_normalized(torch.tensor([[3.0, 4.0], [0.0, 0.0]]), torch.tensor([[0.0, 2.0], [1.0, 1.0]]))
    tensor([[0., 5.],
            [0., 0.]])
    """
    filters, rows = as_filters(value, 1), as_filters(noise, 1)
    return (rows * (filters.norm(dim=1) / rows.norm(dim=1))[:, None]).reshape(value.shape)


@probe(
    stacked=True,
    fixed_batches=True,
    chance=True,
    holds=("batches", "similarities"),
    least={"batches": 1, "draws": 2},
    measures=(
        Measure(
            "filter_sharpness",
            "Filter-normalized sharpness",
            "Mean rise of the loss when every filter of the encoders moves at random by a given share of its norm, as "
            "a share of the loss's chance level.",
            "share of chance",
        ),
        Measure(
            "filter_sharpness_stderr",
            "Standard error of the filter-normalized sharpness",
            "Over the random directions.",
            "share of chance",
            transform="log",
        ),
        Measure(
            "filter_sharpness_same_scale",
            "Filter-normalized sharpness at matched t",
            "The same with t set to one value for all losses, and b, where it is trained, to the best there.",
            "share of chance",
        ),
        Measure(
            "filter_sharpness_recall",
            "Filter-normalized sharpness of recall",
            "Mean rise of the error, 1 - recall@1, when every filter of the encoders moves at random by a given share "
            "of its norm. Neither t nor b has a part in it.",
            "share",
        ),
    ),
)
def flatness(
    replica: Replica, *, batches: int = 4, draws: int = 16, radius: float = 0.1, scale: float = 10.0
) -> dict[str, Tensor]:
    """Measure how much the mean loss over fixed batches rises along random filter-normalized directions.

    mean_d [(L(theta + r d) + L(theta - r d)) / 2 - L(theta)] / L_chance over *draws* directions d of the encoders,
    where r is *radius*: 0.1 moves each filter by a tenth of its norm. Both signs are used, so that the gradient at a
    point that is not yet a minimum cancels. The loss's scalars are not perturbed. Unlike raw eigenvalues, the measure
    is invariant to multiplying the loss by a constant and to rescaling a filter against the filter that reads it.
    Directions are the same for all losses and seeds. Li et al. (2018), arXiv:1712.09913, Sec. 4 (directions).

    A higher t amplifies the same change of the embeddings, and losses train t to different values. The measure is
    therefore repeated with t = *scale* for every loss, with b refitted to the batches if it is trained (NaN without a
    t, or if no b minimizes the loss, as under a ``logit_cap`` so low that b falls without end); and, without L_chance,
    for the error 1 - recall@1 on held-out pairs.

    Args:
        replica: all replicas, with a leading axis.
        batches: number of fixed batches.
        draws: number of directions.
        radius: r, the share of each filter's norm.
        scale: t of the measures at a common scale.
    """
    # Collected outside the functions below, since vmap passes tensors only.
    moved = [name for name in replica.params if in_towers(name) and name not in replica.frozen]
    held_out = replica.held_out

    def mean_loss(params: Params, stacked: Batch) -> Tensor:
        return vmap(lambda batch: replica.objective(params, batch))(stacked).mean()

    def levels(params: Params, scalars: Params, stacked: Batch) -> dict[str, Tensor]:
        loss = mean_loss(params, stacked)
        same_scale = mean_loss(params | scalars, stacked) if scalars else torch.full_like(loss, torch.nan)
        images, texts = replica.embed_image(params, held_out.image), replica.embed_text(params, held_out.text)
        return {"loss": loss, "same_scale": same_scale, "error": recall_error(images, texts, held_out.caption)}

    def along(step: float, noise: Params, params: Params, scalars: Params, stacked: Batch) -> dict[str, Tensor]:
        perturbed = {name: params[name] + step * filter_normalized(params[name], noise[name]) for name in moved}
        return levels(params | perturbed, scalars, stacked)

    scalars = vmap(lambda params, stacked: _scalars_at(replica, params, stacked, scale))(
        replica.params, replica.batches
    )
    inputs = replica.params, scalars, replica.batches
    base = vmap(levels)(*inputs)

    def rise(noise: Params) -> dict[str, Tensor]:
        up, down = (vmap(partial(along, step, noise))(*inputs) for step in (radius, -radius))
        return {name: (up[name] + down[name]) / 2 - level for name, level in base.items()}

    shapes = {name: replica.params[name].shape[1:] for name in moved}
    dtype = next(iter(replica.params.values())).dtype
    if held_out.image.device.type == "cpu":
        by_draw = [rise(_noise(shapes, draw, dtype)) for draw in range(draws)]
        rises = {name: torch.stack([one[name] for one in by_draw]) for name in base}
    else:
        directions = torch.stack([flatten(_noise(shapes, draw, dtype), 0) for draw in range(draws)])
        first = at_index(inputs, 0)
        work = SLACK * bytes_of(lambda: levels(*first), first[0])
        rises = _in_parts(rise, to_device(directions, held_out.image.device), shapes, len(replica.learning_rate) * work)
    shares = rises["loss"] / replica.chance
    return {
        "filter_sharpness": shares.mean(0),
        "filter_sharpness_stderr": shares.std(0) / draws**0.5,
        "filter_sharpness_same_scale": rises["same_scale"].mean(0) / replica.chance,
        "filter_sharpness_recall": rises["error"].mean(0),
    }


def _scalars_at(replica: Replica, params: Params, stacked: Batch, scale: float) -> Params:
    """Return log t for t = *scale* and, if b is trained, the b that minimizes the mean loss there; empty without t."""
    if "loss.log_scale" not in params:
        return {}
    scalars = {"loss.log_scale": torch.full_like(params["loss.log_scale"], math.log(scale))}
    if "loss.bias" in params and "loss.bias" not in replica.frozen:
        scalars["loss.bias"] = fitted_scalar(replica.objective, params | scalars, stacked, "loss.bias")
    return scalars


def _noise(shapes: Mapping[str, torch.Size], draw: int, dtype: torch.dtype) -> Params:
    """Return Gaussian numbers in the shape of each parameter of one replica, each from its own stream on the CPU."""
    return {
        name: torch.randn(shape, generator=stream(draw, f"flatness/{name}")).to(dtype) for name, shape in shapes.items()
    }


def _in_parts(
    rise: Callable[[Params], dict[str, Tensor]], noise: Tensor, shapes: Mapping[str, torch.Size], work: int
) -> dict[str, Tensor]:
    """Return the *rise* (draws, R) along each row of *noise* (draws, P), as many rows per call as fit in memory.

    *work* is the number of bytes per row. All rows of *noise* are already on the accelerator.
    """
    rows = max(1, room_on(noise.device, 0) // work)
    parts = [vmap(lambda flat: rise(unflatten(flat, shapes)))(part) for part in noise.split(rows)]
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
