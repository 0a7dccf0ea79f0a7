"""Linear separability of the modalities: the accuracy of a linear classifier of images against texts."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from stability.probes.registry import Measure, Params, Replica, embedded, probe
from stability.streams import stream

WEAK_PENALTY = 1e3
"""Inverse strength of the logistic regression's penalty: rows have unit length, so the penalty is negligible."""


def linear_separability(image: np.ndarray, text: np.ndarray, fit: np.ndarray) -> float:
    """Return the accuracy of a linear classifier of images (N, D) against texts (N, D), on pairs it was not fitted on.

    The classifier is a logistic regression with an intercept (scikit-learn), fitted on images and texts of the pairs
    where the mask *fit* (N,) is true and tested on the other pairs. Chance is 1/2; 1 means that a plane separates the
    modalities. NaN if an embedding is not finite. Bangachev et al. (2025), arXiv:2509.18552, Thm. 3.6: if the
    similarity of all matches is above 0 and of all mismatches below 0, a plane separates all images from all but D
    texts.

    >>> rows = np.linspace(1, 2, 8)[:, None]
    >>> linear_separability(rows, -rows, np.arange(8) < 4), linear_separability(rows, rows, np.arange(8) < 4)
    (1.0, 0.5)
    """
    from sklearn.linear_model import LogisticRegression

    if not (np.isfinite(image).all() and np.isfinite(text).all()):
        return float("nan")

    def samples_of(mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        count = int(mask.sum())
        return np.concatenate([image[mask], text[mask]]), np.repeat([1, 0], count)

    classifier = LogisticRegression(C=WEAK_PENALTY, max_iter=10_000).fit(*samples_of(fit))
    return float(classifier.score(*samples_of(~fit)))


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
    """Measure the accuracy of a linear classifier of images against texts, fitted on half of the held-out pairs.

    It is tested on the other half; the halves are the same at every step, seed and loss. Any gap between the modalities
    that a plane separates gives 1, whatever its width. See `linear_separability`.
    """
    held_out = replica.held_out
    order = torch.randperm(len(held_out.image), generator=stream(0, "probe/separability")).numpy()
    fit = order < len(order) // 2

    def embed(params: Params) -> Tensor:
        return torch.cat([replica.embed_image(params, held_out.image), replica.embed_text(params, held_out.text)])

    size = len(order)
    values = [linear_separability(rows[:size], rows[size:], fit) for rows in embedded(embed, replica.params)]
    return {"modality_separability": torch.tensor(values)}
