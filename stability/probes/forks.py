"""Linear mode connectivity of a run's children: two copies that branch at a step and see data in two orders."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.func import vmap

from stability.landscape.paths import barrier_of, instability_of
from stability.probes.downstream import recall_error
from stability.probes.registry import Measure, Params, Replica, probe


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
    """Measure the loss and error barriers between two children that branch at step *fork* (or at each listed step).

    The children start from the run's parameters, the optimizer's moments and the loss's state, and are trained to the
    end by the same schedule, each with another order of the data. Their final parameters, including t and b, are then
    interpolated linearly at *points* evenly spaced a in [0, 1].

    Barrier of the loss L, the mean over fixed training batches: max_a [L(a) - (1 - a) L(0) - a L(1)] / L_chance; zero
    if L is convex on the line. Error barrier, with E = 1 - recall@1 on held-out pairs: max_a E(a) - (E(0) + E(1)) / 2,
    which the source calls instability, and counts as none below 2%. Both are zero for a fork after the last step, and
    NaN if a child did not stay finite. Values are in the row of the fork's step, so a claim on one fork reduces by
    ``final``, and a claim on several by ``mean_after_warmup``. Each fork costs two more trainings from its step on.

    Frankle et al. (2020), arXiv:1912.05671, Sec. 2 and 3.1; above the chord: Entezari et al. (2022), arXiv:2110.06296.

    Args:
        replica: one replica with its two children.
        fork: the step at which they branch; a list: several.
        points: number of points on the line, at least 3.
        batches: number of fixed batches.
    """
    start, end = replica.children
    held_out = replica.held_out

    def evaluate(a: Tensor) -> tuple[Tensor, Tensor]:
        # lerp is exact at both ends, and where these are equal.
        params = {name: torch.lerp(value, end[name], a.to(value.dtype)) for name, value in start.items()}
        loss = vmap(lambda batch: replica.objective(params, batch))(replica.batches).mean()
        return loss, error(params)

    def error(params: Params) -> Tensor:
        image = replica.embed_image(params, held_out.image)
        text = replica.embed_text(params, held_out.text)
        return recall_error(image, text, held_out.caption)

    coordinates = torch.linspace(0.0, 1.0, points, dtype=torch.float64, device=held_out.caption.device)
    losses, errors = (torch.stack(values) for values in zip(*map(evaluate, coordinates), strict=True))
    # argmax returns an index even for NaN embeddings, so mask the error explicitly.
    errors = torch.where(losses.isfinite().all(), errors, torch.nan)
    return {
        "linear_mode_barrier": barrier_of(losses, coordinates.to(losses.dtype)) / replica.chance,
        "linear_mode_error_barrier": instability_of(errors),
        "linear_mode_children_error": (errors[0] + errors[-1]) / 2,
    }
