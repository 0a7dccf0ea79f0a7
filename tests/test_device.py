"""All that trains and measures, on a pretended accelerator: the CPU's bits, and nothing for the host to wait for.

It fails where tensors of two devices meet, and names each line that would stall a GPU.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from contextlib import nullcontext
from functools import cache
from typing import Any

import pandas as pd
import pytest
import torch
from device_cases import (
    TRAINING,
    assert_close,
    comparable,
    on_cpu,
    pairs_of,
    probed,
    reading_of,
    steps_of,
    study_of,
    trainer_on,
)
from pretended_device import DEVICE, Counts, Event, counted, pretended
from torch import Tensor
from torch.utils import _pytree as pytree

from stability import curvature, landscape
from stability.grid import Group, runs_of
from stability.landscape.directions import direction
from stability.probes import probe
from stability.study.schema import Train
from stability.train import Trainer, replay, train_group
from stability.train.optimizer import GradClipper

CPU = torch.device("cpu")


def assert_same_bits(ours: Any, theirs: Any) -> None:
    """Raise unless two trees of tensors and numbers are equal bit for bit, wherever they lie; NaN equals NaN."""
    own, structure = pytree.tree_flatten_with_path(ours)
    other, expected = pytree.tree_flatten_with_path(theirs)
    assert structure == expected
    for (path, one), (_, another) in zip(own, other, strict=True):
        if isinstance(another, Tensor):
            assert one.dtype == another.dtype, pytree.keystr(path)
            assert torch.equal(one.cpu().nan_to_num(1e9), another.nan_to_num(1e9)), pytree.keystr(path)
        else:
            assert one == another, pytree.keystr(path)


def assert_same_on_both(work: Callable[[torch.device], Any]) -> None:
    """Raise unless *work* returns the same bits on the pretended device as on the CPU."""
    theirs = work(CPU)
    with pretended():
        ours = work(DEVICE)
        assert_same_bits(ours, theirs)


# --- training ---------------------------------------------------------------------------------------------------------


@cache
def trained(case: str) -> tuple[list[dict[str, Tensor]], list[Counts]]:
    """Return the measures of two steps on the pretended device, and what happened there in each."""
    measures, counts = [], []
    with pretended():
        trainer = trainer_on(DEVICE, TRAINING[case])
        for _ in range(2):
            with counted() as counts_of_step:
                measured = trainer.step()
            measures.append(on_cpu(measured, trainer))
            counts.append(counts_of_step)
    return measures, counts


ROUNDED_OTHERWISE = {"loss clip_chunked"}
"""Where an accelerator takes another way: to choose the CPU's, the host would have to wait for a number."""


@pytest.mark.parametrize("case", TRAINING)
def test_training_gives_the_bits_of_the_cpu(case):
    measures, _ = trained(case)
    for ours, theirs in zip(measures, steps_of(trainer_on(CPU, TRAINING[case]), 2), strict=True):
        assert ours.keys() == theirs.keys()
        if case in ROUNDED_OTHERWISE:
            names = ("loss", "gradient_norm")
            assert_close({name: ours[name] for name in names}, {name: theirs[name] for name in names}, share=1e-5)
        else:
            assert_same_bits(ours, theirs)


@pytest.mark.parametrize("case", TRAINING)
def test_a_step_waits_for_nothing(case):
    _, (_, second) = trained(case)
    assert not second.waits, "\n".join(event.line for event in second.waits)
    assert second.launches > 50


def test_gradients_are_clipped_at_a_quantile_of_their_own_history_as_on_the_cpu():
    norms = torch.tensor([[1.0, 4.0], [3.0, 2.0], [5.0, 1.0], [2.0, 8.0]])

    def clipped(device: torch.device) -> Any:
        clip = GradClipper.of([Train(steps=4, clip_quantile=0.5)] * 2, device, window=2)
        gradients = torch.linspace(-1, 1, 24).view(4, 2, 3).to(device)
        return [clip(gradient, norm) for gradient, norm in zip(gradients, norms.to(device), strict=True)], gradients

    assert_same_on_both(clipped)


@pytest.mark.parametrize("case", ["loss clip", "loss adaptive", "a locked tower", "three modalities"])
def test_a_group_writes_the_files_that_it_writes_on_the_cpu(case, tmp_path):
    study = study_of(TRAINING[case])
    for device in (CPU, DEVICE):
        files = tmp_path / f"{device.type}.parquet", tmp_path / f"{device.type}.safetensors"
        with pretended():
            group = Group("g", runs_of(study))
            train_group(study, group, pairs_of(TRAINING[case]), files[0], device, lambda step: None, files[1])
    ours, theirs = (pd.read_parquet(tmp_path / f"{device.type}.parquet") for device in (DEVICE, CPU))
    pd.testing.assert_frame_equal(ours, theirs, check_exact=True)
    assert (tmp_path / f"{DEVICE.type}.safetensors").read_bytes() == (tmp_path / "cpu.safetensors").read_bytes()


def test_a_run_trained_again_is_the_one_on_the_cpu():
    text = TRAINING["loss siglip"]
    study, group = study_of(text), Group("g", runs_of(study_of(text)))

    def again(device: torch.device) -> Any:
        found = replay(study, group, group.runs[1], pairs=pairs_of(text), device=device)
        return found.params, found.recall_error(found.params)

    assert_same_on_both(again)


