"""The shift of the training data at one step, as ``[data.shift]`` of a study describes it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from stability.datasets import Pairs
from stability.grid import Run
from stability.study import Shift
from stability.train.data import population_data
from stability.train.features import kept_features
from stability.train.population import Population, held_out


def shifted_runs(runs: Sequence[Run], shift: Shift) -> list[Run]:
    """Return the runs with the corruption and the noise that they have after the shift."""
    return [
        replace(
            run,
            corruption=run.corruption if shift.corruption is None else shift.corruption,
            noise=run.noise if shift.noise is None else shift.noise,
        )
        for run in runs
    ]


def shift_data_(population: Population, pairs: Pairs) -> None:
    """Replace, in place, the data of a population by those after the shift; parameters and batch order stay.

    Pairs are corrupted by the runs' own streams, as before the first step, so that noise that grows keeps the
    corrupted pairs corrupted. The held-out pairs change only with an option of the dataset. The new tensors are not
    those that a CUDA graph reads, so the step has to be captured again.

    Args:
        population: the replicas.
        pairs: the study's data after the shift, before noise (`Study.shifted_pairs`).
    """
    study, device = population.study, population.theta.device
    shift = study.data.shift
    assert shift is not None
    before = [run.corruption for run in population.data.runs]
    data = population_data(shifted_runs(population.runs, shift), pairs, study.data.corruption, device)
    if before != [run.corruption for run in data.runs]:
        population.generators = data.generators("train")
    population.features = kept_features(study, population.spec, population.theta, data, pairs)
    if shift.options:
        population.held_out = held_out(pairs, device, "frequencies" in study.offers)
    population.data = data
