"""How flat the valley is: how much the loss rises when every filter of the encoders is shaken in proportion."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.func import vmap

from stability.landscape.filters import as_filters
from stability.probes import Batch, Measure, Params, Replica, in_towers, probe
from stability.streams import stream


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
            scale="log",
        ),
    ),
)
def flatness(replica: Replica, *, batches: int = 4, draws: int = 16, radius: float = 0.1) -> dict[str, Tensor]:
    """Measure how much the mean loss over fixed batches rises along random filter-normalised directions.

    mean_d [(L(theta + r d) + L(theta - r d)) / 2 - L(theta)] / L_chance over *draws* directions d of the encoders, r
    being *radius*: 0.1 moves every filter by a tenth of its norm. Both signs, so that the slope at a point that is not
    yet a minimum cancels. The loss's own scalars stay. It changes neither when a loss is multiplied by a constant nor
    when a filter and the one that reads it are scaled against each other, as raw eigenvalues do. Directions are the
    same for all losses and seeds. Li et al. (2018), arXiv:1712.09913, Sec. 4 (directions).
    """
    # Bound here, since vmap hands on tensors alone.
    moved = [name for name in replica.params if in_towers(name) and name not in replica.fixed]

    def mean_loss(params: Params, stacked: Batch) -> Tensor:
        return vmap(lambda batch: replica.objective(params, batch))(stacked).mean()

    def along(step: float, noise: Params, params: Params, stacked: Batch) -> Tensor:
        shaken = {name: params[name] + step * filter_normalised(params[name], noise[name]) for name in moved}
        return mean_loss(params | shaken, stacked)

    here = vmap(mean_loss)(replica.params, replica.batches)
    rises = []
    for draw in range(draws):
        noise = {name: _noise(name, replica.params[name], draw) for name in moved}
        sides = [
            vmap(lambda params, stacked, step=step, noise=noise: along(step, noise, params, stacked))(
                replica.params, replica.batches
            )
            for step in (radius, -radius)
        ]
        rises.append((sides[0] + sides[1]) / 2 - here)
    shares = torch.stack(rises) / replica.chance
    return {"filter_sharpness": shares.mean(0), "filter_sharpness_stderr": shares.std(0) / draws**0.5}


def _noise(name: str, stacked: Tensor, draw: int) -> Tensor:
    """Return Gaussian numbers in the shape of one replica's parameter, from a stream of its own on the CPU."""
    drawn = torch.randn(stacked.shape[1:], generator=stream(draw, f"flatness/{name}"))
    return drawn.to(stacked)
