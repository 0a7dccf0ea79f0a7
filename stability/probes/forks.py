"""What a fork tells: whether two children of one run, trained with data in two orders, end in one valley."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.func import vmap

from stability.landscape.paths import barrier_of, instability_of
from stability.probes import Measure, Params, Replica, probe
from stability.probes.downstream import recall_error


@probe(
    fixed_batches=True,
    chance=True,
    holds=("batches", "similarities"),
    forks="fork",
    several=("fork",),
    least={"fork": 0, "points": 3, "batches": 1},
    measures=(
        Measure(
            "linear_mode_barrier",
            "Barrier between children",
            "Highest rise of the loss on the straight way between the ends of two children of the run, which part at "
            "this step and read the data in two orders, above the straight line between their losses, as a share of "
            "the loss's chance level.",
            "share of chance",
        ),
        Measure(
            "linear_mode_error_barrier",
            "Error barrier between children",
            "Highest error, 1 - recall@1, on the straight way between the ends of two children of the run, which part "
            "at this step, less the mean of their errors: the run's instability to the order of its data.",
            "share",
        ),
        Measure(
            "linear_mode_children_error",
            "Error of the children",
            "Mean over two children of the run that part at this step of their error, 1 - recall@1, at the end.",
            "share",
        ),
    ),
)
def linear_mode(replica: Replica, *, fork: int = 0, points: int = 11, batches: int = 4) -> dict[str, Tensor]:
    """Measure what lies between two children of the run that part at step *fork* (or at each of a list of steps).

    The children take the run's parameters, the optimizer's moments and the loss's state, and are trained to the end by
    the same schedule, each with the data in an order of its own. Then all parameters, t and b too, are moved from the
    one end to the other in *points* even steps a in [0, 1].

    Barrier of the loss L, the mean over fixed training batches: max_a [L(a) - (1 - a) L(0) - a L(1)] / L_chance; zero
    where L is convex on the way. Error barrier, E being 1 - recall@1 on held-out pairs: max_a E(a) - (E(0) + E(1)) / 2,
    which the source calls instability, and takes for none below 2%. Both are zero for a fork after the last step, and
    NaN where a child did not stay finite. Measured in the row of the fork's step, so a claim on one fork reduces by
    ``final``, one on several by ``mean_after_warmup``. Each fork costs two more trainings from its step on.

    Frankle et al. (2020), arXiv:1912.05671, Sec. 2 and 3.1; above the chord: Entezari et al. (2022), arXiv:2110.06296.
    """
    one, other = replica.children
    held_out = replica.held_out

    def at(place: Tensor) -> tuple[Tensor, Tensor]:
        # Exact at both ends, and wherever these are equal.
        params = {name: torch.lerp(value, other[name], place.to(value.dtype)) for name, value in one.items()}
        loss = vmap(lambda batch: replica.objective(params, batch))(replica.batches).mean()
        return loss, error(params)

    def error(params: Params) -> Tensor:
        image = replica.embed_image(params, held_out.image)
        text = replica.embed_text(params, held_out.text)
        return recall_error(image, text, held_out.caption)

    places = torch.linspace(0.0, 1.0, points, dtype=torch.float64, device=held_out.caption.device)
    losses, errors = (torch.stack(values) for values in zip(*map(at, places), strict=True))
    # Embeddings that are NaN still have a nearest one.
    errors = torch.where(losses.isfinite().all(), errors, torch.nan)
    return {
        "linear_mode_barrier": barrier_of(losses, places.to(losses.dtype)) / replica.chance,
        "linear_mode_error_barrier": instability_of(errors),
        "linear_mode_children_error": (errors[0] + errors[-1]) / 2,
    }
