"""How flat the valley is: how much is lost when every filter of the encoders is shaken in proportion."""

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
from stability.probes import Batch, Measure, Params, Replica, in_towers, probe
from stability.probes.downstream import recall_error
from stability.probes.matched import fitted_scalar
from stability.streams import stream

SLACK = 2
"""What a rise takes of an accelerator's memory, as a multiple of one evaluation of all levels."""


def filter_normalised(value: Tensor, noise: Tensor) -> Tensor:
    """Return *noise* with the norm of each filter of *value*, of equal shape: d_f |theta_f| / |d_f|.

    >>> filter_normalised(torch.tensor([[3.0, 4.0], [0.0, 0.0]]), torch.tensor([[0.0, 2.0], [1.0, 1.0]]))
    tensor([[0., 5.],
            [0., 0.]])
    """
    filters, drawn = as_filters(value, 1), as_filters(noise, 1)
    return (drawn * (filters.norm(dim=1) / drawn.norm(dim=1))[:, None]).reshape(value.shape)


@probe(
    stacked=True,
    fixed_batches=True,
    chance=True,
    holds=("batches", "similarities"),
    least={"batches": 1, "draws": 2},
    measures=(
        Measure(
            "filter_sharpness",
            "Filter-normalised sharpness",
            "Mean rise of the loss when every filter of the encoders moves at random by a given share of its norm, as "
            "a share of the loss's chance level.",
            "share of chance",
        ),
        Measure(
            "filter_sharpness_stderr",
            "Standard error of the filter-normalised sharpness",
            "Over the random directions.",
            "share of chance",
            transform="log",
        ),
        Measure(
            "filter_sharpness_same_scale",
            "Filter-normalised sharpness at matched t",
            "The same with t set to one value for all losses, and b, where it is trained, to the best there.",
            "share of chance",
        ),
        Measure(
            "filter_sharpness_recall",
            "Filter-normalised sharpness of recall",
            "Mean rise of the error, 1 - recall@1, when every filter of the encoders moves at random by a given share "
            "of its norm. Neither t nor b has a part in it.",
            "share",
        ),
    ),
)
def flatness(
    replica: Replica, *, batches: int = 4, draws: int = 16, radius: float = 0.1, scale: float = 10.0
) -> dict[str, Tensor]:
    """Measure how much the mean loss over fixed batches rises along random filter-normalised directions.

    mean_d [(L(theta + r d) + L(theta - r d)) / 2 - L(theta)] / L_chance over *draws* directions d of the encoders, r
    being *radius*: 0.1 moves every filter by a tenth of its norm. Both signs, so that the slope at a point that is not
    yet a minimum cancels. The loss's own scalars stay. It changes neither when a loss is multiplied by a constant nor
    when a filter and the one that reads it are scaled against each other, as raw eigenvalues do. Directions are the
    same for all losses and seeds. Li et al. (2018), arXiv:1712.09913, Sec. 4 (directions).

    The higher t, the more a loss makes of the same change of the embeddings, and losses train t to different values. So
    it is measured once more with t = *scale* for every loss, b being refitted to the batches where it is trained (NaN
    without a t, or where no b is best); and, without L_chance, for the error 1 - recall@1 on held-out pairs.
    """
    # Bound here, since vmap hands on tensors alone.
    moved = [name for name in replica.params if in_towers(name) and name not in replica.frozen]
    held_out = replica.held_out

    def mean_loss(params: Params, stacked: Batch) -> Tensor:
        return vmap(lambda batch: replica.objective(params, batch))(stacked).mean()

    def levels(params: Params, scalars: Params, stacked: Batch) -> dict[str, Tensor]:
        own = mean_loss(params, stacked)
        matched = mean_loss(params | scalars, stacked) if scalars else torch.full_like(own, torch.nan)
        images, texts = replica.embed_image(params, held_out.image), replica.embed_text(params, held_out.text)
        return {"own": own, "matched": matched, "error": recall_error(images, texts, held_out.caption)}

    def along(step: float, noise: Params, params: Params, scalars: Params, stacked: Batch) -> dict[str, Tensor]:
        perturbed = {name: params[name] + step * filter_normalised(params[name], noise[name]) for name in moved}
        return levels(params | perturbed, scalars, stacked)

    scalars = vmap(lambda params, stacked: _matched(replica, params, stacked, scale))(replica.params, replica.batches)
    at = replica.params, scalars, replica.batches
    here = vmap(levels)(*at)

    def rise(noise: Params) -> dict[str, Tensor]:
        up, down = (vmap(partial(along, step, noise))(*at) for step in (radius, -radius))
        return {name: (up[name] + down[name]) / 2 - level for name, level in here.items()}

    shapes = {name: replica.params[name].shape[1:] for name in moved}
    dtype = next(iter(replica.params.values())).dtype
    if held_out.image.device.type == "cpu":
        each = [rise(_noise(shapes, draw, dtype)) for draw in range(draws)]
        own, matched, error = (torch.stack([found[name] for found in each]) for name in ("own", "matched", "error"))
    else:
        drawn = torch.stack([flatten(_noise(shapes, draw, dtype), 0) for draw in range(draws)])
        of_one = at_index(at, 0)
        work = SLACK * bytes_of(lambda: levels(*of_one), of_one[0])
        found = _in_parts(rise, to_device(drawn, held_out.image.device), shapes, len(replica.learning_rate) * work)
        own, matched, error = (found[name] for name in ("own", "matched", "error"))
    shares = own / replica.chance
    return {
        "filter_sharpness": shares.mean(0),
        "filter_sharpness_stderr": shares.std(0) / draws**0.5,
        "filter_sharpness_same_scale": matched.mean(0) / replica.chance,
        "filter_sharpness_recall": error.mean(0),
    }


def _matched(replica: Replica, params: Params, stacked: Batch, scale: float) -> Params:
    """Return log t for t = *scale*, and the b that minimises the mean loss then, where b is trained; none without t."""
    if "loss.log_scale" not in params:
        return {}
    scalars = {"loss.log_scale": torch.full_like(params["loss.log_scale"], math.log(scale))}
    if "loss.bias" in params and "loss.bias" not in replica.frozen:
        scalars["loss.bias"] = fitted_scalar(replica.objective, params | scalars, stacked, "loss.bias")
    return scalars


def _noise(shapes: Mapping[str, torch.Size], draw: int, dtype: torch.dtype) -> Params:
    """Return Gaussian numbers in the shape of each parameter of one replica, from streams of their own on the CPU."""
    return {
        name: torch.randn(shape, generator=stream(draw, f"flatness/{name}")).to(dtype) for name, shape in shapes.items()
    }


def _in_parts(
    rise: Callable[[Params], dict[str, Tensor]], noise: Tensor, shapes: Mapping[str, torch.Size], work: int
) -> dict[str, Tensor]:
    """Return the *rise* (draws, R) along each row of *noise* (draws, P): in one call those that memory holds.

    *work* is how many bytes one row takes. The draws lie on the accelerator since one copy.
    """
    rows = max(1, room_on(noise.device, 0) // work)
    parts = [vmap(lambda flat: rise(unflatten(flat, shapes)))(part) for part in noise.split(rows)]
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