# --- probes -----------------------------------------------------------------------------------------------------------


@cache
def probed_trainer(device: torch.device, text: str) -> Trainer:
    """Return the trainer of a study after two steps; every probe may read it, which changes nothing."""
    with pretended() if device == DEVICE else nullcontext():
        trainer = trainer_on(device, text)
        steps_of(trainer, 2)
    return trainer


SUMMED_OTHERWISE = {"curvature", "fixed_held_out_loss", "held_out_loss", "scalar_gradients"}
"""Probes that may take more at once on an accelerator than on a CPU: other sums, equal to rounding."""


@pytest.mark.parametrize("name", sorted(probe))
def test_every_probe_reads_the_bits_of_the_cpu(name):
    theirs = reading_of(probed_trainer(CPU, probed(name, 4)), name)
    with pretended():
        ours = reading_of(probed_trainer(DEVICE, probed(name, 4)), name)
    if name in SUMMED_OTHERWISE:
        assert_close(comparable(name, ours), comparable(name, theirs), share=1e-4)
    else:
        assert_same_bits(ours, theirs)


ONE_REPLICA_AFTER_THE_OTHER = {
    "cost": "what one replica takes is timed, alone, from copies of its own",
    "cross_check": "the peer's code takes one model at a time, and both compute in float64 on the CPU",
}
"""Probes whose reading may copy more the more replicas there are, and why."""


@cache
def unread_trainer(text: str) -> Trainer:
    """Return a trainer of its own: what it keeps from one reading to the next, it has from counted ones."""
    return probed_trainer.__wrapped__(DEVICE, text)


def events_of_reading(name: str, seeds: int) -> list[Event]:
    trainer = unread_trainer(probed(name, seeds))
    with counted() as counts:
        trainer.read(name)
    return counts.events


@pytest.mark.parametrize("name", sorted({*probe} - {*ONE_REPLICA_AFTER_THE_OTHER}))
def test_a_reading_copies_and_waits_as_often_whatever_the_number_of_replicas(name):
    few, many = (Counter(event.line for event in events_of_reading(name, seeds)) for seeds in (4, 8))
    assert not many - few, "\n".join(map(str, (many - few).items()))


# --- curvature and landscape ------------------------------------------------------------------------------------------


@cache
def objective_on(device: torch.device) -> tuple[Callable[..., Tensor], dict[str, Tensor], dict[str, Tensor]]:
    """Return the objective of one replica, its parameters, and two whole batches."""
    trainer = probed_trainer(device, TRAINING["loss siglip"])
    spec, pairs = trainer.population.spec, pairs_of(TRAINING["loss siglip"])
    params = spec.layout.unflatten_contiguous(trainer.population.theta[1].detach().clone())
    places = pairs.train[:16]
    batches = {name: samples[places].unflatten(0, (2, 8)).to(device) for name, samples in pairs.modalities.items()}
    return spec.objective, params, batches


def of_spectrum(objective: Any, params: Any, batches: Any) -> Any:
    how = {"steps": 6, "probes": 2, "top": 2, "trace_probes": 3, "batches": batches}
    found = curvature.spectrum(objective, params, **how)
    grid = torch.linspace(-1.0, 1.0, 5, dtype=torch.float64)
    return {**vars(found), "dtype": str(found.dtype), "density": found.density(grid, 0.5)}


def of_line(objective: Any, params: Any, batches: Any) -> Any:
    (line,) = landscape.directions(params, count=1, seed=3)
    return vars(landscape.slice1d(objective, params, line, points=5, batches=batches))


def of_plane(objective: Any, params: Any, batches: Any) -> Any:
    plane = landscape.directions(params, count=2, seed=3)
    return vars(landscape.slice2d(objective, params, plane, points=3, batches=batches))


def of_path(objective: Any, params: Any, batches: Any) -> Any:
    other = {name: value + 0.1 for name, value in params.items()}
    return vars(landscape.connectivity(objective, params, other, batches=batches))


@pytest.mark.parametrize("work", [of_spectrum, of_line, of_plane, of_path])
def test_curvature_and_landscape_are_those_on_the_cpu(work):
    assert_same_on_both(lambda device: work(*objective_on(device)))


def direction_options(kind: str, objective: Any, params: Any, batches: Any) -> dict[str, Any]:
    """Return what a kind of directions needs beside the parameters."""
    moved = [{name: value * factor for name, value in params.items()} for factor in (0.9, 1.1, 1.3)]
    moved[0]["loss.bias"] = moved[0]["loss.bias"] - 1
    return {
        "eigen": {"objective": objective, "batches": batches, "steps": 5},
        "pca": {"trajectory": moved},
        "interpolation": {"end": moved[0]},
    }.get(kind, {})


@pytest.mark.parametrize("kind", sorted(direction))
def test_every_kind_of_direction_is_the_one_on_the_cpu(kind):
    def found(device: torch.device) -> Any:
        objective, params, batches = objective_on(device)
        options = direction_options(kind, objective, params, batches)
        return landscape.directions(params, kind, 1 if kind == "interpolation" else 2, **options)

    assert_same_on_both(found)
