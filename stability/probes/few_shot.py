"""Few-shot accuracy: linear classifiers on frozen image embeddings."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from stability.probes.registry import Measure, Replica, embedded, probe
from stability.streams import stream

SHOTS = (1, 2, 5, 10)
PENALTY = 1.0
"""Inverse strength of the logistic regression's penalty, scikit-learn's default, for rows scaled to unit variance."""


def shots_of(label: np.ndarray, shots: int, generator: torch.Generator) -> np.ndarray | None:
    """Return indices (classes * shots,) of *shots* random images per class; None if a class would have none left.

    >>> shots_of(np.array([0, 1, 0, 1, 1]), 1, torch.Generator()).shape
    (2,)
    >>> shots_of(np.array([0, 1, 0, 1, 1]), 2, torch.Generator()) is None  # no image of class 0 would be left to test
    True
    """
    chosen = []
    for class_id in np.unique(label):
        indices = np.flatnonzero(label == class_id)
        if len(indices) <= shots:
            return None
        chosen.append(indices[torch.randperm(len(indices), generator=generator)[:shots].numpy()])
    return np.concatenate(chosen)


def few_shot_accuracy(image: np.ndarray, label: np.ndarray, fit: np.ndarray) -> float:
    """Return the accuracy (mean over classes) on all other images of a linear classifier fitted on those at *fit*.

    image (N, D) embeddings, label (N,). Logistic regression (scikit-learn) on features standardized by the fitted
    images' scale. NaN if an embedding is not finite.

    >>> rows = np.repeat([[-1.0, 0.0], [1.0, 0.0]], 4, axis=0)
    >>> few_shot_accuracy(rows, np.repeat([0, 1], 4), np.array([0, 4]))
    1.0
    """
    from sklearn.linear_model import LogisticRegression

    if not np.isfinite(image).all():
        return float("nan")
    rest = np.setdiff1d(np.arange(len(label)), fit)
    scaled = (image - image[fit].mean(0)) / (image[fit].std() + np.finfo(np.float64).tiny)
    predicted = LogisticRegression(C=PENALTY, max_iter=1000).fit(scaled[fit], label[fit]).predict(scaled[rest])
    return float(np.mean([np.mean(predicted[label[rest] == k] == k) for k in np.unique(label)]))


@probe(
    stacked=True,
    alone=True,
    holds=("embeddings",),
    least={"draws": 1},
    measures=(
        *(
            Measure(
                f"few_shot_accuracy_{shots}",
                f"{shots}-shot accuracy",
                f"Accuracy of a linear classifier on frozen image embeddings, fitted on {shots} labelled held-out "
                f"image{'s' * (shots > 1)} of each class, tested on all others; mean over classes and draws.",
                transform="log_above_chance",
                chance="few_shot_chance",
                better="higher",
                needs="classes",
            )
            for shots in SHOTS
        ),
        Measure("few_shot_chance", "Chance of few_shot", "One over the number of classes.", needs="classes"),
    ),
)
def few_shot(replica: Replica, *, draws: int = 5) -> dict[str, Tensor]:
    """Measure 1-, 2-, 5- and 10-shot accuracy of linear classifiers on the frozen image tower, over *draws* of shots.

    The shots are the same images at every step, seed and loss. NaN if a class has too few images or the data have no
    classes. This is the linear probe of Radford et al. (2021), arXiv:2103.00020, Sec. 3.2, with few labels.
    """
    held_out = replica.held_out
    count = len(replica.learning_rate)
    label, samples = held_out.classes, held_out.image[held_out.labelled]
    images = embedded(lambda params: replica.embed_image(params, samples), replica.params)
    generator = stream(0, "probe/few_shot")
    fits = {shots: [shots_of(label, shots, generator) for _ in range(draws)] for shots in SHOTS}
    accuracy = np.full((len(SHOTS), count), np.nan)
    for index, image in enumerate(images):
        for row, draws_of in enumerate(fits.values()):
            values = [np.nan if fit is None else few_shot_accuracy(image, label, fit) for fit in draws_of]
            accuracy[row, index] = np.mean(values)
    chance = 1 / max(1, len(np.unique(label)))
    columns = {f"few_shot_accuracy_{s}": torch.tensor(row) for s, row in zip(SHOTS, accuracy, strict=True)}
    return columns | {"few_shot_chance": torch.full((count,), chance)}
