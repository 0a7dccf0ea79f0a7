"""Whether a plane tells images from texts: linear separability of the modalities."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from stability.probes import Measure, Params, Replica, embedded, probe
from stability.streams import stream

WEAK_PENALTY = 1e3
"""Inverse strength of the logistic regression's penalty: rows have unit length, so this leaves the plane free."""


def linear_separability(image: np.ndarray, text: np.ndarray, fit: np.ndarray) -> float:
    """Return the accuracy with which a plane tells images from texts (N, D) that it was not fitted on.

    The plane is that of a logistic regression with an intercept (scikit-learn), fitted on both members of the pairs
    where *fit* (N,) is true and tested on those of the others: chance is 1/2, and 1 says that the modalities lie
    apart. NaN if an embedding is not finite. Bangachev et al. (2025), arXiv:2509.18552, Thm. 3.6: where all matches
    are more similar than 0 and all mismatches less, a plane separates all images from all but D texts.

    >>> apart = np.linspace(1, 2, 8)[:, None]
    >>> linear_separability(apart, -apart, np.arange(8) < 4), linear_separability(apart, apart, np.arange(8) < 4)
    (1.0, 0.5)
    """
    from sklearn.linear_model import LogisticRegression

    if not (np.isfinite(image).all() and np.isfinite(text).all()):
        return float("nan")

    def both(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        count = int(rows.sum())
        return np.concatenate([image[rows], text[rows]]), np.repeat([1, 0], count)

    plane = LogisticRegression(C=WEAK_PENALTY, max_iter=10_000).fit(*both(fit))
    return float(plane.score(*both(~fit)))


@probe(
    stacked=True,
    alone=True,
    holds=("embeddings",),
    measures=(
        Measure(
            "modality_separability",
            "Linear separability of the modalities",
            "Share of held-out images and texts on their own side of a plane that was fitted on other held-out pairs; "
            "chance is 1/2.",
            "share",
        ),
    ),
)
def separability(replica: Replica) -> dict[str, Tensor]:
    """Measure how well a plane tells images from texts: fitted on half of the held-out pairs, tested on the others.

    A gap between the modalities that some plane cuts shows as 1, whatever its width; the same halves at every step,
    seed and loss. See `linear_separability`.
    """
    held_out = replica.held_out
    order = torch.randperm(len(held_out.image), generator=stream(0, "probe/separability")).numpy()
    fit = order < len(order) // 2

    def both(params: Params) -> Tensor:
        return torch.cat([replica.embed_image(params, held_out.image), replica.embed_text(params, held_out.text)])

    size = len(order)
    values = [linear_separability(rows[:size], rows[size:], fit) for rows in embedded(both, replica.params)]
    return {"modality_separability": torch.tensor(values)}
